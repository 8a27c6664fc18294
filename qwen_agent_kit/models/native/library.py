"""The native kernels as Python sees them: structures, functions, and tensors by address."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from functools import cache

import torch

from qwen_agent_kit.errors import EngineError
from qwen_agent_kit.models.kernels import read_choices
from qwen_agent_kit.models.native.build import built_library
from qwen_agent_kit.placement.kernels import compiler

__all__ = ["KINDS", "LayerStruct", "Library", "MatrixStruct", "MlpStruct", "ModelStruct", "SegmentStruct", "library"]

_LOG = logging.getLogger("qwen_agent_kit")

KINDS = {"int8": 0, "int4": 1}
_TILE_BYTES = {"int8": 544, "int4": 304}
"""Of 16 rows by 32 columns: the values, 16 scales in half precision and, for int4, 16 zeros."""


PACK_VALUES = 2**22
"""Values that are float32 at once while a matrix is packed."""


class MatrixStruct(Structure):
    """``matrix_t`` of gemm.h."""

    _fields_ = [
        ("data", c_void_p),
        ("bias", c_void_p),
        ("n", c_int32),
        ("k", c_int32),
        ("kind", c_int32),
        ("groups", c_int32),
    ]


class MlpStruct(Structure):
    """``mlp_t`` of native.c."""

    _fields_ = [("gate_up", MatrixStruct), ("down", MatrixStruct)]


class LayerStruct(Structure):
    """``layer_t`` of native.c."""

    _fields_ = [
        ("attn_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", MatrixStruct),
        ("out", MatrixStruct),
        ("mlp", MlpStruct),
        ("expert", POINTER(MlpStruct)),
        ("router", c_void_p),
        ("shared", c_void_p),
        ("window", c_int64),
    ]


class ModelStruct(Structure):
    """``model_t`` of native.c."""

    _fields_ = [
        ("layers", POINTER(LayerStruct)),
        ("norm", c_void_p),
        ("dense", c_void_p),
        ("head", MatrixStruct),
        ("expert_bytes", c_void_p),
        *((name, c_int32) for name in ("count", "hidden", "heads", "kv_heads", "dim", "vocab", "widest", "inner")),
        *((name, c_int32) for name in ("experts", "top", "normalise", "unused")),
        ("eps", c_float),
    ]


class SegmentStruct(Structure):
    """``segment_t`` of native.c."""

    _fields_ = [
        ("slabs", c_void_p),
        ("capacity", c_int64),
        ("start", c_int64),
        ("count", c_int64),
        ("wanted", c_int64),
    ]


class Library:
    """The functions of native.c; threads as many as torch uses.

    Args:
        path: Of the shared library.
    """

    def __init__(self, path: str) -> None:
        self._functions = functions = ctypes.CDLL(path)
        matrix = POINTER(MatrixStruct)
        self.step = functions.qak_step
        self.step.argtypes = [POINTER(ModelStruct), *[c_void_p] * 5, POINTER(SegmentStruct), c_int, c_void_p, c_int]
        self._product = functions.qak_product
        self._product.argtypes = [matrix, c_void_p, c_int, c_void_p, c_int]
        self._rows = functions.qak_rows
        self._rows.argtypes = [matrix, c_void_p, c_int, c_void_p]
        self._rows.restype = None
        self._pack = functions.qak_pack
        self._pack.argtypes = [c_void_p, c_int, c_int, c_int, c_void_p, c_int]
        self._sweep = functions.qak_sweep
        self._sweep.argtypes = [c_void_p, c_int64, c_int]
        self._sweep.restype = c_uint64
        self.quiesce = functions.qak_quiesce
        self.quiesce.restype = None

    @property
    def level(self) -> str:
        """What the kernels were built for: ``avx512-vnni``, ``avx512`` or ``portable``."""
        return ("portable", "avx512", "avx512-vnni")[self._functions.qak_level()]

    def pack(self, weight: torch.Tensor, kind: str) -> torch.Tensor:
        """Blocks [ceil(N / 16), bytes] of a matrix [N, K] of any floating dtype, bytes being a multiple of 64.

        A few rows at a time are made float32, so that packing takes little besides the matrix and its blocks.
        """
        n, k = weight.shape
        tiles = torch.empty(-(-n // 16), -(-(-(-k // 32) * _TILE_BYTES[kind]) // 64) * 64, dtype=torch.uint8)
        step = max(1, PACK_VALUES // max(1, k) // 16) * 16
        for first in range(0, n, step):
            part = weight[first : first + step].float().contiguous()
            place = tiles[first // 16 :].data_ptr()
            _done(self._pack(part.data_ptr(), len(part), k, KINDS[kind], place, torch.get_num_threads()), tiles)
        return tiles

    def product(self, matrix: MatrixStruct, x: torch.Tensor) -> torch.Tensor:
        """float32 [rows, N] of contiguous float32 x [rows, K]."""
        y = torch.empty(x.shape[0], matrix.n)
        if not len(x):
            return y  # the kernels share rows out by their number
        failed = self._product(matrix, x.data_ptr(), x.shape[0], y.data_ptr(), torch.get_num_threads())
        return _done(failed, y)

    def rows(self, matrix: MatrixStruct, ids: torch.Tensor) -> torch.Tensor:
        """Rows ``ids`` (int64, contiguous) of the matrix in float32 [len(ids), K]."""
        y = torch.empty(len(ids), matrix.k)
        self._rows(matrix, ids.data_ptr(), len(ids), y.data_ptr())
        return y

    def sweep(self, data: torch.Tensor, threads: int) -> None:
        """Read a uint8 tensor whole and do nothing with it; what the memory gives at most."""
        self._sweep(data.data_ptr(), data.numel(), threads)


def _done(failed: int, result: torch.Tensor) -> torch.Tensor:
    if failed:
        raise EngineError("there is no memory for a step's activations", code="out_of_memory")
    return result


def library() -> Library | None:
    """The kernels, built where they were not.

    None where there is no compiler, they are switched off, or ``qak bench kernels`` found one wrong.
    """
    return None if compiler() is None else _built()


@cache
def _built() -> Library | None:
    for name, why in read_choices().refused.items():
        if name.startswith("native"):
            _LOG.warning("native kernels are not used, torch's are: `qak bench kernels` found that `%s` %s", name, why)
            return None
    path = built_library()
    return None if path is None else Library(str(path))
