"""What ``--help`` says and costs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from distributions import HEAD, install
from scripted_cli import environment_of, run_qak

CHECKOUT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "pydantic", "rich", "jinja2", "tokenizers", "httpx", "numpy")


def test_the_reference_page_is_true() -> None:
    """docs/reference/cli.md is what `python scripts/cli_reference.py` writes now."""
    written = runpy.run_path(str(CHECKOUT / "scripts" / "cli_reference.py"))["page"]()
    page = CHECKOUT / "docs" / "reference" / "cli.md"
    assert page.read_text(encoding="utf-8") == written, "run `python scripts/cli_reference.py`"


def thirty_slow_plugins(site: Path) -> None:
    """Each would sleep and import torch when imported, and leaves a file that tells of it."""
    for number in range(30):
        kinds = ("tools", "backends", "models", "engines", "hooks", "commands")
        source = f"open('imported-{number}', 'w').close()\nimport time\ntime.sleep(0.2)\nimport torch\n" + HEAD
        install(site, f"slow-{number}", {kinds[number % 6]: f"slow{number}"}, source)


def test_help_imports_no_plugin(site: Path) -> None:
    """`qak --help` names the commands of 30 installed plugins and imports none of them, nor anything heavy."""
    thirty_slow_plugins(site)
    done = run_qak("--help", site=site)
    assert done.returncode == 0
    assert "slow5 " in done.stdout
    assert not list(site.glob("imported-*"))
    code = (
        "import sys\nfrom qwen_agent_kit.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment_of(site), check=True, timeout=60
    )
    assert fresh.stderr.strip() == "[]"
    for command in ("run", "chat", "sessions", "models", "doctor", "bench", "plan"):
        assert run_qak(command, "--help", site=site).returncode == 0
    assert not list(site.glob("imported-*"))


def test_both_names_are_one(site: Path) -> None:
    """`python -m qwen_agent_kit` and `qak` say the same, `qak` in both."""
    name = Path(sys.executable).parent / "qak"
    script = subprocess.run([name, "--version"], capture_output=True, text=True, check=True, timeout=120)
    module = run_qak("--version", site=site)
    assert script.stdout == module.stdout
    assert module.stdout.startswith("qak, version ")
