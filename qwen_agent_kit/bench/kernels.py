"""``qak bench kernels``: every way to multiply by a matrix that is here, checked and timed on a model's shapes.

``models.probing`` runs each in a process of its own. What is quickest for each shape and number of rows is kept for the
models that are opened from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from qwen_agent_kit.bench.compare import model_path, threads_here
from qwen_agent_kit.bench.rows import Row

if TYPE_CHECKING:
    from qwen_agent_kit.models.config import DecoderConfig
    from qwen_agent_kit.models.kernels import Choices, Kernel
    from qwen_agent_kit.models.probing import Found, Shape

__all__ = ["kernels", "shapes_of"]


def kernels(model: str = "smollm2") -> list[Row]:
    """Microseconds that the matrices of one layer take together, per kernel and number of rows, then what was chosen.

    Args:
        model: Whose shapes: a shape of ``SHAPES``, a GGUF file, a directory or a catalog name.
    """
    from qwen_agent_kit.models import DecoderConfig, load_model
    from qwen_agent_kit.models.kernels import KERNELS, Choices, write_choices
    from qwen_agent_kit.models.probing import chosen, measured

    config = load_model(model_path(model, "int8"), quant="int8").config
    assert isinstance(config, DecoderConfig), "the others are refused in int8"
    write_choices(Choices())  # what was refused is tried again
    layer = shapes_of(config)
    shapes = list(dict.fromkeys([*layer, (config.vocab_size, config.hidden)]))
    found = {kernel: measured(kernel, shapes, threads=threads_here()) for kernel in KERNELS}
    choices = chosen(found, shapes)
    write_choices(choices)
    rows = [row for kernel, answer in found.items() for row in _rows(kernel, answer, layer)]
    return [*rows, *_choice_rows(found, choices, shapes)]


def shapes_of(config: DecoderConfig) -> list[Shape]:
    """N and K of one dense layer's matrices: qkv, out, gate and up, down."""
    hidden, dim, wide = config.hidden, config.head_dim, config.intermediate or config.expert_intermediate
    heads = config.heads * dim
    return [(heads + 2 * config.kv_heads * dim, hidden), (hidden, heads), (2 * wide, hidden), (hidden, wide)]


def _rows(kernel: Kernel, answer: Found, layer: Sequence[Shape]) -> Iterator[Row]:
    from qwen_agent_kit.models.probing import MOST_OFF, ROWS

    if answer.problem:
        yield Row(f"{kernel.name} {answer.problem}", float("nan"), "", None)
        return
    yield Row(f"{kernel.name}: off from the exact product", answer.off, "of its size", MOST_OFF)
    taken = [answer.us[shape] for shape in layer if shape in answer.us]
    for m in ROWS:
        if len(taken) == len(layer) and all(m in of for of in taken):
            yield Row(f"{kernel.name}: a layer, {m} rows", sum(of[m] for of in taken), "us")


def _choice_rows(found: Mapping[Kernel, Found], choices: Choices, shapes: Sequence[Shape]) -> Iterator[Row]:
    """What was kept, with the time of its last range at the most rows that were timed."""
    times = {kernel.name: answer.us for kernel, answer in found.items()}
    for layout in dict.fromkeys(kernel.layout for kernel in found):
        for shape in shapes:
            named = choices.ranges.get(choices.key(layout, *shape))
            if named is not None and len(named) > 1:
                ways = ", ".join(f"{'more' if most is None else f'up to {most}'}: {name}" for most, name in named)
                last = times[named[-1][1]][shape]
                yield Row(f"chosen for {layout} {shape[0]}x{shape[1]}: {ways}", last[max(last)], "us")
