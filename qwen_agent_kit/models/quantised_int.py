"""GPTQ and AWQ: 4 or 8 bits in int32 words, with a scale and a zero per group along K.

Layouts: GPTQ as AutoGPTQ and GPTQModel write it (nn_modules/qlinear), AWQ as AutoAWQ's GEMM version
(awq/utils/packing_utils).
"""

from __future__ import annotations

import torch

from qwen_agent_kit.models.fields import Fields
from qwen_agent_kit.models.quantised import Matrix, Source, unpack

__all__ = ["AWQ", "GPTQ"]

_FLOATS = ("F16", "BF16", "F32")
_ONES = {4: 0x11111111, 8: 0x01010101}
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the n-th column of eight lies in its word: AutoAWQ interleaves them for its kernel."""


class GPTQ:
    """``qweight`` [K * bits / 32, N], ``qzeros`` [G, N * bits / 32], ``scales`` [G, N], ``g_idx`` [K] or none.

    Version 1 keeps each zero less one, version 2 (``gptq_v2``) as it is. GPTQModel and later AutoGPTQ take the ones
    off whole words at once (``qzeros -= 0x11111111``), so that a zero of 0 borrows from its neighbour; they are put
    back the same way, which is exact. AutoGPTQ before that took one off each value and packed -1 over all values after
    it in the word: those zeros are lost, and read here as the file says. With ``desc_act`` the groups are those of the
    order in which columns were quantised, and ``g_idx`` says which column is in which.

    Raises:
        ModelError: For fields that are missing or out of range.
    """

    def __init__(self, fields: Fields) -> None:
        self.bits = _bits(fields, (4, 8))
        self.group = _group(fields)
        self.ordered = fields.flag("desc_act", False)
        form = fields.text("checkpoint_format", fields.text("format", "gptq"))
        if form not in ("gptq", "gptq_v2"):
            fields.refuse("checkpoint_format" if fields.has("checkpoint_format") else "format", "gptq, gptq_v2")
        if fields.data.get("dynamic"):
            fields.refuse("dynamic", "nothing: one number of bits for all matrices")
        self.offset = _ONES[self.bits] if form == "gptq" else 0

    def find(self, source: Source, module: str) -> Matrix | None:
        """See ``quantised.Method``."""
        name = f"{module}.qweight"
        if not source.has(name):
            return None
        words, n = _pair(source, name)
        k = words * 32 // self.bits
        group = k if self.group == -1 else self.group
        groups = -(-k // group)
        source.expect(name, (words, n), "I32")
        source.expect(f"{module}.scales", (groups, n), *_FLOATS)
        source.expect(f"{module}.qzeros", (groups, n * self.bits // 32), "I32")
        if source.has(f"{module}.g_idx"):
            source.expect(f"{module}.g_idx", (k,), "I32", "I64")
        elif self.ordered:
            source.refuse(f"{module}.g_idx", "is missing; with `desc_act` it says which column is in which group")
        return Matrix((n, k), lambda: self._undo(source, module, k, group))

    def _undo(self, source: Source, module: str, k: int, group: int) -> torch.Tensor:
        values = unpack(source.raw(f"{module}.qweight"), self.bits, rows=True)
        scales = source.raw(f"{module}.scales").float()
        words = source.raw(f"{module}.qzeros") + self.offset
        zeros = unpack(words, self.bits, rows=False)
        index = torch.arange(k) // group
        if source.has(f"{module}.g_idx"):
            index = source.raw(f"{module}.g_idx").long()
            if k and not 0 <= int(index.min()) <= int(index.max()) < len(scales):
                source.refuse(f"{module}.g_idx", f"names groups outside 0 to {len(scales) - 1}")
        return ((values.float() - zeros.float()[index]) * scales[index]).T.contiguous()


class AWQ:
    """``qweight`` [K, N / 8], ``qzeros`` [G, N / 8], ``scales`` [G, N], 4 bits, columns interleaved.

    Raises:
        ModelError: For fields that are missing or out of range.
    """

    def __init__(self, fields: Fields) -> None:
        _bits(fields, (4,))
        self.group = _group(fields)
        if fields.text("version", "gemm").lower() != "gemm":
            fields.refuse("version", "gemm")

    def find(self, source: Source, module: str) -> Matrix | None:
        """See ``quantised.Method``."""
        name = f"{module}.qweight"
        if not source.has(name):
            return None
        k, words = _pair(source, name)
        n, groups = words * 8, 1 if self.group == -1 else -(-k // self.group)
        source.expect(name, (k, words), "I32")
        source.expect(f"{module}.scales", (groups, n), *_FLOATS)
        source.expect(f"{module}.qzeros", (groups, words), "I32")
        return Matrix((n, k), lambda: self._undo(source, module, k))

    def _undo(self, source: Source, module: str, k: int) -> torch.Tensor:
        values = _straight(source.raw(f"{module}.qweight"))
        zeros = _straight(source.raw(f"{module}.qzeros"))
        scales = source.raw(f"{module}.scales").float()
        index = torch.arange(k) // (k if self.group == -1 else self.group)
        return ((values.float() - zeros.float()[index]) * scales[index]).T.contiguous()


def _straight(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [R, C * 8] of AWQ's words [R, C], columns in their order."""
    values = unpack(packed, 4, rows=False).view(packed.shape[0], -1, 8)
    return values[:, :, list(_AWQ_ORDER)].reshape(packed.shape[0], -1)


def _pair(source: Source, name: str) -> tuple[int, int]:
    shape = source.shape(name)
    if len(shape) != 2 or not all(shape):
        source.refuse(name, f"is of shape {list(shape)}; allowed: two axes")
    return shape[0], shape[1]


def _bits(fields: Fields, allowed: tuple[int, ...]) -> int:
    # AutoAWQ's own file calls it w_bit.
    name = "bits" if fields.has("bits") or not fields.has("w_bit") else "w_bit"
    bits = fields.whole(name, 1, 64)
    if bits not in allowed:
        fields.refuse(name, " or ".join(map(str, allowed)))
    return bits


def _group(fields: Fields) -> int:
    name = "group_size" if fields.has("group_size") or not fields.has("q_group_size") else "q_group_size"
    group = fields.whole(name, -1, 2**17, 128)
    if group != -1 and group < 8:
        fields.refuse(name, "-1, or from 8")
    return group
