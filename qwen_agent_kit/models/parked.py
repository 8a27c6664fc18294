"""Layers that stay on disk: mapped from the packed weights, brought in before they run and let go of after."""

from __future__ import annotations

import mmap
import re
import warnings

import torch

from qwen_agent_kit.models.safetensors_file import SafetensorsFile

__all__ = ["ParkedLayers"]

_LAYER = re.compile(r"layers\.(\d+)\.")


class ParkedLayers:
    """The layers of a packed model that are mapped; everything else of it is read into memory.

    What is let go of leaves the process at once, and stays in the system's file cache as long as nobody needs the room:
    where memory is ample the next token need not read it again.

    Args:
        file: The packed model.
        layers: Which of its layers.
    """

    def __init__(self, file: SafetensorsFile, layers: range) -> None:
        self._layers = layers
        self._map, first = file.shared()
        self._spans: dict[int, tuple[int, int]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        for name, entry in file.entries.items():
            found = _LAYER.match(name)
            if found is None or int(found[1]) not in layers:
                self.tensors[name] = file.read(name)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch says that writing to it would fail: it would
                self.tensors[name] = file.tensor(name, self._map)
            start, end = self._spans.get(int(found[1]), (first + entry.start, first + entry.end))
            self._spans[int(found[1])] = min(start, first + entry.start), max(end, first + entry.end)

    def __contains__(self, layer: int) -> bool:
        return layer in self._layers

    def bring(self, layer: int) -> None:
        """Say that a layer is needed now, so that it is read in large pieces."""
        self._advise("MADV_WILLNEED", layer)

    def drop(self, layer: int) -> None:
        """Let go of a layer's memory."""
        self._advise("MADV_DONTNEED", layer)

    def _advise(self, what: str, layer: int) -> None:
        advice = getattr(mmap, what, None)
        if advice is None:  # not on Windows, which pages as it sees fit
            return
        start, end = self._spans[layer]
        start -= start % mmap.PAGESIZE
        self._map.madvise(advice, start, end - start)
