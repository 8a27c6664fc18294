"""Opening what only transformers knows: nothing of the model's own code, no network, refusals that name the cure."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import DenseKV, their_logits
from small_decoder import byte_tokenizer

from qwen_agent_kit import Sampling, foreign, load_engine, plan
from qwen_agent_kit.errors import ModelError, UsageError
from qwen_agent_kit.models import ForeignDecoder, Segment, load_model
from qwen_agent_kit.testing.models import tiny_model_dir

MIXTRAL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_local_experts": 4,
}


def checkpoint(folder: Path, kind: str = "Mixtral", **fields: Any) -> Any:
    """A random one of that architecture, with a byte tokenizer; gives transformers' model."""
    transformers = foreign.transformers()
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**MIXTRAL, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(byte_tokenizer())
    return model


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral")
    checkpoint(folder)
    return folder


def copy_of(folder: Path, target: Path) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("kind", ["Mixtral", "DeepseekV3", "Bloom", "Mamba"])
def test_logits_in_chunks_are_the_models_own(tmp_path: Path, kind: str) -> None:
    """Experts, latent attention, positions by bias, and a state that is taken up row by row: float32, in chunks."""
    own: dict[str, Any] = {
        "DeepseekV3": {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "num_key_value_heads": 4,
        },
        "Bloom": {"n_head": 4, "n_layer": 2},
    }.get(kind, {})
    theirs = checkpoint(tmp_path, kind, **own)
    model = load_model(tmp_path).model
    assert isinstance(model, ForeignDecoder)
    prompt = [(i * 37) % 250 for i in range(33)]
    kept = _Kept()
    found = []
    for start, end in ((0, 9), (9, 10), (10, 33)):
        rows = [Segment(kept, start, end - start, end - start)]
        found.append(model.forward_batch(torch.tensor(prompt[start:end]), torch.arange(start, end), rows))
    torch.testing.assert_close(torch.cat(found), their_logits(theirs, prompt), rtol=1e-4, atol=1e-4)


def test_the_text_half_of_a_vision_model(tmp_path: Path) -> None:
    """Qwen3.5 comes with a vision tower; opened for text only its decoder is loaded, and it is the same."""
    transformers = foreign.transformers()
    text = {
        **MIXTRAL,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48}
    torch.manual_seed(0)
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    theirs = transformers.Qwen3_5ForConditionalGeneration(config).float().eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer())
    model = load_model(tmp_path).model
    assert model.weight_bytes < sum(p.nbytes for p in theirs.parameters())
    kept, found = _Kept(), []
    for start, end in ((0, 20), (20, 21), (21, 30)):
        rows = [Segment(kept, start, end - start, end - start)]
        found.append(model.forward_batch(torch.arange(start, end), torch.arange(start, end), rows))
    torch.testing.assert_close(torch.cat(found), their_logits(theirs, list(range(30))), rtol=1e-4, atol=1e-4)


class _Kept(DenseKV):
    """The same with recurrent states."""

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[int, Any] = {}

    def state(self, at: int) -> Any:
        return self._states.get(at)

    def put_state(self, at: int, state: Any) -> None:
        self._states[at] = state


def test_a_failed_step_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    """What is raised in the second sequence of a step takes nothing from the first: the step can be done again."""
    checkpoint(tmp_path, "Mamba")
    model = load_model(tmp_path).model
    first, second = _Kept(), _Kept()
    model.forward_batch(torch.arange(5), torch.arange(5), [Segment(first, 0, 5, 0)])
    again = [Segment(first, 5, 1, 1), Segment(second, 7, 1, 1)]  # the second one's state is not there
    with pytest.raises(AssertionError, match="no recurrent state"):
        model.forward_batch(torch.tensor([3, 4]), torch.tensor([5, 7]), again)
    assert first.state(6) is None
    assert first.state(5) is not None


def test_our_own_architectures_stay_ours(tmp_path: Path) -> None:
    """A qwen3 directory is opened by our decoder."""
    assert not isinstance(load_model(tiny_model_dir(tmp_path, "qwen3")).model, ForeignDecoder)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "auto_map"),
        ({"vision_config": {"inner": {"auto_map": {"AutoConfig": "x.Y"}}}}, "auto_map"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"vocab_size": 10**9}, "vocab_size"),
        ({"vocab_size": 2**21}, "weights"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "weights"),
        ({"num_local_experts": 10**7}, "num_local_experts"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_size": "wide"}, "mixtral"),
        ({"model_type": "vit"}, "writes no text"),
        ({"model_type": "nothing_that_exists"}, "model_type"),
    ],
)
def test_f14_refusals(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], says: str
) -> None:
    """A model error that names what is wrong; nothing of the directory is imported, no socket is opened."""
    folder = copy_of(mixtral, tmp_path)
    (folder / "modeling_evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))

    def no_socket(*_: Any, **__: Any) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_socket)
    change(folder, **fields)
    with pytest.raises(ModelError, match=says):
        load_model(folder)


def test_whole_models_in_safetensors_only(mixtral: Path, tmp_path: Path) -> None:
    """An adapter would name another model, a pickle would run code."""
    folder = copy_of(mixtral, tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    with pytest.raises(ModelError, match="adapter_config"):
        load_model(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_model(folder)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_dense_schemes_only(mixtral: Path, quant: str) -> None:
    """The error names what is allowed and the cure."""
    with pytest.raises(UsageError, match="allowed: fp32, bf16") as caught:
        load_model(mixtral, quant=quant)
    assert "bf16" in str(caught.value.hint)


def test_by_name_planned_and_opened(mixtral: Path) -> None:
    """The plan says how it runs and takes bf16; int4 is arithmetic only; the engine answers."""
    planned = plan(str(mixtral))
    assert (planned.engine, planned.scheme) == ("qak", "bf16")
    assert any("runs through transformers, slower" in reason for reason in planned.reasons)
    assert plan(str(mixtral), quant="int4").engine == ""
    with load_engine(str(mixtral)) as engine:
        generation = engine.submit([1, 2, 3], Sampling(temperature=0, max_tokens=5))
        assert len(list(generation)) == 5


def test_catalogued_families_are_marked() -> None:
    """Qwen3-Next and Qwen3.5 run through transformers from their own weights, not from quantised releases."""
    assert any("runs through transformers, slower" in reason for reason in plan("Qwen/Qwen3.5-4B").reasons)
    own = plan("Qwen/Qwen3.5-4B", quant="bf16", context=1024)
    assert (own.engine, own.state_bytes > 0) == ("qak", True)
    assert plan("Qwen/Qwen3.5-4B", quant="int8", context=1024).engine == ""
