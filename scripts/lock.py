"""Print constraints.txt: what the environment holds, without our own distributions and without local version labels."""

from __future__ import annotations

import subprocess
import sys


def main() -> None:
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.splitlines()
    print("# The exact versions that the tests run with; `make lock` writes this file from .venv.")
    for line in lines:
        if "==" in line and not line.lower().startswith(("qwen-agent-kit", "qwen_agent_kit")):
            print(line.split("+", 1)[0])


if __name__ == "__main__":
    main()
