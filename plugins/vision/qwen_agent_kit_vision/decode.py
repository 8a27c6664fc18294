"""Runs in the decoding child: pixels out of image files, PDF pages and video files.

Everything here meets hostile bytes. Sizes are read from headers and refused before anything is allocated.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["RefusedError", "decode"]

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""The demuxers that read one file and nothing else; playlists and the like would open what they name."""

MAX_RATIO = 200


class RefusedError(Exception):
    """A file that is refused, with a code."""

    def __init__(self, message: str, code: str = "invalid_media", hint: str | None = None) -> None:
        super().__init__(message)
        self.code, self.hint = code, hint


def decode(data: bytes, what: str, **options: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    """``image``, ``page``, ``probe``, ``frames`` or ``sound`` of a file."""
    ways: dict[str, Callable[..., tuple[dict[str, Any], list[np.ndarray]]]] = {
        "image": image,
        "page": page,
        "probe": probe,
        "frames": frames,
        "sound": sound,
    }
    return ways[what](data, **options)


def image(
    data: bytes, formats: list[str], pixels: int, frame: int | None = None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """uint8 [h, w, 3]: upright by EXIF, over white where it is transparent.

    Args:
        data: The file.
        formats: Pillow's names of the formats that are allowed.
        pixels: The most there may be.
        frame: Which frame of an animation; None refuses animations.
    """
    Image.MAX_IMAGE_PIXELS = None  # checked below, before a pixel is read
    with Image.open(io.BytesIO(data), formats=formats) as opened:
        _check_size(opened.width, opened.height, pixels)
        animated = bool(getattr(opened, "is_animated", False)) and opened.format != "MPO"
        if animated and frame is None:
            raise RefusedError(
                "it is animated", "animated", "choose one frame, as in Image(path, options={'frame': 0})"
            )
        if frame:
            _seek(opened, frame)
        found = {"format": opened.format, "mode": opened.mode, "animated": animated}
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        flat = _flat(upright)
    return found | {"width": flat.width, "height": flat.height}, [np.asarray(flat)]


def _check_size(width: int, height: int, pixels: int) -> None:
    if width < 1 or height < 1 or width * height > pixels:
        raise RefusedError(f"it has {width} x {height} pixels; allowed: at most {pixels} in all", "too_large")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise RefusedError(f"it is {width} x {height}; allowed: one side at most {MAX_RATIO} times the other")


def _seek(opened: Image.Image, frame: int) -> None:
    if frame < 0 or frame > 1000:
        raise RefusedError(f"frame {frame} was asked for; allowed: 0 to 1000")
    try:
        opened.seek(frame)
    except EOFError:
        raise RefusedError(f"it has no frame {frame}") from None


def _flat(opened: Image.Image) -> Image.Image:
    """As RGB: transparent over white, 16 bits by their upper eight."""
    if opened.mode.startswith("I"):
        values = np.asarray(opened)
        if values.dtype != np.uint8 and ((values.size and int(values.max()) > 255) or opened.mode.startswith("I;16")):
            values = (values.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(values.astype(np.uint8), "L").convert("RGB")
    if opened.mode == "F":
        raise RefusedError("its pixels are floating-point numbers; allowed: 8 or 16 bits")
    if opened.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in opened.info:
        over = opened.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return opened if opened.mode == "RGB" else opened.convert("RGB")


def page(data: bytes, index: int, pixels: int, scale: float) -> tuple[dict[str, Any], list[np.ndarray]]:
    """uint8 [h, w, 3] of one page of a PDF, ``scale`` times 72 dots per inch, less where ``pixels`` do not allow it."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        locked = "password" in str(error).lower()
        raise RefusedError("it needs a password" if locked else "it is no PDF that can be read") from None
    count = len(document)
    if not 0 <= index < count:
        raise RefusedError(f"page {index} was asked for; it has {count} pages, counted from 0")
    sheet = document[index]
    width, height = sheet.get_size()
    if not (0 < width < 1e5 and 0 < height < 1e5):
        raise RefusedError(f"page {index} has an impossible size")
    scale = min(scale, (pixels / (width * height)) ** 0.5)
    drawn = sheet.render(scale=scale).to_pil().convert("RGB")
    _check_size(drawn.width, drawn.height, 2 * pixels)
    return {"pages": count, "width": drawn.width, "height": drawn.height, "format": "PDF"}, [np.asarray(drawn)]


def _opened(data: bytes, pixels: int, seconds: float) -> tuple[Any, Any]:
    import av

    container: Any

    try:
        container = av.open(
            io.BytesIO(data),
            options={"format_whitelist": CONTAINERS, "protocol_whitelist": ""},
            metadata_errors="ignore",
        )
    except av.FFmpegError as error:
        raise RefusedError(f"it is no video that can be read ({type(error).__name__})") from None
    if not container.streams.video:
        raise RefusedError("it has no moving pictures")
    stream = container.streams.video[0]
    _check_size(stream.width or 0, stream.height or 0, pixels)
    if container.duration is not None and container.duration / 1e6 > seconds:
        raise RefusedError(f"it lasts {container.duration / 1e6:.0f} s; allowed: at most {seconds:g}", "too_long")
    return container, stream


def probe(data: bytes, pixels: int, seconds: float, most: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Frames that are there (packets, not what the header claims), frames a second, and the size."""
    container, stream = _opened(data, pixels, seconds)
    rate = float(stream.average_rate or stream.guessed_rate or Fraction(0))
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0
        if count > most:
            raise RefusedError(f"it has more than {most} frames", "too_long")
    if count < 1 or not 0 < rate <= 1000:
        raise RefusedError(f"it has {count} frames at {rate:g} a second")
    if count / rate > seconds:
        raise RefusedError(f"it lasts {count / rate:.0f} s; allowed: at most {seconds:g}", "too_long")
    return {"frames": count, "fps": rate, "width": stream.width, "height": stream.height}, []


def frames(
    data: bytes, indices: list[int], pixels: int, seconds: float, total: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """uint8 [len(indices), h, w, 3]: frames by their number in showing order; past the last the last one."""
    container, stream = _opened(data, pixels, seconds)
    if stream.width * stream.height * len(indices) > total:
        raise RefusedError(
            f"{len(indices)} frames of {stream.width} x {stream.height} have more than {total} pixels",
            "too_large",
            "ask for fewer, as in Video(path, options={'nframes': 16}), or scale the file down",
        )
    stream.codec_context.thread_count = 1
    wanted, taken, last = set(indices), {}, None
    for number, frame in enumerate(container.decode(stream)):
        last = frame
        _check_size(frame.width, frame.height, pixels)
        if number in wanted:
            taken[number] = frame.to_ndarray(format="rgb24")
        if number >= max(indices):
            break
    if last is None:
        raise RefusedError("no frame of it can be decoded")
    end = last.to_ndarray(format="rgb24")
    chosen = [taken.get(index, end) for index in indices]
    if len({frame.shape for frame in chosen}) > 1:
        raise RefusedError("its frames change their size")
    return {}, [np.stack(chosen)]


def sound(data: bytes, pixels: int, seconds: float, most: int) -> tuple[dict[str, Any], list[np.ndarray]]:
    """float32 [n] of a video's first track of sound at its own rate, channels averaged; nothing where it has none."""
    import av

    container, _ = _opened(data, pixels, seconds)
    if not container.streams.audio:
        return {}, []
    stream = container.streams.audio[0]
    rate, channels = stream.rate or 0, stream.channels or 0
    if not 1000 <= rate <= 384_000 or not 1 <= channels <= 16:
        raise RefusedError(f"its sound has {channels} channels at {rate} samples a second")
    plain = av.AudioResampler(format="fltp", rate=rate)  # the type alone is changed
    blocks: list[np.ndarray] = []
    count = 0
    for frame in chain(container.decode(stream), (None,)):
        for made in plain.resample(frame):
            blocks.append(made.to_ndarray().mean(axis=0, dtype=np.float32))
            count += blocks[-1].size
        if count > most:
            raise RefusedError(f"its sound has more than {most} samples", "too_large", "choose a part by `video_end`")
    samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise RefusedError("its sound holds samples that are not finite")
    return {"rate": rate}, [samples] if samples.size else []
