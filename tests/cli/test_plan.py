"""``qak plan``, ``recommend`` and the catalogue of ``models``: offline, without torch, also for other hardware."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_cli import run_qak


def asked(*arguments: str, site: Path, code: int = 0) -> dict:
    done = run_qak(*arguments, "--json", site=site)
    assert done.returncode == code, done.stderr
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    return data


@pytest.fixture(autouse=True)
def _private(private_home: Path) -> None:
    """Nothing was measured on this machine yet."""


def test_a_catalogued_model_on_cards_that_are_not_here(site: Path) -> None:
    """`--gpus` and `--memory` describe the machine; layers, bytes and speed come back, and `--with` adds a model."""
    line = ("plan", "qwen3-32b", "--gpus", "2x24GiB", "--memory", "64GiB", "--context", "32768")
    plan = asked(*line, "--with", "smollm2-135m-instruct", site=site)
    assert plan["model"] == "Qwen/Qwen3-32B"
    assert [p["device"] for p in plan["placements"]] == ["cuda:0", "cuda:1"]
    assert sum(p["total"] for p in plan["placements"]) == plan["total_bytes"]
    assert plan["download_bytes"] > 65e9
    assert plan["decode_tokens_per_second"] > 0
    assert [other["model"] for other in plan["with"]] == ["smollm2"]


def test_the_table_and_the_picture(site: Path) -> None:
    """People get the shares, the reasons and a bar per device."""
    done = run_qak("plan", "qwen2.5-7b-instruct", "--memory", "24GiB", site=site)
    assert done.returncode == 0
    assert "57,344 bytes a token" in done.stdout
    assert "not yet measured" in done.stdout
    assert "] " in next(line for line in done.stdout.splitlines() if line.startswith("  cpu "))


def test_what_does_not_fit_ends_with_one(site: Path) -> None:
    """Exit code 1, the shortage, and what would fit."""
    done = run_qak("plan", "qwen3-14b", "--memory", "8GiB", "--context", "8192", site=site)
    assert done.returncode == 1
    assert "short" in done.stdout
    assert "try: quant='int4'" in done.stdout or "layers on disk" in done.stdout
    assert run_qak("plan", "qwen3-8b", "--memory", "lots", site=site).returncode == 2


def test_planning_needs_no_torch_and_no_network() -> None:
    """The command for a catalogued model imports neither torch nor what talks to hubs."""
    code = (
        "import sys\nfrom qwen_agent_kit.cli import cli\n"
        "cli.main(['plan', 'qwen3-235b-a22b', '--json'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'httpx') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("task", ["chat", "code", "math", "vision", "audio", "agents"])
def test_recommend(site: Path, task: str) -> None:
    """For each task the models that fit come ranked, each with its plan, its reason and what was left out."""
    line = ("recommend", "--task", task, "--gpus", "24GiB", "--any-engine", "--licence", "apache-2.0")
    found = asked(*line, site=site)
    scores = [row["score"] for row in found["models"]]
    assert scores == sorted(scores, reverse=True)
    assert scores
    for row in found["models"]:
        assert row["licence"] == "Apache-2.0"
        assert row["plan"]["feasible"]
        assert row["why"]
    assert "not under apache-2.0" in found["left_out"]


def test_recommend_respects_speed_and_languages(site: Path) -> None:
    """A wish for speed leaves out what is predicted to be slower; an unknown language leaves nothing."""
    fast = asked("recommend", "--task", "chat", "--memory", "64GiB", "--speed", "10", site=site)
    assert all(row["plan"]["decode_tokens_per_second"] >= 10 for row in fast["models"])
    none = run_qak("recommend", "--task", "chat", "--languages", "tlh", site=site)
    assert none.returncode == 1
    assert "does not list tlh" in none.stderr


def test_models_filter_and_compare(site: Path) -> None:
    """Filters narrow the list; the matrix marks what is not verified."""
    rows = asked("models", "--task", "audio", "--largest", "9", site=site)["models"]
    assert {row["name"] for row in rows} >= {"Qwen/Qwen2-Audio-7B-Instruct"}
    assert all("audio" in row["tasks"] and row["parameters"] <= 9e9 for row in rows)
    matrix = run_qak("models", "--matrix", "--family", "qwen3_5", site=site).stdout
    assert "Qwen3.5-2B*" in matrix
    assert "Qwen3.5-27B " in matrix


@pytest.mark.parametrize(
    ("name", "text"),
    [("qwen2.5-omni-3b", 3_085_938_688 + 151_936 * 2048), ("qwen2.5-omni-7b", 7_615_616_512)],
)
def test_a_model_that_sees_and_hears(site: Path, name: str, text: int) -> None:
    """Both towers are counted, in float32, beside a text model as large as Qwen2.5's (the 3B's head is its own)."""
    plan = asked("plan", name, "--memory", "96GiB", site=site)
    assert plan["tower_bytes"] == 4 * (plan["parameters"] - text) > 5e9
    assert plan["engine"] == "qak"
    assert plan["max_pixels"] == 1280 * 28 * 28
    assert plan["audio_seconds"] == 30.0
    (row,) = (
        row
        for row in asked("models", "--family", "qwen2_5_omni", site=site)["models"]
        if name in row["aliases"][0].lower()
    )
    assert row["kinds"] == ["audio", "image", "text", "video"]
