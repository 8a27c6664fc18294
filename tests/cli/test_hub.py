"""A model named by its hub id, end to end: fetched from a hub on loopback, loaded, run; offline from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
from gguf_files import write_gguf
from hub import COMMIT, Hub, files_of, hub
from safetensors import safe_open
from scripted_cli import run_qak

from qwen_agent_kit import Agent, Limits, Sampling
from qwen_agent_kit.host import Host
from qwen_agent_kit.placement.fetch import parse_reference
from qwen_agent_kit.placement.fetch_header import read_header
from qwen_agent_kit.placement.gguf import read_gguf
from qwen_agent_kit.testing.models import tiny_model_dir


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tiny_model_dir(tmp_path_factory.mktemp("tiny"), "qwen2")
    gguf = write_gguf(folder, tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf")
    with hub({"own/tiny": files_of(folder), "own/tiny-gguf": {"tiny-f32.gguf": gguf.read_bytes()}}) as made:
        yield made


@pytest.mark.parametrize(
    "spec",
    [
        "own/tiny",
        pytest.param("own/tiny-gguf:f32", marks=pytest.mark.full),
        pytest.param("modelscope:own/tiny", marks=pytest.mark.full),
    ],
)
def test_run_fetches_and_answers(served: Hub, site: Path, tmp_path: Path, spec: str) -> None:
    """`qak run -m owner/name` says on stderr that it fetches, answers on stdout, and works offline afterwards."""
    variables = served.environment(tmp_path)
    options = ("run", "-m", spec, "hello", "--max-tokens", "4", "--temperature", "0", "--json")
    first = run_qak(*options, site=site, **variables)
    assert first.returncode == 0, first.stderr
    assert f"fetching {spec.removeprefix('hf:')} from {served.url}" in first.stderr
    seen = len(served.api.asked)
    again = run_qak(*options, site=site, **{**variables, "QAK_OFFLINE": "1"})
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["output"] == json.loads(first.stdout)["output"]
    assert "fetching" not in again.stderr
    assert len(served.api.asked) == seen


def test_fetch_prints_where_it_lies(served: Hub, site: Path, tmp_path: Path) -> None:
    """`qak models fetch` prints the path, as text and as JSON; a refusal is exit code 1 or 2 with a hint."""
    variables = served.environment(tmp_path)
    done = run_qak("models", "fetch", "own/tiny", site=site, **variables)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == COMMIT
    told = json.loads(run_qak("models", "fetch", "own/tiny", "--json", site=site, **variables).stdout)
    assert (told["name"], told["path"]) == ("own/tiny", done.stdout.strip())
    for name, code, words in (
        ("own/none", 1, "no model `own/none`"),
        ("own/tiny-gguf:q9", 2, "no GGUF file 'q9'"),
        ("what is this", 2, "no model is named"),
    ):
        refused = run_qak("models", "fetch", name, site=site, **variables)
        assert refused.returncode == code
        assert words in refused.stderr
        assert "hint: " in refused.stderr
        assert "Traceback" not in refused.stderr
    offline = run_qak("run", "-m", "own/other", "x", site=site, **{**variables, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 1
    assert "fetching is switched off" in offline.stderr


def test_an_agent_opens_a_hub_model(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Agent("owner/name")` fetches the model on its first run and not before."""
    for name, value in served.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    seen = len(served.api.asked)
    with Host() as host:
        agent = Agent("own/tiny", host=host, sampling=Sampling(max_tokens=3, temperature=0), limits=Limits(steps=1))
        assert len(served.api.asked) == seen
        assert agent.run("hello").usage.generated_tokens > 0
    assert len(served.api.asked) > seen


def test_a_model_of_the_hub_is_planned_by_its_headers(served: Hub, site: Path, tmp_path: Path) -> None:
    """`qak plan owner/name` for what no catalogue knows asks for headers by range; the weights stay where they are."""
    folder = tiny_model_dir(tmp_path / "model", "qwen3", hidden=128, layers=4, vocab_size=4000)
    served.repos["own/large"] = files_of(folder)
    weights, before = (folder / "model.safetensors").stat().st_size, served.sent
    done = run_qak("plan", "own/large", "--json", site=site, **served.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert told["parameters"] == sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    assert told["download_bytes"] > weights
    assert served.sent - before <= 2**19 < weights
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_gguf_header_is_read_by_range(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata and tensors of a remote GGUF file are those of the file, whatever its header's size."""
    for name, value in served.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "x.gguf"
    path.write_bytes((served.repos["own/tiny-gguf"] or {})["tiny-f32.gguf"])
    reference = parse_reference("own/tiny-gguf")
    assert reference is not None
    whole = read_gguf(path, arrays=False)
    for steps in ((2**20,), (100, 5_000, 2**20), (10, 1000, 20_000, 2**20)):
        monkeypatch.setattr("qwen_agent_kit.placement.fetch_header._GGUF_STEPS", steps)
        remote = read_header(reference)
        assert remote.gguf == whole
        assert [(t.name, t.shape, t.size) for t in remote.tensors] == [
            (t.name, t.shape, t.size) for t in read_header(path).tensors
        ]
