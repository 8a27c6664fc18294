"""Train a tiny Qwen2 that says whether a time series rises, falls or stays: python make_model.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
from qwen_agent_kit_series import PATCH
from safetensors.torch import save_file
from tokenizers import Tokenizer

from qwen_agent_kit import foreign
from qwen_agent_kit.testing import tiny_model_dir

QUESTION, ANSWERS = "Does it rise or fall?", ("it rises", "it falls", "it stays")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'series' %}<|series_pad|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepared(folder: Path) -> tuple[Tokenizer, dict]:
    """A tiny model's directory with one more token in its tokenizer; the config."""
    tiny_model_dir(folder, "qwen2", hidden=32, template=TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|series_pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = json.loads((folder / "config.json").read_text()) | {"vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_series", "text_config": text}))
    return tokenizer, text


def drawn(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Series [count, length] from 0 to 1 with noise, and which answer is right [count]."""
    kind = torch.randint(3, (count,))
    slope = torch.tensor([1.0, -1.0, 0.0])[kind] * (0.5 + torch.rand(count))
    values = slope[:, None] * torch.linspace(-1, 1, length) + 0.1 * torch.randn(count, length)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return (values - low) / (high - low), kind


def train(folder: Path, steps: int = 240) -> None:
    torch.manual_seed(1)
    tokenizer, text = prepared(folder)
    qwen = foreign.transformers()
    model, tower = qwen.Qwen2ForCausalLM(qwen.Qwen2Config(**text)), torch.nn.Linear(PATCH, 32, bias=False)
    optimizer = torch.optim.AdamW([*model.parameters(), *tower.parameters()], lr=3e-3)
    pad = tokenizer.token_to_id("<|series_pad|>")
    for _ in range(steps):
        patches = int(torch.randint(2, 12, ()))
        values, kind = drawn(24, patches * PATCH)
        head = f"<|im_start|>user\n{QUESTION}{'<|series_pad|>' * patches}<|im_end|>\n<|im_start|>assistant\n"
        rows = [tokenizer.encode(f"{head}{answer}<|im_end|>").ids for answer in ANSWERS]
        ids = torch.tensor([rows[k] + [-100] * (max(map(len, rows)) - len(rows[k])) for k in kind.tolist()])
        labels = ids.clone()
        labels[:, : len(tokenizer.encode(head).ids)] = -100
        hidden = model.model.embed_tokens(ids.clamp(min=0)).clone()
        hidden[ids == pad] = tower(values.view(-1, PATCH))
        loss = model(inputs_embeds=hidden, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file({**tensors, "series_tower.weight": tower.weight.detach()}, folder / "model.safetensors")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
