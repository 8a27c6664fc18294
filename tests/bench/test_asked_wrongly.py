"""What cannot be measured or drawn is refused before anything is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from qwen_agent_kit.bench import compare, speed, streams
from qwen_agent_kit.bench.plots import check_plot
from qwen_agent_kit.cli import cli
from qwen_agent_kit.errors import UsageError


@pytest.mark.parametrize("place", ["", "plot", "plot.txt", "missing/plot.png", ".png/"])
def test_a_plot_that_cannot_be_drawn_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kind of file, or a directory that is not there."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="`--plot` is"):
        check_plot(place)


@pytest.mark.parametrize(
    "measurement", [speed.decode, speed.prefill, speed.load, streams.agent, streams.batch], ids=lambda f: f.__name__
)
def test_each_checks_before_it_opens(measurement: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for, fetched or loaded."""
    for module in (speed, streams):
        for name in ("opened", "model_path"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(UsageError, match="`--against` names 'ollama'; allowed: "):
        measurement(against="transformers,ollama")  # type: ignore[operator]
    with pytest.raises(UsageError, match="`--plot`"):
        measurement(plot=str(tmp_path / "no" / "plot.png"))  # type: ignore[operator]


@pytest.mark.parametrize(
    "arguments", [["decode", "--tokens", "1"], ["decode", "--pairs", "0"], ["prefill", "--tokens", "x"]]
)
def test_the_command_says_what_is_allowed(arguments: list[str]) -> None:
    """With exit code 2, or the error that becomes it."""
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2 or isinstance(result.exception, UsageError)


def test_names_of_sides_need_no_torch() -> None:
    """Threads that wait are told how to before torch is loaded; looking at ``--against`` must not load it."""
    code = "import sys; from qwen_agent_kit.bench import compare; compare.checked('transformers,llama.cpp', 'int8'); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    assert compare.checked("llama.cpp", "int4") == ["llama.cpp-q4_0"]


@pytest.mark.parametrize("measurement", [speed.decode, speed.prefill, streams.batch], ids=lambda f: f.__name__)
def test_keys_that_are_carried_over_are_for_the_loop(measurement: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt has nothing to carry: only the agent's loop runs transformers twice."""
    opened: list[str] = []
    module = sys.modules[measurement.__module__]

    def side(name: str, *_: object) -> object:
        opened.append(name)
        raise InterruptedError if name.startswith("llama") else RuntimeError(name)

    monkeypatch.setattr(module, "opened", lambda *_: (object(), 1, Path("x")))
    monkeypatch.setattr(
        "qwen_agent_kit.bench.ours.Ours", lambda *_, **__: SimpleNamespace(close=lambda: None, name="ours")
    )
    monkeypatch.setattr(module, "opened_side", side)
    with pytest.raises(InterruptedError):
        measurement(against="transformers-carried,llama.cpp")  # type: ignore[operator]
    assert opened == ["llama.cpp-q8_0"]
