"""The door to transformers holds with a torchvision that fits, without one, and with one that does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_agent_kit import foreign
from qwen_agent_kit.errors import UsageError

TORCHVISION = Path(__file__).resolve().parents[2] / ".cache" / "torchvision"
LOAD = "from qwen_agent_kit import foreign; print(foreign.transformers().Qwen2ForCausalLM.__name__)"


def run(code: str, path: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path or ""), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_transformers_loads_without_torchvision() -> None:
    """The model classes import where torchvision is not installed."""
    hidden = "import sys; sys.modules['torchvision'] = None; "
    assert run(f"{hidden}import torchvision", None).returncode != 0
    assert run(hidden + LOAD, None).stdout.strip() == "Qwen2ForCausalLM"


def test_transformers_loads_beside_a_broken_torchvision() -> None:
    """A CUDA build beside the CPU torch: its own import fails, through the door it and transformers import."""
    assert TORCHVISION.exists(), "`make material` fetches it"
    broken = run("import torchvision", TORCHVISION)
    assert "operator torchvision::nms does not exist" in broken.stderr
    mended = run(f"{LOAD}; print(foreign.torchvision().__version__); foreign.torchvision()", TORCHVISION)
    assert mended.stdout.split()[0] == "Qwen2ForCausalLM", mended.stderr[-500:]


def test_a_torchvision_whose_operators_load_is_left_alone(tmp_path: Path) -> None:
    """Where the operators are there already, nothing is declared a second time."""
    tmp_path.joinpath("torchvision").mkdir()
    tmp_path.joinpath("torchvision", "__init__.py").write_text("")
    code = (
        "import torch; lib = torch.library.Library('torchvision', 'DEF'); lib.define('nms(Tensor a) -> Tensor');"
        "from qwen_agent_kit import foreign; foreign.torchvision(); print(hasattr(torch.ops.torchvision, 'qnms'))"
    )
    assert run(code, tmp_path).stdout.strip() == "False"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is an error with the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="pip install qwen-vl-utils"):
        foreign.qwen_vl_utils()
