"""Models that see answer as transformers does, id for id in float32, however prompts are cut and whatever is cached."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qwen_agent_kit_vision import register_backends
from qwen_agent_kit_vision.items import Vision
from qwen_agent_kit_vision.positions import grid_positions, positions
from qwen_agent_kit_vision.tower import Tower

from qwen_agent_kit import Image, Message, Text, Video, foreign
from qwen_agent_kit.backends import ChatRequest, Finish, Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.host.local import LocalChatModel
from qwen_agent_kit.host.media import media_of
from qwen_agent_kit.models import load_model
from qwen_agent_kit.placement import make_plan

IMAGE_PAD, VIDEO_PAD = 151655, 151656
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(frames: int = 12, rate: int = 4, size: tuple[int, int] = (64, 48)) -> bytes:
    """A lossless video whose frames differ."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for index in range(frames):
            flat = np.full((size[1], size[0], 3), index * 20 % 256, dtype=np.uint8)
            flat[: 4 * (index + 1), :8] = (255, 0, index)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return sink.getvalue()


@contextmanager
def opened(folder: Path, chunk: int = 512) -> Iterator[LocalChatModel]:
    backend = register_backends()[0]
    loaded = load_model(folder, quant="fp32")
    media = media_of(folder, [backend])
    assert media is not None
    engine = Engine(loaded, chunk=chunk, encoder=media.encoder(), kv_bytes=2**26)
    model = LocalChatModel("tiny", loaded, engine, make_plan("tiny", folder, quant="fp32"), media=media)
    try:
        yield model
    finally:
        model.close()


def ours(model: LocalChatModel, *messages: Message, count: int = 10) -> Finish:
    request = ChatRequest(messages, sampling=Sampling(max_tokens=count, temperature=0))
    last = list(model.stream(request))[-1]
    assert isinstance(last, Finish)
    assert last.ids is not None
    return last


def theirs(their_model: Any, ids: list[int], count: int = 10, **inputs: Any) -> list[int]:
    tensor = torch.tensor([ids])
    types = (tensor == IMAGE_PAD).int() + 2 * (tensor == VIDEO_PAD).int()
    with torch.no_grad():
        out = their_model.generate(
            input_ids=tensor,
            attention_mask=torch.ones_like(tensor),
            mm_token_type_ids=types,
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **inputs,
        )
    found: list[int] = out[0, len(ids) :].tolist()
    return found


def processed(folder: Path, images: list[np.ndarray]) -> dict[str, Any]:
    """What transformers' own image processor gives for the model's files."""
    import json

    transformers = foreign.transformers()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    if settings.get("patch_size") == 16:
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    made = transformers.Qwen2VLImageProcessor(**settings)(images=images, return_tensors="pt")
    return dict(made)


def ask(*parts: Any) -> Message:
    return Message("user", tuple(Image(p) if isinstance(p, np.ndarray) else p for p in parts))


A, B = picture(1), picture(2, 100, 50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "parts", [("what? ", A), (A, " and ", B, " then ", A, " which?"), (B, A)], ids=["one", "mixed", "adjacent"]
)
def test_greedy_output_equals_transformers(models: Any, kind: str, parts: tuple[Any, ...]) -> None:
    """One image, several in mixed order, and several side by side."""
    folder, their_model = models[kind]
    message = ask(*parts)
    with opened(folder) as model:
        ids = model.renderer.render((message,)).ids
        expected = theirs(their_model, ids, **processed(folder, [p for p in parts if isinstance(p, np.ndarray)]))
        assert list(ours(model, message).ids or ()) == expected
        assert len(set(expected)) > 1, "a model that says one thing shows nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [3, 16])
def test_prefill_may_be_cut_anywhere(models: Any, kind: str, chunk: int) -> None:
    """Chunks end inside, before and behind images; a second run starts from what the first left."""
    folder, _ = models[kind]
    message = ask("look ", A, " and ", B, " ok?")
    with opened(folder) as model:
        whole = ours(model, message).ids
    with opened(folder, chunk) as model:
        cold, warm = ours(model, message), ours(model, message)
    assert cold.ids == warm.ids == whole
    assert warm.usage.cached_tokens > cold.usage.cached_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_grids_equal_the_processor(models: Any, kind: str) -> None:
    """What the tower gets is what the model's own processor makes of the same images."""
    folder, _ = models[kind]
    media = media_of(folder, register_backends())
    assert media is not None
    tower = Tower(media.facts, _tensors(folder), "cpu")
    for image in (A, B, picture(3, 11, 300), picture(4, 900, 700)):
        length, _, item = media.widen(Image(image))
        expected = processed(folder, [image])
        assert torch.equal(tower.pixel_values(item), expected["pixel_values"])
        assert list(item.grid) == expected["image_grid_thw"][0].tolist()
        assert length == item.length == int(expected["image_grid_thw"][0].prod()) // 4


def _tensors(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_images_equal_get_rope_index(models: Any, kind: str) -> None:
    """m-rope positions, and the place of the first generated id."""
    folder, their_model = models[kind]
    with opened(folder) as model:
        rendered = model.renderer.render((ask("a", A, "b", B, A, "c"),))
    found, following = positions(rendered.ids, rendered.media)
    ids = torch.tensor([rendered.ids])
    expected, delta = their_model.model.get_rope_index(
        ids, (ids == IMAGE_PAD).int(), image_grid_thw=processed(folder, [A, B, A])["image_grid_thw"]
    )
    assert found.tolist() == expected[:, 0].tolist()
    assert following == int(delta) + len(rendered.ids)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_video_equals_transformers(models: Any, kind: str) -> None:
    """Frames by qwen_vl_utils' numbers, seen at the processor's size; output equals, with an image beside it."""
    folder, their_model = models[kind]
    data = clip()
    message = Message("user", (Image(A), Text(" and "), Video(data, options={"fps": 2.0}), Text(" which?")))
    media = media_of(folder, register_backends())
    assert media is not None
    item = media.widen(Video(data, options={"fps": 2.0}))[2]
    assert item.grid[0] == 3
    assert item.timestamps == pytest.approx((0.25, 1.375, 2.5), abs=0.2)
    with opened(folder) as model:
        rendered = model.renderer.render((message,))
        made = ours(model, message)
        again = ours(model, message)
    assert made.ids == again.ids
    video = Tower(media.facts, _tensors(folder), "cpu").pixel_values(item)
    inputs = {"pixel_values_videos": video, "video_grid_thw": torch.tensor([item.grid]), **processed(folder, [A])}
    if kind == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([item.interval / 2])  # its tokens_per_second is 2
    assert list(made.ids or ()) == theirs(their_model, rendered.ids, **inputs)
    ids = torch.tensor([rendered.ids])
    grids = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    types = (ids == IMAGE_PAD).int() + 2 * (ids == VIDEO_PAD).int()
    spots = their_model.model.get_rope_index(ids, types, **grids)[0][:, 0]
    assert positions(rendered.ids, rendered.media)[0].tolist() == spots.tolist()


def test_video_pixels_equal_the_video_processor(models: Any) -> None:
    """The processor, given the chosen frames whole, makes the same values."""
    folder, _ = models["qwen2_5_vl"]
    media = media_of(folder, register_backends())
    assert media is not None
    item = media.widen(Video(clip(), options={"nframes": 12}))[2]
    frames = np.stack([f.to_ndarray(format="rgb24") for f in av.open(io.BytesIO(clip())).decode(video=0)])
    processor = Vision()._processor(media.facts)[1]
    expected = processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        return_tensors="pt",
    )
    found = Tower(media.facts, _tensors(folder), "cpu").pixel_values(item)
    assert torch.equal(found, expected["pixel_values_videos"])
    assert list(item.grid) == expected["video_grid_thw"][0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_f62_two_images_never_share(models: Any, kind: str) -> None:
    """Equal text and size, other pixels: own keys and values, own tower output. The same again is encoded once."""
    folder, their_model = models[kind]
    one, other = picture(7), picture(8)
    with opened(folder) as model:
        first = ours(model, ask("what? ", one))
        second = ours(model, ask("what? ", other))
        assert model.engine.media_counters.encoded == 2
        again = ours(model, ask("what? ", one))
        assert model.engine.media_counters.encoded == 2
        assert model.engine.media_counters.found == 1
        start = model.renderer.render((ask("what? ", one),)).media[0].start
        ids = model.renderer.render((ask("what? ", other),)).ids
    assert second.usage.cached_tokens <= start
    assert first.ids == again.ids
    assert list(second.ids or ()) == theirs(their_model, ids, **processed(folder, [other]))


def test_f62_one_file_seen_in_two_ways_is_two_media(models: Any) -> None:
    """The digest covers the pixel budget and the kind, not the bytes alone."""
    folder, _ = models["qwen2_5_vl"]
    media = media_of(folder, register_backends())
    assert media is not None
    plain, small = media.widen(Image(A)), media.widen(Image(A, options={"max_pixels": 28 * 28 * 4}))
    assert plain[1] != small[1]
    assert small[0] < plain[0]
    assert media.widen(Image(A))[1] == plain[1]


def test_many_requests_at_once_equal_one_by_one(models: Any) -> None:
    """Interleaved requests with media keep to their own."""
    from concurrent.futures import ThreadPoolExecutor

    folder, _ = models["qwen3_vl"]
    messages = [ask(f"{i} ", picture(20 + i % 3), " and ", picture(30 + i)) for i in range(6)]
    with opened(folder) as model:
        alone = [ours(model, message).ids for message in messages]
    with opened(folder, 16) as model, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda m: ours(model, m).ids, messages)) == alone


def test_video_of_qwen3_vl_equals_transformers(models: Any) -> None:
    """A time before each step, an image beside it: ids are the processor's, and greedy output is the model's."""
    folder, their_model = models["qwen3_vl"]
    data, options = clip(frames=11, size=(96, 64)), {"nframes": 10}
    message = Message("user", (Text("what "), Video(data, options=options), Text(" and "), Image(A), Text("?")))
    media = media_of(folder, register_backends())
    assert media is not None
    runs = media.widen(Video(data, options=options))
    assert isinstance(runs, list)
    assert len({run.digest for run in runs}) == len(runs) == 5
    transformers = foreign.transformers()
    images, videos = Vision()._processor(media.facts)
    processor = transformers.Qwen3VLProcessor(images, transformers.AutoTokenizer.from_pretrained(folder), videos)
    chosen = np.linspace(0, 10, 10).round().astype(int)
    frames = np.stack([f.to_ndarray(format="rgb24") for f in av.open(io.BytesIO(data)).decode(video=0)])[chosen]
    text = "<|im_start|>user\nwhat <|vision_start|><|video_pad|><|vision_end|> and <|vision_start|><|image_pad|>"
    given = processor(
        text=[f"{text}<|vision_end|>?<|im_end|>\n<|im_start|>assistant\n"],
        images=[A],
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        video_metadata=[{"fps": 4.0, "total_num_frames": 11, "frames_indices": chosen.tolist()}],
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        return_tensors="pt",
    )
    with opened(folder) as model:
        rendered = model.renderer.render((message,))
        assert rendered.ids == given["input_ids"][0].tolist()
        whole, again = ours(model, message), ours(model, message)
    with opened(folder, 7) as model:
        cut = ours(model, message)
    assert positions(rendered.ids, rendered.media)[0].tolist() == _their_positions(their_model, given)
    values = torch.cat([Tower(media.facts, _tensors(folder), "cpu").pixel_values(run.item) for run in runs])
    assert torch.equal(values, given["pixel_values_videos"])
    inputs = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    assert list(whole.ids or ()) == theirs(their_model, rendered.ids, **inputs)
    assert whole.ids == again.ids == cut.ids


def _their_positions(their_model: Any, given: Any) -> Any:
    grids = {name: given[name] for name in ("image_grid_thw", "video_grid_thw")}
    ids = given["input_ids"]
    types = (ids == IMAGE_PAD).int() + 2 * (ids == VIDEO_PAD).int()
    return their_model.model.get_rope_index(ids, types, **grids)[0][:, 0].tolist()


@given(st.floats(0.02, 60.0), st.integers(1, 384))
def test_times_are_counted_in_float32_as_transformers_does(rate: float, steps: int) -> None:
    """25 positions a second at any rate of frames: the products of Qwen2.5-Omni's get_rope_index, to the last one."""
    seconds = torch.tensor([2 / rate])[0]
    expected = (torch.arange(steps) * seconds.cpu().float() * 25).long()
    assert grid_positions((steps, 2, 2), 2, 2 / rate, 25)[0].tolist() == expected.tolist()
