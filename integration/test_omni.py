"""Qwen2.5-Omni's thinker, driven by the plugins that see and hear together, answers as transformers does, id for id."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import qwen_agent_kit_audio as audio
import qwen_agent_kit_vision as vision
import tiny_omni
import torch
from qwen_agent_kit_audio.decode import resampled

from qwen_agent_kit import Agent, Audio, Host, Image, Message, Sampling, Text, Video
from qwen_agent_kit.backends import Backend, ChatRequest, Finish
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.host.local import LocalChatModel
from qwen_agent_kit.host.media import LocalMedia, _Tensors, media_of
from qwen_agent_kit.models import load_model
from qwen_agent_kit.placement import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the processor

SMALL = {"min_pixels": 784, "max_pixels": 28 * 28 * 6}
"""Bounds of a video's frames that keep the prompts short."""


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory, qwen25_dir: Path) -> tuple[Path, Any, Any]:
    """The published form's directory, transformers' thinker and processor."""
    folder = tmp_path_factory.mktemp("omni")
    model = tiny_omni.make_thinker()
    tiny_omni.write(folder, qwen25_dir, model)
    return folder, model, tiny_omni.processor(folder)


def backends() -> list[Backend]:
    return [*vision.register_backends(), *audio.register_backends()]


def media(folder: Path, which: list[Backend] | None = None) -> LocalMedia:
    found = media_of(folder, backends() if which is None else which)
    assert found is not None
    return found


@contextmanager
def opened(folder: Path, chunk: int = 512) -> Iterator[LocalChatModel]:
    loaded = load_model(folder, quant="fp32")
    ears = media(folder)
    engine = Engine(loaded, chunk=chunk, encoder=ears.encoder(), kv_bytes=2**26)
    model = LocalChatModel("tiny", loaded, engine, make_plan("tiny", folder, quant="fp32"), media=ears)
    try:
        yield model
    finally:
        model.close()


def ours(model: LocalChatModel, message: Message, count: int = 8) -> Finish:
    last = list(model.stream(ChatRequest((message,), sampling=Sampling(max_tokens=count, temperature=0))))[-1]
    assert isinstance(last, Finish)
    return last


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray:
    t = np.arange(round(seconds * 16_000)) / 16_000
    return (0.5 * np.sin(2 * np.pi * hertz * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def clip(frames: int = 12, rate: int = 4, sound: np.ndarray | None = None, hertz: int = 16_000) -> bytes:
    """A lossless video whose frames differ, and its sound, float32 [n] or [channels, n] at ``hertz``."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        layout = "mono" if sound is None or sound.ndim == 1 else "stereo"
        heard = container.add_stream("pcm_f32le", rate=hertz, layout=layout) if sound is not None else None
        for index in range(frames):
            flat = np.full((48, 64, 3), index * 20 % 256, dtype=np.uint8)
            flat[: 4 * (index + 1), :8] = (255, 0, index)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
        if heard is not None and sound is not None:
            packed = np.ascontiguousarray(sound.T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
            frame.sample_rate, frame.pts = hertz, 0
            container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return sink.getvalue()


def frames_of(video: Video, chosen: list[int]) -> torch.Tensor:
    shown = [frame.to_ndarray(format="rgb24") for frame in av.open(io.BytesIO(video.source)).decode(video=0)]
    return torch.from_numpy(np.stack([shown[i] for i in chosen])).permute(0, 3, 1, 2)


def given(omni: Any, message: Message, *, rate: float = 4.0, chosen: list[int] | None = None, **more: Any) -> Any:
    """What transformers' processor makes of a message: whole frames, whole pictures, samples."""
    parts = [
        {"type": part.kind} if part.kind != "text" else {"type": "text", "text": part.text} for part in message.parts
    ]  # type: ignore[union-attr]
    text = omni[2].apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
    of = {kind: [part for part in message.media if part.kind == kind] for kind in ("image", "audio", "video")}
    inputs: dict[str, Any] = {}
    if of["image"]:
        inputs["images"] = [PICTURES[id(part)] for part in of["image"]]
    if of["audio"] or "heard" in more:
        inputs["audio"] = [CLIPS[id(part)] for part in of["audio"]] if "heard" not in more else more.pop("heard")
    if of["video"]:
        inputs["videos"] = [frames_of(part, chosen or list(range(12))) for part in of["video"]]
        bounds = {"shortest_edge": SMALL["min_pixels"], "longest_edge": SMALL["max_pixels"]}
        if "max_pixels" not in of["video"][0].options:
            bounds = {}
        inputs["videos_kwargs"] = {"fps": rate, "do_sample_frames": False, "cap_pixels_per_frame": True}
        inputs["videos_kwargs"] |= {"size": bounds} if bounds else {}
    return omni[2](text=[text], return_tensors="pt", **inputs, **more)


PICTURES: dict[int, np.ndarray] = {}
CLIPS: dict[int, np.ndarray] = {}


def image(seed: int, height: int = 60, width: int = 90) -> Image:
    part = Image(array := picture(seed, height, width))
    PICTURES[id(part)] = array
    return part


def sound(seconds: float, hertz: float = 440.0) -> Audio:
    part = Audio(array := tone(seconds, hertz))
    CLIPS[id(part)] = array
    return part


A, B = image(1), image(2, 100, 50)
X, Y = sound(0.9), sound(3.3, 900.0)
V = Video(clip(), options={"nframes": 12, **SMALL})


def theirs(omni: Any, inputs: Any, count: int = 8, **more: Any) -> list[int]:
    with torch.no_grad():
        out = omni[1].generate(
            **inputs, do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0, **more
        )
    found: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return found


def places(omni: Any, inputs: Any, heard: bool = False) -> tuple[list[list[int]], int]:
    """transformers' positions, and the next one's."""
    mask = inputs.get("feature_attention_mask")
    found, delta = omni[1].get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        heard,
        None if mask is None else mask.sum(-1),
        inputs.get("video_second_per_grid"),
    )
    return found[:, 0].tolist(), int(delta) + inputs["input_ids"].shape[1]


MIXES: dict[str, tuple[Any, ...]] = {
    "picture": (Text("what? "), A),
    "clip": (Text("hear "), Y),
    "picture and clip": (A, Text(" and "), X, Text(" which?")),
    "many": (X, B, Text(" then "), A, Y, Text(" so "), X, A, Text("?")),
    "video": (Text("look "), V, Text("?")),
    "all": (V, Text(" beside "), A, X, Text(" what?")),
}


@pytest.mark.parametrize("mix", MIXES)
def test_ids_positions_and_greedy_output_equal_transformers(omni: Any, mix: str) -> None:
    """Placeholder counts, m-rope positions and output; whole and in chunks of 5, cold and warm; all encoded once."""
    message = Message("user", MIXES[mix])
    inputs = given(omni, message)
    expected = theirs(omni, inputs)
    assert len(set(expected)) > 1, "a model that says one thing shows nothing"
    with opened(omni[0]) as whole, opened(omni[0], 5) as cut:
        rendered = whole.renderer.render((message,))
        assert rendered.ids == inputs["input_ids"][0].tolist()
        found, following = media(omni[0]).backend.positions(rendered.ids, rendered.media)  # type: ignore[misc]
        assert (found.tolist(), following) == places(omni, inputs)
        for model in (whole, cut):
            cold, warm = ours(model, message), ours(model, message)
            assert list(cold.ids or ()) == list(warm.ids or ()) == expected
            assert warm.usage.cached_tokens > cold.usage.cached_tokens == 0
            assert model.engine.media_counters.encoded == len({id(part) for part in message.media})


@pytest.mark.parametrize("fps", [0.8, 1.0, 2.0, 3.0])
def test_frames_are_chosen_by_qwen_vl_utils_and_placed_by_their_time(omni: Any, fps: float) -> None:
    """25 positions a second, in float32 as transformers counts, at every rate; pixels and grids are the processor's."""
    part = Video(clip(40, 4), options={"fps": fps})
    item = media(omni[0]).widen(part)[2].item  # type: ignore[union-attr]
    count = len(item.pixels)
    chosen = np.linspace(0, 39, count).round().astype(int).tolist()
    message = Message("user", (part, Text("?")))
    inputs = given(omni, message, rate=count / 40 * 4, chosen=chosen)
    assert list(item.grid) == inputs["video_grid_thw"][0].tolist()
    tower = vision.tower.Tower(media(omni[0]).facts, _Tensors(omni[0]), "cpu")
    assert torch.equal(tower.pixel_values(item), inputs["pixel_values_videos"])
    with opened(omni[0]) as model:
        rendered = model.renderer.render((message,))
    assert rendered.ids == inputs["input_ids"][0].tolist()
    found, following = media(omni[0]).backend.positions(rendered.ids, rendered.media)  # type: ignore[misc]
    assert (found.tolist(), following) == places(omni, inputs)


def test_pixels_and_features_equal_the_processor(omni: Any) -> None:
    """What the towers get is what transformers' processor makes of the same picture and the same samples."""
    ears = media(omni[0])
    inputs = given(omni, Message("user", (A, X, B, Y)))
    seer = vision.tower.Tower(ears.facts, _Tensors(omni[0]), "cpu")
    seen = torch.cat([seer.pixel_values(ears.widen(part)[2].item) for part in (A, B)])  # type: ignore[union-attr]
    assert torch.equal(seen, inputs["pixel_values"])
    hearer = audio.tower.OmniTower(ears.facts, _Tensors(omni[0]), "cpu")
    for number, part in enumerate((X, Y)):
        features = hearer.features(ears.widen(part)[2].item)  # type: ignore[union-attr]
        filled = int(inputs["feature_attention_mask"][number].sum())
        assert torch.equal(features, inputs["input_features"][number, :, :filled])


@pytest.mark.parametrize(("seconds", "frames", "nframes"), [(3.0, 12, 12), (7.3, 12, 12), (1.2, 40, 40), (10.0, 40, 8)])
def test_a_video_is_seen_and_heard_by_turns(omni: Any, seconds: float, frames: int, nframes: int) -> None:
    """Sound as long as the pictures, longer and shorter, and pictures seconds apart: chunks of two seconds by turns."""
    heard = tone(seconds, 700.0)
    options = {"nframes": nframes, "sound": True, **SMALL}
    message = Message(
        "user", (Text("see "), Video(clip(frames, 4, heard), options=options), Text(" and "), A, Text("?"))
    )
    chosen = np.linspace(0, frames - 1, nframes).round().astype(int).tolist()
    rate = nframes / frames * 4
    inputs = given(
        omni,
        message,
        rate=rate,
        chosen=chosen,
        heard=[heard],
        load_audio_from_video=True,
        audio_from_video_indices=[0],
    )
    expected = theirs(omni, inputs, use_audio_in_video=True)
    with opened(omni[0]) as whole, opened(omni[0], 7) as cut:
        rendered = whole.renderer.render((message,))
        assert rendered.ids == inputs["input_ids"][0].tolist()
        found, following = media(omni[0]).backend.positions(rendered.ids, rendered.media)  # type: ignore[misc]
        assert (found.tolist(), following) == places(omni, inputs, heard=True)
        assert list(ours(whole, message).ids or ()) == expected
        assert list(ours(cut, message).ids or ()) == list(ours(cut, message).ids or ()) == expected


def test_two_videos_with_sound_beside_a_clip(omni: Any) -> None:
    """Each counts from its own beginning; what is between them counts like text."""
    one, two = tone(3.0, 500.0), tone(2.2, 800.0)
    videos = [Video(clip(12, 4, heard), options={"nframes": 12, "sound": True, **SMALL}) for heard in (one, two)]
    message = Message("user", (videos[0], videos[1], Text(" or "), X, Text("?")))
    inputs = given(
        omni,
        message,
        heard=[one, two, CLIPS[id(X)]],
        load_audio_from_video=True,
        audio_from_video_indices=[0, 1, None],
    )
    with opened(omni[0]) as model:
        rendered = model.renderer.render((message,))
        assert rendered.ids == inputs["input_ids"][0].tolist()
        found, following = media(omni[0]).backend.positions(rendered.ids, rendered.media)  # type: ignore[misc]
        assert (found.tolist(), following) == places(omni, inputs, heard=True)
        assert list(ours(model, message).ids or ()) == theirs(omni, inputs, use_audio_in_video=True)


def heard_in(omni: Any, video: Video) -> np.ndarray:
    """The samples that the ears get of a video."""
    runs = media(omni[0]).widen(video)
    assert isinstance(runs, list)
    found: np.ndarray = next(run.item.item.item for run in runs if run.token == "<|AUDIO|>").samples
    return found


def test_sound_of_any_rate_becomes_16_khz_mono(omni: Any) -> None:
    """As that of a sound file does; ``video_start`` and ``video_end`` cut both halves."""
    left, right = (np.repeat(tone(3.0, hertz), 3)[: 44_100 * 3] for hertz in (300.0, 700.0))
    data = clip(12, 4, np.stack([left, right]), 44_100)
    options = {"nframes": 4, "sound": True, **SMALL}
    expected = resampled((left + right) / 2, 44_100)
    assert np.allclose(heard_in(omni, Video(data, options=options)), expected, atol=1e-6)
    part = heard_in(omni, Video(data, options={**options, "video_start": 1.0, "video_end": 2.5}))
    assert len(part) == 24_000
    assert np.allclose(part[400:-400], expected[16_000:40_000][400:-400], atol=1e-2)


def test_hostile_sound_of_a_video_is_refused(omni: Any) -> None:
    """Samples that are not finite, and more of it than is heard at once."""
    broken = tone(1.0)
    broken[77] = np.nan
    options = {"nframes": 4, "sound": True, **SMALL}
    with pytest.raises(MediaError, match="its sound holds samples that are not finite"):
        media(omni[0]).widen(Video(clip(12, 4, broken), options=options))
    with pytest.raises(MediaError, match="allowed: at most 300 at a time") as caught:
        media(omni[0]).widen(Video(clip(12, 4, np.zeros(16_000 * 301, dtype=np.float32)), options=options))
    assert caught.value.code == "too_long"


def test_a_silent_video_is_only_seen(omni: Any) -> None:
    """``sound`` of a video without any changes nothing; another value than a flag is refused."""
    ears = media(omni[0])
    plain, asked = (
        ears.widen(Video(clip(), options={"nframes": 12, **SMALL, **more})) for more in ({}, {"sound": True})
    )
    assert isinstance(plain, tuple)
    assert isinstance(asked, tuple)
    assert plain[0] == asked[0]
    with pytest.raises(MediaError, match="`sound` of the video is 1; allowed: True or False"):
        ears.widen(Video(clip(), options={"sound": 1}))


def test_requests_at_once_equal_one_by_one(omni: Any) -> None:
    """Interleaved requests keep to their own pictures and clips."""
    messages = [
        Message("user", (Text(f"{i} "), image(20 + i % 3), Text(" and "), sound(0.4 + i / 10, 300.0 + 90 * i)))
        for i in range(6)
    ]
    with opened(omni[0]) as model:
        alone = [ours(model, message).ids for message in messages]
    with opened(omni[0], 16) as model, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda m: ours(model, m).ids, messages)) == alone
    assert len(set(alone)) > 1


def test_the_talker_is_not_read_and_the_thinker_alone_is_the_same(omni: Any, tmp_path: Path, qwen25_dir: Path) -> None:
    """Of the published checkpoint only ``thinker.`` counts; a thinker saved by itself answers the same."""
    omni[1].save_pretrained(tmp_path)
    tiny_omni.write_texts(tmp_path, qwen25_dir)
    message = Message("user", (A, X, Text("?")))
    with opened(omni[0]) as published, opened(tmp_path) as alone:
        assert ours(published, message).ids == ours(alone, message).ids
        towers = [p.numel() for n, p in omni[1].named_parameters() if "visual" in n or "audio_tower" in n]
        assert media(omni[0]).tower_bytes(published.loaded.config) == 4 * sum(towers)
        assert media(tmp_path).tower_bytes(alone.loaded.config) == 4 * sum(towers)
    planned = make_plan("tiny", omni[0], quant="fp32")
    assert planned.weight_bytes == 4 * sum(p.numel() for p in omni[1].parameters())


def test_with_one_plugin_the_model_takes_what_that_one_takes(omni: Any) -> None:
    """Seeing without hearing: pictures and videos, no clips, and no sound of a video."""
    sees = media(omni[0], vision.register_backends())
    hears = media(omni[0], audio.register_backends())
    assert (sees.kinds, hears.kinds) == ({"text", "image", "video"}, {"text", "audio"})
    with pytest.raises(UsageError, match="found a part of kind 'audio'"):
        sees.widen(X)
    with pytest.raises(MediaError, match="holds what no installed backend takes"):
        sees.widen(Video(clip(12, 4, tone(3.0)), options={"nframes": 12, "sound": True, **SMALL}))


def test_routing_takes_it_for_a_conversation_of_pictures_and_clips(omni: Any) -> None:
    """The backend is both plugins as one; the second turn's clip finds the first turn's picture in the cache."""
    with Host(quant="fp32") as host:
        agent = Agent(str(omni[0]), host=host, sampling=Sampling(max_tokens=4, temperature=0))
        chat = agent.chat()
        first = chat.run("What is it?", images=[picture(1)]).steps[0]
        second = chat.run("And what was said?", audio=[tone(0.9)]).steps[0]
        assert (first.backend, second.backend) == ("audio+vision", "audio+vision")
        assert first.reason == "the narrowest that covers image, text"
        assert second.usage.cached_tokens >= first.usage.prompt_tokens
        assert host.resident == {"audio+vision"}
        model: Any = host.open(str(omni[0]))
        assert model.caps.kinds == {"text", "image", "audio", "video"}
        assert model.engine.media_counters.encoded == 2
