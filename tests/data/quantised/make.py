"""Writes the quantised checkpoints beside this script, each with the tool that its name says.

    python make.py                  # all of them, in a fresh process each
    python make.py gptq-4bit-act    # one

They hold one random Qwen2 layer. `reference.safetensors` holds what the same tool gives back when it undoes its own
quantisation: one matrix, and the logits of transformers' model in float32 on all the undone weights.

Made on a CPU with torch 2.13.0, transformers 5.23.0, gptqmodel 7.7.0 (run from its source distribution), autoawq 0.2.9
(the same), bitsandbytes 0.50.2, llmcompressor 0.14.0.1 and compressed-tensors 0.20.0. Whole tools made all but two:
transformers quantises to FP8 on a GPU only, so `fp8-block` goes through its conversion operation matrix by matrix; and
autoawq searches its scales on a GPU only, so `awq-4bit` goes through its rounding and its packing layer by layer.
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


def base(folder: Path) -> Path:
    """The float model that is quantised."""
    from qwen_agent_kit.testing.models import tiny_model_dir, tiny_tokenizer

    sizes: dict[str, Any] = {"hidden": 128, "heads": 4, "kv_heads": 2, "layers": 1, "context": 512, "tied": True}
    return tiny_model_dir(folder, "qwen2", tokenizer_json=tiny_tokenizer(280), seed=3, **sizes)


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


def fp8_block(source: Path, target: Path) -> dict[str, torch.Tensor]:
    from transformers import FineGrainedFP8Config  # noqa: TID251
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize  # noqa: TID251

    config = FineGrainedFP8Config(weight_block_size=(128, 128))
    quantizer = SimpleNamespace(quantization_config=config, pre_quantized=True)
    state = {name: tensor.clone() for name, tensor in loaded(source, torch.bfloat16).state_dict().items()}
    undone = {}
    for name in [f"model.layers.0.{part}.weight" for part in LINEAR]:
        made = Fp8Quantize(quantizer)._quantize_one(name, state[name])
        state |= made
        if len(made) == 2:
            undone[name] = Fp8Dequantize(quantizer)._dequantize_one(*made.values()).float()
    method = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return _saved(source, target, state, method, undone)


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
    "fp8-block": (fp8_block, {}),
    "ct-fp8-channel": (compressed, {"scheme": "FP8_DYNAMIC"}),
    "ct-fp8-block": (compressed, {"scheme": "FP8_BLOCK"}),
    "ct-int4": (compressed, {"scheme": "W4A16"}),
    "ct-int4-asym": (compressed, {"scheme": "W4A16_ASYM"}),
    "ct-int8": (compressed, {"scheme": "W8A16"}),
}


def reference(source: Path, target: Path, undone: dict[str, torch.Tensor]) -> None:
    """What the quantised model should say."""
    model = loaded(source, torch.float32)
    kept = {n: t.float() for n, t in load_file(target / "model.safetensors").items() if t.is_floating_point()}
    known = model.state_dict()
    state = {n: undone.get(n, kept.get(n, known[n])) for n in known}
    assert all(state[name].shape == known[name].shape for name in known)
    model.load_state_dict(state)
    with torch.inference_mode():
        logits = model(torch.tensor([IDS])).logits[0].float()
    kept = {"logits": logits, "ids": torch.tensor(IDS), SHOWN: undone[SHOWN].contiguous()}
    save_file(kept, target / "reference.safetensors")


def make(name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, target = base(Path(scratch) / "base"), Path(scratch) / name
        function, options = CASES[name]
        reference(source, target, function(source, target, **options))
        place = HERE / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for file in ("config.json", "model.safetensors", "reference.safetensors"):
            shutil.copy(target / file, place)
        (place / "model.safetensors").chmod(0o644)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, place)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(sys.argv[1])
    else:
        for case in CASES:
            subprocess.run([sys.executable, __file__, case], check=True)
