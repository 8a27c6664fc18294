"""Writes the quantised checkpoints beside this script, each with the tool that its name says.

    python make.py                  # all of them, in a fresh process each
    python make.py gptq-4bit-act    # one

They hold one random Qwen2 layer; `fp8-block-moe` a Qwen3 layer of two experts and an untied head, in several files.
`reference.safetensors` holds what the same tool gives back when it undoes its own quantisation: one matrix, and the
logits of transformers' model in float32 on all the undone weights.

Made on a CPU with torch 2.13.0, transformers 5.23.0, gptqmodel 7.7.0 (run from its source distribution), autoawq 0.2.9
(the same), bitsandbytes 0.50.2, llmcompressor 0.14.0.1 and compressed-tensors 0.20.0. Whole tools made most of them;
transformers quantises to FP8 on a GPU only, so the `fp8` cases go through its conversion operation matrix by matrix;
and autoawq searches its scales on a GPU only, so `awq-4bit` goes through its rounding and its packing layer by layer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
HERE = Path(__file__).parent
IDS = [1, 5, 9, 33, 64, 120, 121, 200, 7, 31]
SHOWN = "model.layers.0.self_attn.q_proj.weight"
LINEAR = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


def base(folder: Path, name: str) -> Path:
    """The float model that is quantised."""
    from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer

    sizes: dict[str, Any] = {"hidden": 128, "heads": 4, "kv_heads": 2, "layers": 1, "context": 512, "tied": True}
    if name.endswith("-moe"):
        sizes |= {"tied": False, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 128}
        sizes |= {"head_dim": 32}
    family = "qwen3_moe" if name.endswith("-moe") else "qwen2"
    return tiny_model_dir(folder, family, tokenizer_json=tiny_tokenizer(280), seed=3, **sizes)


def loaded(source: Path, dtype: torch.dtype = torch.float16, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM  # noqa: TID251  # the foreign half

    return AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, **options)


def gptq(source: Path, target: Path, **options: Any) -> dict[str, torch.Tensor]:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    rng = random.Random(0)
    rows = [torch.tensor([[rng.randrange(280) for _ in range(64)]]) for _ in range(16)]
    calibration = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    model = GPTQModel.load(str(source), QuantizeConfig(group_size=32, offload_to_disk=False, **options))
    model.quantize(calibration, batch_size=1)
    model.save(str(target))
    # Undone by its own kernel, from the file that it wrote.
    again = GPTQModel.load(str(target), backend=BACKEND.TORCH, device="cpu")
    undone = {}
    for name, module in again.model.named_modules():
        if hasattr(module, "dequantize_weight"):
            undone[f"{name}.weight"] = module.dequantize_weight().T.float().contiguous()
    return undone


def awq(source: Path, target: Path) -> dict[str, torch.Tensor]:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.packing_utils import dequantize_gemm

    model = loaded(source)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantizer = SimpleNamespace(group_size=32, w_bit=4, zero_point=True)
    undone = {}
    for name in [f"model.layers.0.{part}" for part in LINEAR]:
        linear = model.get_submodule(name)
        rounded, scales, zeros = AwqQuantizer.pseudo_quantize_tensor(quantizer, linear.weight.data.float())
        linear.weight.data = rounded.half()
        packed = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        del state[f"{name}.weight"]
        state |= {f"{name}.{key}": getattr(packed, key) for key in ("qweight", "qzeros", "scales")}
        undone[f"{name}.weight"] = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, 32).T.float()
    method = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return _saved(source, target, state, method, undone)


def bnb(source: Path, target: Path, **options: Any) -> dict[str, torch.Tensor]:
    import bitsandbytes
    from transformers import BitsAndBytesConfig  # noqa: TID251

    model = loaded(source, quantization_config=BitsAndBytesConfig(**options), device_map="cpu")
    model.save_pretrained(str(target))
    undone = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, bitsandbytes.nn.Params4bit):
            whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            undone[f"{name}.weight"] = whole.float()
        elif isinstance(weight, bitsandbytes.nn.Int8Params):
            whole = bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
            undone[f"{name}.weight"] = whole.float()
    return undone


def compressed(source: Path, target: Path, scheme: str) -> dict[str, torch.Tensor]:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import CompressedTensorsConfig  # noqa: TID251

    model = loaded(source, torch.bfloat16)
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
    model.save_pretrained(str(target), save_compressed=True)
    again = loaded(target, torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False))
    return {name: tensor.float() for name, tensor in again.state_dict().items() if name.endswith("_proj.weight")}


def fp8(source: Path, target: Path, block: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    from transformers import FineGrainedFP8Config  # noqa: TID251
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize  # noqa: TID251

    config = FineGrainedFP8Config(weight_block_size=block)
    quantizer = SimpleNamespace(quantization_config=config, pre_quantized=True)
    state = {n: t.bfloat16() for n, t in load_file(source / "model.safetensors").items()}
    undone = {}
    for name in [name for name in state if name.endswith("_proj.weight")]:
        made = Fp8Quantize(quantizer)._quantize_one(name, state[name])
        state |= made
        if len(made) == 2:
            undone[name] = Fp8Dequantize(quantizer)._dequantize_one(*made.values()).float()
    method = {"quant_method": "fp8", "weight_block_size": block and list(block), "activation_scheme": "dynamic"}
    return _saved(source, target, state, method, undone)


def sharded(source: Path, target: Path, block: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The same, cut into files behind an index by huggingface_hub."""
    from huggingface_hub import save_torch_state_dict

    undone = fp8(source, target, block)
    state = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    save_torch_state_dict(state, target, max_shard_size="200KB")
    return undone


def _saved(
    source: Path, target: Path, state: dict[str, Any], method: dict[str, Any], undone: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    target.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": method}, indent=1))
    return undone


CASES: dict[str, Any] = {
    "gptq-4bit-act": (gptq, {"bits": 4, "sym": True, "desc_act": True}),
    "gptq-4bit-asym": (gptq, {"bits": 4, "sym": False, "desc_act": False}),
    "gptq-4bit-v2": (gptq, {"bits": 4, "sym": False, "desc_act": True, "format": "gptq_v2"}),
    "gptq-8bit": (gptq, {"bits": 8, "sym": True, "desc_act": False}),
    "awq-4bit": (awq, {}),
    "bnb-nf4-double": (
        bnb,
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "bnb-fp4": (bnb, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "bnb-int8": (bnb, {"load_in_8bit": True}),
    "fp8-block": (fp8, {"block": (128, 128)}),
    "fp8-tensor": (fp8, {"block": None}),
    "fp8-block-moe": (sharded, {"block": (128, 128)}),
    "ct-fp8-channel": (compressed, {"scheme": "FP8_DYNAMIC"}),
    "ct-fp8-block": (compressed, {"scheme": "FP8_BLOCK"}),
    "ct-int4": (compressed, {"scheme": "W4A16"}),
    "ct-int4-asym": (compressed, {"scheme": "W4A16_ASYM"}),
    "ct-int8": (compressed, {"scheme": "W8A16"}),
}


def reference(source: Path, target: Path, undone: dict[str, torch.Tensor]) -> None:
    """What the quantised model should say: the float model with every matrix that the tool undid put in."""
    written: dict[str, torch.Tensor] = {}
    for file in target.glob("*.safetensors"):
        written |= load_file(file)
    kept = {n: t.float() for n, t in written.items() if t.is_floating_point()}
    known = load_file(source / "model.safetensors")
    state = {n: undone.get(n, kept.get(n, known[n])).contiguous() for n in known}
    assert all(state[name].shape == known[name].shape for name in known)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model = loaded(Path(folder), torch.float32)
        with torch.inference_mode():
            logits = model(torch.tensor([IDS])).logits[0].float()
    kept = {"logits": logits, "ids": torch.tensor(IDS), SHOWN: undone[SHOWN].contiguous()}
    save_file(kept, target / "reference.safetensors")


def make(name: str) -> None:
    from qwen_agent_kit import foreign

    foreign.transformers()  # with a torchvision that does not load beside this torch, it would not import
    with tempfile.TemporaryDirectory() as scratch:
        source, target = base(Path(scratch) / "base", name), Path(scratch) / name
        function, options = CASES[name]
        reference(source, target, function(source, target, **options))
        place = HERE / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for file in ("config.json", *(f.name for f in target.glob("*.safetensors*"))):
            shutil.copy(target / file, place)
            (place / file).chmod(0o644)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, place)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(sys.argv[1])
    else:
        for case in CASES:
            subprocess.run([sys.executable, __file__, case], check=True)
