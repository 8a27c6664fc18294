"""Every file becomes the pixels that it shows, or a clear error; a hostile one costs a worker at most."""

from __future__ import annotations

import base64
import functools
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from qwen_agent_kit_vision.items import Vision

from qwen_agent_kit import Image, Video
from qwen_agent_kit.backends import MediaBudget, ModelFacts
from qwen_agent_kit.errors import MediaError
from qwen_agent_kit.media import MediaLimits, Workers

FACTS, BUDGET = ModelFacts({"model_type": "qwen2_5_vl"}), MediaBudget()


@pytest.fixture(scope="module")
def vision() -> Vision:
    return Vision()


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8)


def saved(image: Any, form: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Pillow.Image) else Pillow.fromarray(image)).save(sink, format=form, **options)
    return sink.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    images = [Pillow.new("RGB", (8, 8), (index * 50 % 256, 0, 99)).quantize(4) for index in range(frames)]
    return saved(images[0], "GIF", save_all=True, append_images=images[1:], disposal=2)


# --- what is shown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_lossless_formats_keep_every_pixel(vision: Vision, form: str) -> None:
    """PNG, lossless WebP and BMP, told by content."""
    data = saved(picture(), form, **({"lossless": True} if form == "WEBP" else {}))
    assert np.array_equal(vision.pixels(Image(data)), picture())


def test_jpeg_and_gif_come_close(vision: Vision) -> None:
    """Lossy ones are what Pillow decodes."""
    for data in (saved(picture(), "JPEG", quality=95), saved(Pillow.fromarray(picture()).quantize(), "GIF")):
        expected = np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(vision.pixels(Image(data)), expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(vision: Vision, turn: int) -> None:
    """All eight orientations come out upright."""
    upright = Pillow.fromarray(picture())
    moves: dict[int, list[Pillow.Transpose]] = {
        1: [],
        2: [Pillow.Transpose.FLIP_LEFT_RIGHT],
        3: [Pillow.Transpose.ROTATE_180],
        4: [Pillow.Transpose.FLIP_TOP_BOTTOM],
        5: [Pillow.Transpose.TRANSPOSE],
        6: [Pillow.Transpose.ROTATE_90],
        7: [Pillow.Transpose.TRANSVERSE],
        8: [Pillow.Transpose.ROTATE_270],
    }
    stored = upright
    for move in moves[turn]:
        stored = stored.transpose(move)
    exif = Pillow.Exif()
    exif[0x0112] = turn
    assert np.array_equal(vision.pixels(Image(saved(stored, "PNG", exif=exif))), picture())


def test_transparency_lies_over_white(vision: Vision) -> None:
    """RGBA, grey with alpha, and a palette with a transparent entry."""
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    found = vision.pixels(Image(saved(clear)))
    assert found[0, 0].tolist() == [10, 20, 30]
    assert (found[1:] == 255).all()
    assert (vision.pixels(Image(saved(Pillow.new("LA", (4, 4), (0, 0))))) == 255).all()
    palette = Pillow.new("P", (4, 4), 0)
    palette.putpalette([1, 2, 3, 4, 5, 6])
    assert (vision.pixels(Image(saved(palette, "PNG", transparency=0))) == 255).all()


def test_deep_grey_palette_and_print_colours_become_rgb(vision: Vision) -> None:
    """16 bits by their upper eight, palettes, bilevel, and CMYK."""
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    assert np.array_equal(vision.pixels(Image(saved(deep)))[..., 0], deep >> 8)
    rgb16 = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0xFFFF, 0x8000, 0x0100, 0, 0x1234, 0xABCD))
    assert vision.pixels(Image(rgb16))[0].tolist() == [[255, 128, 1], [0, 0x12, 0xAB]]
    few = Pillow.fromarray(picture()).quantize(4)
    assert np.array_equal(vision.pixels(Image(saved(few))), np.asarray(few.convert("RGB")))
    assert set(np.unique(vision.pixels(Image(saved(Pillow.new("1", (9, 9), 1)))))) == {255}
    ink = saved(Pillow.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    red = vision.pixels(Image(ink))[8, 8]
    assert red[0] > 250
    assert red[1:].max() < 6


def test_arrays_and_pillow_images_are_sources(vision: Vision) -> None:
    """They become lossless files at once, so that they have a digest and are stored."""
    array = picture()
    assert np.array_equal(vision.pixels(Image(array)), array)
    assert np.array_equal(vision.pixels(Image(Pillow.fromarray(array))), array)
    assert np.array_equal(vision.pixels(Image(array[..., 0]))[..., 1], array[..., 0])
    assert Image(array).digest == Image(array.copy()).digest
    assert Image(array) == Image(array.copy())
    for odd in (array.astype(float), array[None], np.zeros((0, 3, 3), dtype=np.uint8)):
        with pytest.raises(MediaError, match="allowed: uint8"):
            Image(odd)


def test_wider_formats_open_only_on_request(vision: Vision) -> None:
    """TIFF opens where the user's code names it, and never for a medium that was found."""
    data = saved(picture(), "TIFF")
    with pytest.raises(MediaError, match="allowed: PNG"):
        vision.pixels(Image(data))
    asked = Image(data, options={"formats": ["TIFF"]})
    assert np.array_equal(vision.pixels(asked), picture())
    with pytest.raises(MediaError, match="came inside a message"):
        vision.pixels(asked.found())


def test_animations_are_refused_unless_a_frame_is_chosen(vision: Vision) -> None:
    """The error says how."""
    with pytest.raises(MediaError, match="animated") as caught:
        vision.pixels(Image(gif(3)))
    assert "frame" in (caught.value.hint or "")
    assert vision.pixels(Image(gif(3), options={"frame": 1})).shape == (8, 8, 3)
    with pytest.raises(MediaError, match="no frame 9"):
        vision.pixels(Image(gif(3), options={"frame": 9}))


def test_pages_of_a_pdf(vision: Vision) -> None:
    """A page is drawn at a scale; its number is checked."""
    pages = [Pillow.new("RGB", (200, 100), colour) for colour in ("red", "blue")]
    data = saved(pages[0], "PDF", save_all=True, append_images=pages[1:])
    second = vision.pixels(Image(data, options={"page": 1, "scale": 1.0}))
    assert second.shape == (100, 200, 3)
    assert second[50, 100, 2] > 240
    with pytest.raises(MediaError, match="2 pages"):
        vision.pixels(Image(data, options={"page": 2}))


# --- what is refused -----------------------------------------------------------------------------------------------


PAGELESS = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    b"trailer<</Root 1 0 R>>"
)


@functools.cache
def images() -> dict[str, tuple[Any, str]]:
    good, jpeg = saved(picture()), saved(picture(), "JPEG")
    bomb = png(20_000, 20_000, 8, 0, b"")
    return {
        "empty": (b"", "empty"),
        "one byte": (b"x", "no known format"),
        "text": (b"not an image at all", "no known format"),
        "zeros": (bytes(4096), "no known format"),
        "png header 65535x65535": (png(65535, 65535), "at most 50000000"),
        "png of 2**31-1": (png(2**31 - 1, 2**31 - 1), "refused"),
        "png of 0x0": (png(0, 0), "refused"),
        "png of 400 megapixels": (bomb, "at most"),
        "png without pixels": (png(64, 64), "cannot be decoded"),
        "png cut in half": (good[: len(good) // 2], "cannot be decoded"),
        "png magic only": (good[:8], "cannot be decoded"),
        "png header only": (good[:33], "cannot be decoded"),
        "png with a broken checksum": (good[:20] + b"\xff" + good[21:], "refused"),
        "png of too few rows": (png(64, 64, 8, 2, bytes(100)), "cannot be decoded"),
        "png of depth 7": (png(8, 8, 7), "cannot be decoded"),
        "png of colour 9": (png(8, 8, 8, 9), "cannot be decoded"),
        "zlib bomb in png text": (_text_bomb(), "cannot be decoded|refused"),
        "jpeg cut": (jpeg[:-200], "cannot be decoded"),
        "jpeg magic only": (jpeg[:4], "cannot be decoded"),
        "jpeg of noise": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8, "cannot be decoded"),
        "jpeg 65500x65500": (_jpeg_of(65500, 65500), "at most"),
        "gif of 100000 frames": (gif(2) + gif(2)[-40:] * 2500, "animated"),
        "gif cut": (saved(Pillow.new("P", (50, 50)), "GIF")[:30], "cannot be decoded"),
        "gif 65535x65535": (b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b"\x2c" + bytes(30), "at most"),
        "apng": (
            saved(Pillow.new("RGB", (8, 8)), "PNG", save_all=True, append_images=[Pillow.new("RGB", (8, 8), 5)]),
            "animated",
        ),
        "animated webp": (
            saved(Pillow.new("RGB", (8, 8)), "WEBP", save_all=True, append_images=[Pillow.new("RGB", (8, 8), "red")]),
            "animated",
        ),
        "webp of noise": (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(40), "cannot be decoded"),
        "webp cut": (saved(picture(200, 200), "WEBP")[:60], "cannot be decoded"),
        "bmp of noise": (b"BM" + bytes(range(200)), "cannot be decoded"),
        "bmp 100000x100000": (_bmp_of(100_000, 100_000), "at most"),
        "one pixel by 201": (saved(np.zeros((1, 201, 3), dtype=np.uint8)), "at most 200 times"),
        "tiff": (saved(picture(), "TIFF"), "allowed: PNG"),
        "fits": (b"SIMPLE  =                    T" + bytes(3000), "no known format"),
        "psd": (b"8BPS\0\1" + bytes(300), "no known format"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "no known format"),
        "ico": (saved(Pillow.new("RGB", (16, 16)), "ICO"), "no known format"),
        "html": (b"<!doctype html><title>404</title>", "no known format"),
        "zip": (b"PK\3\4" + bytes(100), "no known format"),
        "elf": (b"\x7fELF" + bytes(100), "no known format"),
        "a wav": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "audio/wav"),
        "a video": (b"\0\0\0\x20ftypisom" + bytes(100), "video/mp4"),
        "heic unasked": (b"\0\0\0\x20ftypheic" + bytes(100), "image/heic"),
        "avif unasked": (b"\0\0\0\x20ftypavif" + bytes(100), "image/avif"),
        "pdf of noise": (b"%PDF-1.7" + bytes(range(256)), "no PDF"),
        "pdf cut": (saved(Pillow.new("RGB", (50, 50)), "PDF")[:100], "no PDF|refused"),
        "pdf without pages": (PAGELESS, "pages|no PDF"),
        "number": (3, "is a int"),
        "none": (None, "is a NoneType"),
        "file that is not there": ("/nowhere/x.png", "cannot read"),
        "directory": ("/", "regular file|cannot read"),
        "device": ("/dev/zero", "regular file"),
        "ftp": ("ftp://example.com/x.png", "scheme"),
        "gopher": ("gopher://127.0.0.1/x", "scheme"),
        "data without comma": ("data:image/png;base64", "comma"),
        "data of bad base64": ("data:image/png;base64,@@@", "base64"),
        "data empty": ("data:image/png;base64,", "empty"),
        "data of text": ("data:image/png;base64," + base64.b64encode(b"hello").decode(), "no known format"),
        "a nul in the path": ("a\0b.png", "cannot read"),
    }


def _text_bomb() -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = png(8, 8, 8, 2, bytes(8 * 25))
    return whole[:33] + chunk + whole[33:]


def _jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _bmp_of(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def options() -> dict[str, tuple[type[Image] | type[Video], dict[str, Any]]]:
    bad = (0, -1, 10**10, float("nan"), float("inf"), "2", None, True, [1])
    table: dict[str, tuple[Any, dict[str, Any]]] = {f"fps={v!r}": (Video, {"fps": v}) for v in bad}
    table |= {f"nframes={v!r}": (Video, {"nframes": v}) for v in (*bad, 1, 2.5)}
    table |= {f"max_pixels={v!r}": (Image, {"max_pixels": v}) for v in (*bad, 1.5)}
    table |= {
        "both": (Video, {"fps": 2.0, "nframes": 4}),
        "times the wrong way round": (Video, {"video_start": 2.0, "video_end": 1.0}),
        "after the end": (Video, {"video_start": 1e6}),
        "unknown": (Image, {"quality": 3}),
        "formats of a word": (Image, {"formats": "PNG"}),
        "formats unknown": (Image, {"formats": ["EPS"]}),
        "frame below 0": (Image, {"frame": -1}),
        "page of a word": (Image, {"page": "1"}),
        "scale of 11": (Image, {"scale": 11.0}),
        "bounds crossed": (Image, {"min_pixels": 100_000, "max_pixels": 1000}),
    }
    return table


def peak_of(vision: Vision) -> int:
    """The most memory that the decoding children ever had, in bytes."""
    peaks = []
    for worker in vision.workers._all:
        with open(f"/proc/{worker._process.pid}/status", encoding="ascii") as file:
            peaks += [int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")]
    return max(peaks, default=0)


@pytest.mark.parametrize("name", sorted(images()))
def test_f08_f09_hostile_images_are_refused(vision: Vision, name: str) -> None:
    """Each gets the promised error, in this process nothing is allocated for it, and the next image is decoded."""
    source, expected = images()[name]
    vision.pixels(Image(picture()))
    before = peak_of(vision)
    with pytest.raises(MediaError, match=expected):
        vision.widen(Image(source), FACTS, BUDGET)
    assert peak_of(vision) < before + 200 * 2**20
    assert np.array_equal(vision.pixels(Image(picture())), picture())


def test_f08_a_small_image_is_no_mistake(vision: Vision) -> None:
    """One pixel is seen at the least size."""
    assert vision.widen(Image(np.zeros((1, 1, 3), dtype=np.uint8)), FACTS, BUDGET)[0] == 4


@pytest.mark.parametrize("name", sorted(options()))
def test_f11_hostile_options_are_refused(vision: Vision, name: str) -> None:
    """Numbers have a type and a range; a video has no more frames than it has."""
    kind, given = options()[name]
    data = VIDEO if kind is Video else picture()
    with pytest.raises(MediaError):
        vision.widen(kind(data, options=given), FACTS, BUDGET)


def _video() -> bytes:
    import av

    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    return sink.getvalue()


VIDEO = _video()


def videos() -> dict[str, tuple[Any, str]]:
    return {
        "empty": (b"", "no known format"),
        "text": (b"#EXTM3U\nfile:///etc/passwd\n", "no known format"),
        "concat list": (b"ffconcat version 1.0\nfile /etc/passwd\n", "no known format"),
        "an image": (saved(picture()), "image/png"),
        "mp4 of noise": (b"\0\0\0\x20ftypisom" + bytes(range(256)) * 9, "no video|refused"),
        "webm of noise": (b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 9, "no video|refused"),
        "avi of noise": (b"RIFF\xff\0\0\0AVI " + bytes(range(256)) * 9, "no video|refused"),
        "cut in its header": (VIDEO[:100], "refused"),
    }


@pytest.mark.parametrize("name", sorted(videos()))
def test_f11_hostile_videos_are_refused(vision: Vision, name: str) -> None:
    """By content; a playlist opens nothing."""
    source, expected = videos()[name]
    with pytest.raises(MediaError, match=expected):
        vision.widen(Video(source), FACTS, BUDGET)
    assert vision.widen(Video(VIDEO), FACTS, BUDGET)[0] > 0


def test_f11_frames_are_bounded_by_what_is_there(vision: Vision) -> None:
    """More frames than the limits allow, a long video, and one whose frames together are too many pixels."""
    assert vision.widen(Video(VIDEO, options={"nframes": 8}), FACTS, BUDGET)[2].grid[0] == 4
    small = Vision(MediaLimits(seconds=1.0))
    with pytest.raises(MediaError, match="at most 1"):
        small.widen(Video(VIDEO), FACTS, BUDGET)
    few = Vision(MediaLimits(total_pixels=64 * 48))
    with pytest.raises(MediaError, match="more than 3072 pixels"):
        few.widen(Video(VIDEO), FACTS, BUDGET)
    for made in (small, few):
        made.workers.close()


# --- the child -----------------------------------------------------------------------------------------------------


def test_a_worker_is_reused_and_started_anew_when_it_dies(vision: Vision) -> None:
    """Many images take one process; one that is killed costs nothing but a start."""
    workers = Workers("qwen_agent_kit_vision.decode:decode", most=1)
    ask = {"what": "image", "formats": ["PNG"], "pixels": 10**6}
    for _ in range(50):
        workers.decode(saved(picture()), "image", ask)
    assert workers.started == 1
    for worker in list(workers._all):
        os.kill(worker._process.pid, 9)
        worker._process.wait()
    assert workers.decode(saved(picture()), "image", ask).arrays[0].shape == (40, 60, 3)
    assert workers.started == 2
    workers.close()


@pytest.mark.parametrize(
    ("decoder", "code"),
    [
        ("hostile_decoders:hang", "timeout"),
        ("hostile_decoders:die", "decoder_died"),
        ("hostile_decoders:eat", "too_large"),
    ],
)
def test_f08_a_decoder_may_hang_die_or_eat(monkeypatch: pytest.MonkeyPatch, decoder: str, code: str) -> None:
    """Wall time and memory are bounded from outside, and a crash is an error of the file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
    workers = Workers(decoder, most=1, limits=MediaLimits(wall=3.0, memory=2**26))
    with pytest.raises(MediaError) as caught:
        workers.decode(b"x", "image")
    assert caught.value.code == code
    workers.close()


def test_f12_many_media_are_bounded_together() -> None:
    """200 images in one request, or more pixels than a request may have, are refused before anything is encoded."""
    from qwen_agent_kit import Message
    from qwen_agent_kit.host.media import check_items

    with pytest.raises(MediaError, match="200 media"):
        check_items([Message("user", tuple(Image(b"x") for _ in range(200)))])


def test_f12_pixels_are_summed_by_headers_before_one_is_decoded(tmp_path: Path) -> None:
    """Five pictures of 16,384 x 16,384 that hold no pixel at all: bytes, a path, every format whose header tells."""
    from qwen_agent_kit import Message
    from qwen_agent_kit.host.media import check_items
    from qwen_agent_kit.media import image_size

    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 16_384, 16_384)
    (tmp_path / "large.png").write_bytes(head)
    pictures = [Image(head), Image(tmp_path / "large.png")] * 2
    with pytest.raises(MediaError, match="state 1073741824 pixels together") as caught:
        check_items([Message("user", tuple(pictures))])
    assert caught.value.code == "too_large"
    check_items([Message("user", tuple(pictures[:3]))])
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        for lossless in (False, True):
            sink = io.BytesIO()
            options = {"lossless": lossless} if form == "WEBP" else {}
            Pillow.new("RGB", (301, 77), "red").save(sink, format=form, **options)
            assert image_size(sink.getvalue()) == (301, 77), form


@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF1234WEBPVP8X"]),
    st.binary(max_size=60),
)
def test_f12_any_header_is_read_or_left(magic: bytes, rest: bytes) -> None:
    """No bytes make it raise or run on."""
    from qwen_agent_kit.media import image_size

    size = image_size(magic + rest)
    assert size is None or min(size) >= 0


FOREIGN = {
    "FITS": b"SIMPLE  =                    T",
    "PSD": b"8BPS\0\1",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0",
    "TIFF": b"II*\0\x08\0\0\0",
    "TIFF, other end first": b"MM\0*\0\0\0\x08",
    "SVG": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "ICO": b"\0\0\1\0\1\0",
    "PPM": b"P6\n1 1\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_f09_formats_outside_the_list_are_told_by_content(vision: Vision, name: str) -> None:
    """However the file is called: refused before a decoder sees it."""
    with pytest.raises(MediaError) as caught:
        vision.widen(Image(FOREIGN[name] + b"\0" * 64), ModelFacts({"model_type": "qwen2_vl"}), MediaBudget())
    assert caught.value.code == "unsupported_format"
