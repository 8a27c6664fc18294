"""Make the virtual environment ``make`` works in; where Debian left ``ensurepip`` out, install it first."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path


def main(target: str) -> None:
    python = Path(target, "bin", "python")
    if python.exists() and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    try:
        import ensurepip  # noqa: F401  # only whether it is there
    except ImportError:
        package = f"python3.{sys.version_info.minor}-venv"
        print(f"installing the Debian package {package}", file=sys.stderr)
        root = [] if shutil.which("sudo") is None else ["sudo", "-n"]
        subprocess.run([*root, "apt-get", "install", "-y", "-qq", package], check=True)
        # A new process, because this one has already looked for the module.
        subprocess.run([sys.executable, "-m", "venv", "--clear", target], check=True)
        return
    venv.create(target, with_pip=True, clear=True)


if __name__ == "__main__":
    main(sys.argv[1])
