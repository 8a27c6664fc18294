"""Broken plugins become rows; the others work."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from pathlib import Path

import pytest
from bad_plugins import BAD, GOOD, ROWS, Bad
from distributions import HEAD, install, python

from qwen_agent_kit import Backend, Message, Text, Tool, ToolCall, ToolResult, hookimpl, tool
from qwen_agent_kit.backends import ChatRequest, Choice, EngineSpec, Usage
from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import PluginError, UsageError
from qwen_agent_kit.events import Step
from qwen_agent_kit.plugins import KINDS, call_list, command, inventory, load


@tool
def lift(x: int) -> int:
    """Give x.

    Args:
        x: Any number.
    """
    return x


CALL = ToolCall("c1", "lift", {"x": 1})
STEP = Step(0, Message("assistant", "the canary sang"), (), Usage(), "stop")
REQUEST = ChatRequest(messages=(Message("user", "the canary sings"),))


@pytest.fixture(autouse=True)
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAK_PLUGIN_SECONDS", "0.5")


def rows_of(loaded) -> dict:
    return {row.distribution: row for row in loaded.rows}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_f54_a_broken_plugin_is_a_row_and_stops_nothing(site: Path, bad: Bad):
    """Each kind of fault is explained in the plugin's row, and a sound plugin beside it still works."""
    bad.install(site)
    for twin in BAD:
        if twin.name.startswith("bad-twin") and bad.name.startswith("bad-twin") and twin is not bad:
            twin.install(site)
    install(site, "good-one", {"tools": "good"}, GOOD)
    rows = {row.distribution: row for row in inventory(core_commands=("run",))}
    row = rows[ROWS[bad.name]]
    assert row.state == bad.state
    assert bad.error in row.error
    assert "\n" not in row.error + row.cure
    assert row.cure
    assert rows["good-one"].state == "ok"
    offered = call_list(load("tools"), "register_tools", Tool, strict=False)
    assert "fine" in [one.name for one in offered]


def test_f54_all_at_once(site: Path):
    """All the broken plugins together leave every kind loadable, and each keeps its own row."""
    for bad in BAD:
        bad.install(site)
    install(site, "good-one", {"tools": "good"}, GOOD)
    rows = {row.distribution: row for row in inventory(core_commands=("run",))}
    assert {bad.name: rows[ROWS[bad.name]].state for bad in BAD} == {bad.name: bad.state for bad in BAD}
    for kind in KINDS:
        load(kind)
    assert len(BAD) >= 15


def test_f54_a_hanging_import_is_waited_for_once(site: Path):
    """The second load of a plugin that hangs does not wait again."""
    install(site, "hangs-once", {"tools": "h", "hooks": "h"}, "import time\ntime.sleep(30)\n")
    assert "did not finish in 0.5 s" in rows_of(load("tools"))["hangs-once"].error
    row = rows_of(load("hooks"))["hangs-once"]
    assert "has not finished yet" in row.error


def test_f54_a_duplicate_name_is_an_error_that_names_both():
    """Whoever collects strictly hears of both; the order of registration makes no difference."""

    class One:
        @hookimpl
        def register_tools(self):
            return [lift]

    class Two(One):
        pass

    for extra in ([One(), Two()], [Two(), One()]):
        with pytest.raises(PluginError, match="not unique") as caught:
            call_list(load("tools", extra=extra), "register_tools", Tool)
        assert "'One'" in str(caught.value)
        assert "'Two'" in str(caught.value)
        assert "QAK_PLUGINS_OFF" in (caught.value.hint or "")
        lenient = load("tools", extra=extra)
        assert lift not in call_list(lenient, "register_tools", Tool, strict=False)
        assert {rows_of(lenient)[name].state for name in ("One", "Two")} == {"conflict"}
        assert str(lenient.conflicts["lift"]) == str(caught.value)


def test_a_module_that_is_installed_and_passed_counts_once(site: Path):
    """As in the tests of an installed plugin: one offer, a row of its own, no quarrel with itself."""
    install(site, "good-one", {"tools": "good"}, GOOD)
    module = importlib.import_module("good_one")
    loaded = load("tools", extra=[module])
    alone = call_list(load("tools"), "register_tools", Tool)
    assert [tool.name for tool in call_list(loaded, "register_tools", Tool)] == [tool.name for tool in alone]
    assert rows_of(loaded)["good_one"].hooks == rows_of(loaded)["good-one"].hooks == ("register_tools",)
    assert all(row.ok for row in loaded.rows)


def test_a_load_is_fresh():
    """Two loads share no manager and no rows."""
    one, two = load("tools"), load("tools")
    assert one.manager is not two.manager
    one.manager.register(object(), "only here")
    assert not two.manager.has_plugin("only here")


def test_an_unknown_kind_is_refused():
    """The kinds are named."""
    with pytest.raises(UsageError, match="backends, models, engines, tools, commands, hooks"):
        load("backend")


@pytest.mark.parametrize("value", ["0", "-1", "ten", "nan", "inf", "1e9"])
def test_a_time_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    """The variable and what it holds are named."""
    monkeypatch.setenv("QAK_PLUGIN_SECONDS", value)
    with pytest.raises(UsageError, match="QAK_PLUGIN_SECONDS"):
        load("tools")


def test_extra_plugins_that_do_not_fit_are_raised():
    """An object from the user's own code is the user's to mend, at once."""

    class Wrong:
        @hookimpl
        def register_tolls(self): ...

    with pytest.raises(PluginError, match="register_tolls") as caught:
        load("tools", extra=[Wrong()])
    assert "register_tools" in (caught.value.hint or "")
    for nothing in (None, object(), 3):
        with pytest.raises(PluginError, match="no hook"):
            load("tools", extra=[nothing])


def test_one_module_in_several_entry_points_registers_once(site: Path):
    """Two commands of one module are one plugin."""
    source = HEAD + (
        "import click\n@hookimpl\ndef register_commands(cli):\n"
        "    cli.command('ping')(lambda: print('ping'))\n    cli.command('pong')(lambda: print('pong'))\n"
    )
    points = {"ping": "two_commands", "pong": "two_commands"}
    install(site, "two-commands", {"commands": points}, source)
    loaded = load("commands")
    assert rows_of(loaded)["two-commands"].state == "ok"
    ping, pong = command("ping"), command("pong")
    assert ping is not None
    assert pong is not None
    assert (ping.name, pong.name) == ("ping", "pong")


def test_a_command_imports_its_own_distribution_only(site: Path):
    """Running one plugin's command leaves the others of its kind alone."""
    source = HEAD + "@hookimpl\ndef register_commands(cli):\n    cli.command('mine')(lambda: None)\n"
    install(site, "mine-dist", {"commands": "mine"}, source)
    install(site, "other-dist", {"commands": "other"}, source)
    assert command("mine") is not None
    assert "other_dist" not in sys.modules
    assert command("nobody") is None


def test_a_contested_command_names_both(site: Path):
    """Neither of two commands with one name is run."""
    source = HEAD + "@hookimpl\ndef register_commands(cli):\n    cli.command('dig')(lambda: None)\n"
    install(site, "dig-one", {"commands": "dig"}, source)
    install(site, "dig-two", {"commands": "dig"}, source)
    with pytest.raises(PluginError, match=r"dig-one.*dig-two"):
        command("dig")


def test_a_command_that_is_not_delivered_says_why(site: Path):
    """The error names the distribution and what went wrong with it."""
    install(site, "empty-hand", {"commands": "hand"}, "raise ValueError('no hand')\n")
    with pytest.raises(PluginError, match=r"empty-hand.*no hand"):
        command("hand")


def test_two_distributions_with_one_module(site: Path):
    """The second is a conflict, not a second registration."""
    install(site, "owner-one", {"tools": {"m": "owner_one"}}, GOOD)
    install(site, "owner-two", {"tools": {"m": "owner_one"}})
    rows = rows_of(load("tools"))
    assert rows["owner-one"].state == "ok"
    assert rows["owner-two"].state == "conflict"
    assert "owner-one" in rows["owner-two"].error


def test_a_name_in_a_list_that_is_not_installed_is_a_row(monkeypatch: pytest.MonkeyPatch):
    """A misspelt name in a list is told, with the list it stands in."""
    monkeypatch.setenv("QAK_PLUGINS_OFF", "no-such-thing")
    (row,) = [row for row in inventory() if row.distribution == "no-such-thing"]
    assert row.state == "missing"
    assert "QAK_PLUGINS_OFF" in row.error


def test_f54_hooks_that_raise_are_skipped(caplog: pytest.LogCaptureFixture):
    """Observers that fail are as if absent, later ones still look on, and the row names the hook, not the content."""
    seen = []

    class Broken:
        @hookimpl
        def before_step(self, request):
            raise ValueError(request.messages[0].text)

        @hookimpl
        def on_step(self, step):
            sys.exit(1)

        @hookimpl
        def choose_backend(self, messages, backends, current):
            return "text"

    class Fine:
        @hookimpl
        def before_step(self, request):
            seen.append(request)

        @hookimpl(trylast=True)
        def choose_backend(self):
            return Choice("text", "the only one")

    loaded = load("hooks", extra=[Fine(), Broken()])
    with caplog.at_level(logging.INFO):
        loaded.manager.hook.before_step(request=REQUEST)
        loaded.manager.hook.on_step(step=STEP)
        choice = loaded.manager.hook.choose_backend(messages=(), backends=(), current=None)
    assert seen == [REQUEST]
    assert choice == Choice("text", "the only one")
    row = rows_of(loaded)["Broken"]
    assert (row.state, "before_step: ValueError" in row.error) == ("hook", True)
    assert "canary" not in row.error + caplog.text
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_f54_a_plugin_that_fails_while_it_runs_a_tool_fails_that_call():
    """The model reads which plugin failed; the call is not run a second time behind its back."""

    class Broken:
        @hookimpl
        def run_tool(self, call):
            raise ValueError("secret")

    class WrongType:
        @hookimpl
        def run_tool(self, tool, call):
            return "a string"

    for plugin in (Broken(), WrongType()):
        loaded = load("hooks", extra=[plugin])
        result = loaded.manager.hook.run_tool(call=CALL, tool=lift)
        assert result.is_error
        assert (result.call_id, result.name) == ("c1", "lift")
        assert type(plugin).__name__ in result.text
        assert "secret" not in result.text


def _wrapper(kind: str):
    class Wrapper:
        @hookimpl(wrapper=True)
        def run_tool(self, call, tool):
            if kind == "early":
                raise ValueError("early")
            if kind == "no yield":
                return
            result = yield
            if kind == "late":
                raise ValueError("late")
            if kind == "twice":
                yield
            if kind == "wrong":
                return "text"
            if kind == "forgets":
                return
            return result

    return Wrapper()


@pytest.mark.parametrize("kind", ["early", "no yield", "late", "twice", "wrong", "forgets", "fine"])
def test_f54_a_wrapper_changes_no_outcome_by_failing(kind: str):
    """Whatever goes wrong in a wrapper, the wrapped result arrives; only a sound wrapper has a clean row."""
    expected = ToolResult((Text("done"),), "c1", "lift")

    class Runs:
        @hookimpl(trylast=True)
        def run_tool(self, call, tool):
            return expected

    loaded = load("hooks", extra=[Runs(), _wrapper(kind)])
    assert loaded.manager.hook.run_tool(call=CALL, tool=lift) == expected
    assert (rows_of(loaded)["Wrapper"].state == "ok") == (kind == "fine")


def test_a_wrapper_sees_the_exception_of_what_it_wraps():
    """The exception passes through wrappers unchanged, and they may clean up."""
    seen = []

    class Wrapper:
        @hookimpl(wrapper=True)
        def run_tool(self):
            try:
                return (yield)
            except LookupError as error:
                seen.append(error)
                return None

    loaded = load("hooks", extra=[Wrapper()])

    class Raw:
        @hookimpl(trylast=True)
        def run_tool(self):
            raise LookupError("ours")

    loaded.manager.register(Raw())
    with pytest.raises(LookupError, match="ours"):
        loaded.manager.hook.run_tool(call=CALL, tool=lift)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [({"hookwrapper": True}, "run_tool"), ({"wrapper": True}, "register_tools"), ({"wrapper": True}, "run_tool")],
)
def test_wrappers_of_a_form_we_do_not_take_are_refused(options: dict, name: str):
    """Old-style wrappers, wrappers of offers, and wrappers that are no generators are refused when registered."""

    class Plugin:
        pass

    def hook():
        return None

    hook.__name__ = name
    setattr(Plugin, name, staticmethod(hookimpl(**options)(hook)))
    with pytest.raises(PluginError, match="wrapper"):
        load("hooks", extra=[Plugin()])


def test_offers_arrive_in_a_list():
    """Lists and tuples are offers, None is no offer."""

    def plugin(name, value):
        return type(name, (), {"register_backends": hookimpl(lambda self: value)})()

    one, two = Backend("one", frozenset({"text"})), Backend("two", frozenset({"text"}))
    extra = [plugin("A", [one]), plugin("B", (two,)), plugin("C", None), plugin("D", []), plugin("E", [None])]
    loaded = load("backends", extra=extra)
    offered = call_list(loaded, "register_backends", Backend)
    assert {backend.name for backend in offered} >= {"one", "two"}
    assert rows_of(loaded)["E"].state == "hook"
    assert rows_of(loaded)["C"].state == "ok"


def test_loading_from_many_threads(site: Path):
    """Eight threads that load at once each get the plugin."""
    install(site, "slow-import", {"tools": "slow"}, "import time\ntime.sleep(.05)\n" + GOOD)
    loads = []
    threads = [threading.Thread(target=lambda: loads.append(load("tools"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rows_of(one)["slow-import"].state for one in loads] == ["ok"] * 8


def test_ctrl_c_while_a_plugin_hangs_reaches_the_user(site: Path):
    """The user's own interrupt is not taken for the plugin's."""
    install(site, "hang-long", {"tools": "h"}, "import time\ntime.sleep(60)\n")
    code = (
        "import _thread, threading, time\nfrom qwen_agent_kit.plugins import load\n"
        "threading.Timer(.3, _thread.interrupt_main).start()\n"
        "try:\n    load('tools')\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)\n"
    )
    began = time.monotonic()
    done = python(code, site, QAK_PLUGIN_SECONDS="2")
    assert done.stdout.strip() == "interrupted", done.stderr
    assert time.monotonic() - began < 30


def _offer(hook: str, item) -> object:
    return type("Offers", (), {hook: hookimpl(lambda self: [item])})()


@pytest.mark.parametrize(
    ("hook", "good", "nameless"),
    [
        ("register_backends", Backend("shed", frozenset({"text"})), Backend("", frozenset({"text"}))),
        ("register_models", ModelEntry("shed", "qwen3"), ModelEntry(None, "qwen3")),
        ("register_engines", EngineSpec("shed", print), EngineSpec("", print)),
    ],
)
def test_each_kind_of_offer_is_collected(hook: str, good, nameless):
    """What a plugin offers arrives as it is; an offer without a name is none (a Tool checks its own)."""
    kind = hook.removeprefix("register_")
    assert good in call_list(load(kind, extra=[_offer(hook, good)]), hook, type(good))
    loaded = load(kind, extra=[_offer(hook, nameless)])
    assert nameless not in call_list(loaded, hook, type(good))
    assert "whose name is" in rows_of(loaded)["Offers"].error


def test_f54_an_alias_counts_as_a_name():
    """A model whose alias is another's name is contested as well."""
    extra = [_offer("register_models", ModelEntry("one", "qwen3", aliases=("Two",)))]
    extra.append(_offer("register_models", ModelEntry("two", "qwen3")))
    with pytest.raises(PluginError, match="'two' is not unique"):
        call_list(load("models", extra=extra), "register_models", ModelEntry)


def test_tools_are_collected():
    """An offered tool arrives as it is."""
    assert lift in call_list(load("tools", extra=[_offer("register_tools", lift)]), "register_tools", Tool)
