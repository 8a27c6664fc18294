"""Plugins that are broken in every way we know of, each with what its row must say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distributions import HEAD, install

TOOL = HEAD + "from qwen_agent_kit import tool\n"


@dataclass(frozen=True)
class Bad:
    """One broken plugin.

    Args:
        name: Of the distribution.
        groups: What it lists itself under.
        source: Its module.
        state: What its row must say.
        error: What its error must hold.
    """

    name: str
    groups: Mapping[str, Mapping[str, str] | str]
    source: str | None
    state: str
    error: str
    metadata: str | None = None
    entry_points: str | None = None

    def install(self, site: Path) -> None:
        install(site, self.name, self.groups, self.source, metadata=self.metadata, entry_points=self.entry_points)


def _tools(value: str) -> str:
    return TOOL + f"@hookimpl\ndef register_tools():\n    {value}\n"


def _tool(name: str) -> str:
    return TOOL + (
        f"@tool(name={name!r})\ndef f(x: int) -> int:\n    '''Give x.'''\n    return x\n"
        "@hookimpl\ndef register_tools():\n    return [f]\n"
    )


BAD = (
    Bad("bad-missing-module", {"tools": "a1"}, None, "import", "bad_missing_module"),
    Bad(
        "bad-import-error", {"backends": "a2"}, "import no_such_module_anywhere\n", "import", "no_such_module_anywhere"
    ),
    Bad("bad-raises", {"models": "a3"}, "raise ValueError('broken at the top')\n", "import", "broken at the top"),
    Bad("bad-syntax", {"engines": "a4"}, "def (:\n", "import", "SyntaxError"),
    Bad("bad-exit", {"hooks": "a5"}, "import sys\nsys.exit(3)\n", "import", "SystemExit"),
    Bad("bad-interrupt", {"tools": "a6"}, "raise KeyboardInterrupt\n", "import", "KeyboardInterrupt"),
    Bad("bad-hang", {"backends": "a7"}, "import time\ntime.sleep(600)\n", "import", "did not finish"),
    Bad("bad-newer", {"tools": "a8"}, HEAD.replace("QAK_API = 1", "QAK_API = 2"), "api", "QAK_API = 2"),
    Bad("bad-no-api", {"tools": "a9"}, HEAD.replace("QAK_API = 1", ""), "api", "no QAK_API"),
    Bad("bad-unknown-hook", {"tools": "b1"}, HEAD + "@hookimpl\ndef register_tool(): ...\n", "registration", "no hook"),
    Bad("bad-arguments", {"hooks": "b2"}, HEAD + "@hookimpl\ndef on_step(stop): ...\n", "registration", "stop"),
    Bad("bad-no-hook", {"tools": "b3"}, HEAD, "registration", "implements no hook"),
    Bad("bad-hook-raises", {"tools": "b4"}, _tools("raise OSError('offer failed')"), "hook", "offer failed"),
    Bad("bad-hook-type", {"tools": "b5"}, _tools("return 'zoom'"), "hook", "returned a str"),
    Bad("bad-hook-items", {"tools": "b6"}, _tools("return [1, 2]"), "hook", "a int in it"),
    Bad("bad-hook-hangs", {"tools": "b7"}, _tools("import time; time.sleep(600)"), "hook", "did not finish"),
    Bad("bad-hook-async", {"tools": "b8"}, _tools("...").replace("def reg", "async def reg"), "hook", "async"),
    Bad("bad-twin-one", {"tools": "b9"}, _tool("twin"), "conflict", "bad-twin-two"),
    Bad("bad-twin-two", {"tools": "c1"}, _tool("Twin"), "conflict", "bad-twin-one"),
    Bad(
        "bad-shadow",
        {"commands": "run"},
        HEAD + "@hookimpl\ndef register_commands(cli):\n    cli.command('run')(lambda: print('shadow'))\n",
        "conflict",
        "'run'",
    ),
    Bad("bad-group", {"backend": "c2"}, HEAD, "metadata", "qwen_agent_kit.backend"),
    Bad("bad-nameless", {"tools": "c3"}, _tool("nameless"), "metadata", "no name", metadata="Version: 1.0\n"),
    Bad("bad-lines", {}, HEAD, "metadata", "", entry_points="[qwen_agent_kit.tools]\nthis line says nothing\n"),
    Bad("bad-value", {"tools": {"c4": "not a module!"}}, HEAD, "metadata", "not a module!"),
    Bad("bad-prints", {"tools": "c5"}, "print('loud')\n1 / 0\n", "import", "ZeroDivisionError"),
    Bad(
        "bad-unlisted",
        {"tools": "c6"},
        _tool("listed") + "@hookimpl\ndef on_step(step): ...\n",
        "registration",
        "hooks",
    ),
    Bad(
        "bad-promise",
        {"commands": "promised"},
        HEAD + "@hookimpl\ndef register_commands(cli): ...\n",
        "registration",
        "'promised'",
    ),
)

# What a row of BAD is called: a distribution whose metadata state no name goes by its folder's.
ROWS = {bad.name: "bad_nameless" if bad.name == "bad-nameless" else bad.name for bad in BAD}

GOOD = HEAD + (
    "from qwen_agent_kit import tool\n"
    "@tool\ndef fine(x: int) -> int:\n    '''Give x.'''\n    return x\n"
    "@hookimpl\ndef register_tools():\n    return [fine]\n"
)
