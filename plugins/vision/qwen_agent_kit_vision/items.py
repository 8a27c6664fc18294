"""From a part to what the tower takes: bytes, pixels, the size the model sees, and how many ids that is."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.backends import MediaBudget, ModelFacts, Run, Share
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import MediaLimits, Workers, digest_of, kind_of_file, read_bytes
from qwen_agent_kit.messages import Audio, Media
from qwen_agent_kit_vision import numbers
from qwen_agent_kit_vision.sound import with_sound

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Item", "Vision"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
ON_REQUEST = ("TIFF", "AVIF", "HEIF")
IMAGE_OPTIONS = frozenset({"min_pixels", "max_pixels", "formats", "frame", "page", "scale"})
VIDEO_OPTIONS = frozenset(
    {"min_pixels", "max_pixels", "fps", "nframes", "min_frames", "max_frames", "video_start", "video_end"}
)
_MIMES = {"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"}
_WIDE_MIMES = {"image/tiff", "image/avif", "image/heic"}


@dataclass(frozen=True, slots=True)
class Item:
    """A medium as the model sees it.

    Args:
        pixels: uint8 [3, h, w] of an image, or [t, 3, h, w] of a video, resized already.
        grid: Patches in time, height and width.
        merge: How many patches a side become one id.
        interval: From one time step to the next: seconds for Qwen2.5-Omni, position steps for the others.
        pace: Position steps to one of ``interval``.
        size: Width and height of the original, for grounding.
        timestamps: Seconds, one per time step of a video.
    """

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    merge: int
    interval: float = 1.0
    pace: float = 1.0
    size: tuple[int, int] = (0, 0)
    timestamps: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """How many ids it takes."""
        return math.prod(self.grid) // self.merge**2

    @property
    def total_pixels(self) -> int:
        """Of all frames, as the model sees them."""
        return self.pixels.numel() // 3

    @property
    def seen(self) -> tuple[int, int]:
        """Width and height of what the model sees."""
        return int(self.pixels.shape[-1]), int(self.pixels.shape[-2])


class Vision:
    """Widens images and videos. Thread-safe.

    Args:
        limits: Of each medium.
    """

    def __init__(self, limits: MediaLimits | None = None) -> None:
        self.limits = limits or MediaLimits()
        self.workers = Workers("qwen_agent_kit_vision.decode:decode", limits=self.limits)
        self._processors: dict[str, tuple[Any, Any]] = {}
        self._lock = threading.Lock()

    def widen(
        self, part: Media, facts: ModelFacts, budget: MediaBudget
    ) -> tuple[int, str, Item] | Sequence[Run | Share]:
        """The number of ids, a digest of the content and of all that changes how it is seen, and the item.

        Qwen3-VL reads a time before each step of a video: one run for each. Qwen2.5-Omni may hear a video's sound:
        runs of its pictures and of its sound by turns.

        Raises:
            MediaError: Where the source, the file or an option is refused.
        """
        options = _checked(part, facts.model_type)
        data = read_bytes(part, limit=self.limits.size)
        item = (self._video if part.kind == "video" else self._image)(part, data, facts, budget)
        told = json.dumps([part.kind, options, item.grid, item.interval], sort_keys=True, default=str)
        digest = hashlib.sha256(f"{digest_of(data)} {told}".encode()).hexdigest()
        if part.kind == "video" and facts.model_type == "qwen3_vl":
            return _steps(item, digest)
        if part.options.get("sound") and (heard := self._sound(part, data)) is not None:
            return with_sound(item, digest, heard, facts.config)
        return item.length, digest, item

    def pixels(self, part: Media) -> np.ndarray:
        """uint8 [h, w, 3] of an image or a PDF page at full resolution.

        Raises:
            MediaError: Where it is refused.
        """
        return self._decoded(part, read_bytes(part, limit=self.limits.size))

    def probe(self, part: Media) -> dict[str, Any]:
        """How many ``frames`` a video has, ``fps`` a second, of what ``width`` and ``height``.

        Raises:
            MediaError: Where it is refused.
        """
        return self._probed(read_bytes(part, limit=self.limits.size))

    def frames(self, part: Media, chosen: list[int]) -> np.ndarray:
        """uint8 [len(chosen), h, w, 3] of a video's frames by number, at full resolution.

        Raises:
            MediaError: Where it is refused.
        """
        return self._shown(read_bytes(part, limit=self.limits.size), chosen)

    def _probed(self, data: bytes) -> dict[str, Any]:
        if kind_of_file(data) not in ("video/mp4", "video/webm", "video/x-msvideo"):
            raise MediaError(
                f"the video is {kind_of_file(data) or 'of no known format'}; allowed: MP4, MOV, WebM, Matroska, AVI",
                code="unsupported_format",
            )
        bounds = {"pixels": self.limits.pixels, "seconds": self.limits.seconds}
        facts = self.workers.decode(data, "video", {"what": "probe", "most": 1_000_000, **bounds}).facts
        return dict(facts)

    def _shown(self, data: bytes, chosen: list[int]) -> np.ndarray:
        limits = self.limits
        options = {"pixels": limits.pixels, "seconds": limits.seconds, "total": limits.total_pixels}
        return self.workers.decode(data, "video", {"what": "frames", "indices": chosen, **options}).arrays[0]

    def _sound(self, part: Media, data: bytes) -> Audio | None:
        """What is heard in a video between its ``video_start`` and ``video_end``; None where it has no sound."""
        bounds = {"pixels": self.limits.pixels, "seconds": self.limits.seconds, "most": self.limits.size // 4 - 16}
        found = self.workers.decode(data, "video", {"what": "sound", **bounds})
        if not found.arrays:
            return None
        options: dict[str, Any] = {"rate": found.facts["rate"]}
        start, end = part.options.get("video_start", 0), part.options.get("video_end")
        options |= {"start": start} if start else {}
        options |= {"seconds": end - start} if end is not None else {}
        return Audio(found.arrays[0], options=options)

    def _image(self, part: Media, data: bytes, facts: ModelFacts, budget: MediaBudget) -> Item:
        import torch

        processor = self._processor(facts)[0]
        array = self._decoded(part, data)
        height, width = array.shape[:2]
        bounds = _bounds(part, processor.size, budget)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        patch, merge = processor.patch_size, processor.merge_size
        seen = processor.resize(tensor[None], size=bounds, resample=processor.resample, factor=patch * merge)[0]
        grid = (1, seen.shape[-2] // patch, seen.shape[-1] // patch)
        return Item(seen.contiguous(), grid, merge, size=(width, height))

    def _decoded(self, part: Media, data: bytes) -> np.ndarray:
        if not data:
            raise MediaError(f"the {part.kind} is empty")
        mime = kind_of_file(data)
        if mime == "application/pdf":
            options = {
                "what": "page",
                "index": part.options.get("page", 0),
                "pixels": min(self.limits.pixels, 20_000_000),
                "scale": part.options.get("scale", 2.0),
            }
        else:
            formats = _formats(part)
            if mime not in (_MIMES if not set(formats) & set(ON_REQUEST) else _MIMES | _WIDE_MIMES):
                raise MediaError(
                    f"the {part.kind} is {mime or 'of no known format'}; allowed: {', '.join(FORMATS)} and PDF pages",
                    hint="Image(path, options={'formats': ['TIFF']}) opens TIFF, AVIF and HEIF from your own code",
                    code="unsupported_format",
                )
            frame = part.options.get("frame")
            options = {"what": "image", "formats": formats, "pixels": self.limits.pixels, "frame": frame}
        return self.workers.decode(data, part.kind, options).arrays[0]

    def _video(self, part: Media, data: bytes, facts: ModelFacts, budget: MediaBudget) -> Item:
        import torch

        facts_ = self._probed(data)
        chosen, rate = _frames(part.options, facts_["frames"], facts_["fps"], self.limits.frames)
        array = self._shown(data, chosen)
        processor = self._processor(facts)[1]
        patch, merge, step = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        tensor = torch.from_numpy(array.copy()).permute(0, 3, 1, 2)
        seen = processor.resize(
            tensor[None],
            size=_bounds(part, processor.size, budget),
            resample=processor.resample,
            factor=patch * merge,
            temporal_factor=step,
            cap_pixels_per_frame=True,
        )[0]
        grid = (math.ceil(len(seen) / step), seen.shape[-2] // patch, seen.shape[-1] // patch)
        interval = pace = 1.0
        if facts.model_type == "qwen2_5_vl":
            interval = facts.config.get("vision_config", {}).get("tokens_per_second", 4) * step / rate
        elif facts.model_type == numbers.OMNI:
            interval, pace = step / rate, facts.config.get("position_id_per_seconds", 25)
        times = tuple(_middle(chosen[i : i + step]) / facts_["fps"] for i in range(0, len(chosen), step))
        return Item(seen.contiguous(), grid, merge, interval, pace, (facts_["width"], facts_["height"]), times)

    def _processor(self, facts: ModelFacts) -> tuple[Any, Any]:
        key = json.dumps([facts.model_type, facts.preprocessor, facts.video], sort_keys=True, default=str)
        with self._lock:
            if key not in self._processors:
                made = numbers.processors(facts.model_type, facts.preprocessor, facts.video)
                self._processors[key] = made
            return self._processors[key]


def _middle(frames: list[int]) -> float:
    """Of a time step, which its last frame fills up: where transformers' processor writes its time."""
    return (frames[0] + frames[-1]) / 2


def _steps(item: Item, digest: str) -> list[Run]:
    """A run for each time step of a video, its time before it."""
    per = math.ceil(len(item.pixels) / item.grid[0])
    runs = []
    for number, time in enumerate(item.timestamps):
        pixels = item.pixels[number * per : (number + 1) * per]
        one = Item(pixels, (1, *item.grid[1:]), item.merge, size=item.size, timestamps=(time,))
        before = (f"<{time:.1f} seconds>", "<|vision_start|>")
        runs.append(Run(one.length, f"{digest}-{number}", one, before, ("<|vision_end|>",)))
    return runs


def _checked(part: Media, model_type: str) -> dict[str, Any]:
    """The part's options, each of the type it must have."""
    known = VIDEO_OPTIONS if part.kind == "video" else IMAGE_OPTIONS
    if part.kind == "video" and model_type == numbers.OMNI:
        known |= {"sound"}
    for name, value in part.options.items():
        if name not in known:
            raise MediaError(f"the {part.kind} has an option {name!r}; allowed: {', '.join(sorted(known))}")
        if name == "formats":
            continue
        if name == "sound":
            if not isinstance(value, bool):
                raise MediaError(f"`sound` of the video is {value!r}; allowed: True or False")
            continue
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        whole = name not in ("fps", "video_start", "video_end", "scale")
        if not real or (whole and not isinstance(value, int)) or not _LEAST.get(name, 0) <= value <= 10**9:
            raise MediaError(
                f"`{name}` of the {part.kind} is {value!r}; allowed: a {'whole ' if whole else ''}number from "
                f"{_LEAST.get(name, 0)} on",
            )
    if part.options.get("scale", 1.0) > 10:
        raise MediaError(f"`scale` of the {part.kind} is {part.options['scale']!r}; allowed: 0.1 to 10")
    return {key: part.options[key] for key in sorted(part.options)}


_LEAST = {"min_pixels": 1, "max_pixels": 784, "fps": 0.01, "nframes": 2, "scale": 0.1}


def _formats(part: Media) -> list[str]:
    asked = part.options.get("formats")
    if asked is None:
        return list(FORMATS)
    allowed = {*FORMATS, *ON_REQUEST}
    names = {"HEIC": "HEIF", "JPG": "JPEG"}
    chosen = [names.get(str(f).upper(), str(f).upper()) for f in asked] if isinstance(asked, list | tuple) else []
    if not chosen or not set(chosen) <= allowed:
        raise MediaError(f"`formats` is {asked!r}; allowed: a list of {', '.join(sorted(allowed))}")
    if part.trust != "configured" and not set(chosen) <= set(FORMATS):
        raise MediaError("`formats` of a medium that came inside a message is refused", code="unsupported_format")
    return chosen


def _bounds(part: Media, size: Any, budget: MediaBudget) -> Any:
    """The processor's own bounds, narrowed by the plan, overridden by the part."""
    own = size if isinstance(size, Mapping) else dict(size)
    most = part.options.get("max_pixels", min(own["longest_edge"], budget.max_pixels or own["longest_edge"]))
    least = part.options.get("min_pixels", min(own["shortest_edge"], most))
    if least > most:
        raise MediaError(f"`min_pixels` {least} is above `max_pixels` {most}")
    return type(size)(shortest_edge=least, longest_edge=most) if not isinstance(size, dict) else _size(least, most)


def _size(least: int, most: int) -> Any:
    from qwen_agent_kit import foreign

    return foreign.transformers().image_utils.SizeDict(shortest_edge=least, longest_edge=most)


def _frames(options: Mapping[str, Any], total: int, fps: float, most: int) -> tuple[list[int], float]:
    """Which frames are taken, and how many of them there are a second."""
    try:
        first, last, count = numbers.frame_range(options, total, fps)
        wanted = {key: options[key] for key in ("fps", "nframes", "min_frames", "max_frames") if key in options}
        number = min(numbers.smart_nframes(wanted, count, fps), most)
    except (ValueError, AssertionError) as error:
        raise MediaError(
            f"the video's frames cannot be chosen so: {error}", hint="`fps` or `nframes`, 2 frames or more"
        ) from error
    return numbers.linear_indices(first, last, number), number / max(count, 1e-6) * fps
