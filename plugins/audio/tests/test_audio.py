"""A model that hears answers as transformers does; every file becomes the samples that it holds, or a clear error."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from qwen_agent_kit_audio import Heard, join, register_backends, register_tools, windows
from qwen_agent_kit_audio.decode import resampled
from qwen_agent_kit_audio.items import Hearing, mel_frames, tokens
from qwen_agent_kit_audio.tower import Tower, extractor
from qwen_agent_kit_audio.windows import stream

from qwen_agent_kit import Audio, Message, Text, foreign
from qwen_agent_kit.backends import ChatRequest, Finish, MediaBudget, ModelFacts, Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.host.local import LocalChatModel
from qwen_agent_kit.host.media import media_of
from qwen_agent_kit.models import load_model
from qwen_agent_kit.placement import make_plan

PAD = 151665
CONFORMANCE = os.environ.get("QAK_CONFORMANCE", "")


def tone(seconds: float = 0.5, pitch: float = 440.0, rate: int = 16_000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * t) * np.linspace(0.2, 1, len(t))).astype(np.float32)


def file_of(samples: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, format=form, subtype=subtype)
    return sink.getvalue()


@contextmanager
def opened(folder: Path, chunk: int = 512) -> Iterator[LocalChatModel]:
    loaded = load_model(folder, quant="fp32")
    media = media_of(folder, register_backends())
    assert media is not None
    engine = Engine(loaded, chunk=chunk, encoder=media.encoder(), kv_bytes=2**26)
    model = LocalChatModel("tiny", loaded, engine, make_plan("tiny", folder, quant="fp32"), media=media)
    try:
        yield model
    finally:
        model.close()


def ours(model: LocalChatModel, message: Message) -> Finish:
    last = list(model.stream(ChatRequest((message,), sampling=Sampling(max_tokens=8, temperature=0))))[-1]
    assert isinstance(last, Finish)
    return last


def theirs(their_model: Any, ids: list[int], clips: list[np.ndarray]) -> list[int]:
    whisper = foreign.transformers().WhisperFeatureExtractor(feature_size=128)
    made = whisper(clips, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt")
    tensor = torch.tensor([ids])
    with torch.no_grad():
        out = their_model.generate(
            input_ids=tensor,
            attention_mask=torch.ones_like(tensor),
            input_features=made["input_features"],
            feature_attention_mask=made["attention_mask"],
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
            pad_token_id=0,
        )
    found: list[int] = out[0, len(ids) :].tolist()
    return found


A, B = tone(0.4), tone(1.1, 900.0)


@pytest.mark.parametrize("clips", [[A], [A, B, A]], ids=["one", "several"])
def test_greedy_output_equals_transformers(model: Any, clips: list[np.ndarray]) -> None:
    """Placeholder counts and output ids, whole and cut into chunks, cold and warm; a clip is encoded once."""
    folder, their_model = model
    message = Message("user", tuple(part for clip in clips for part in (Text("hear "), Audio(clip))))
    with opened(folder) as one, opened(folder, 5) as cut:
        ids = one.renderer.render((message,)).ids
        assert ids.count(PAD) == sum(tokens(mel_frames(len(clip))) for clip in clips)
        expected = theirs(their_model, ids, clips)
        for heard in (one, cut):
            assert list(ours(heard, message).ids or ()) == expected
            assert list(ours(heard, message).ids or ()) == expected
            assert heard.engine.media_counters.encoded == len({clip.tobytes() for clip in clips})
    assert len(set(expected)) > 1


def test_two_clips_of_one_length_never_share(model: Any) -> None:
    """Equal text and length, other sound: own keys and values, own tower output."""
    folder, their_model = model
    with opened(folder) as heard:
        first = ours(heard, Message("user", (Text("what? "), Audio(tone(0.5, 300)))))
        message = Message("user", (Text("what? "), Audio(tone(0.5, 2000))))
        second = ours(heard, message)
        rendered = heard.renderer.render((message,))
        assert heard.engine.media_counters.encoded == 2
    assert second.usage.cached_tokens <= rendered.media[0].start
    assert list(second.ids or ()) == theirs(their_model, rendered.ids, [tone(0.5, 2000)])
    assert first.ids != second.ids


@pytest.mark.parametrize(
    ("form", "subtype", "near"),
    [("WAV", "FLOAT", 0), ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("FLAC", "PCM_16", 1e-4)],
)
def test_lossless_files_become_their_samples(form: str, subtype: str, near: float) -> None:
    """At 16 kHz mono nothing is changed."""
    found = Hearing().samples(Audio(b""), file_of(A, 16_000, form, subtype), 30.0)
    assert found.dtype == np.float32
    assert np.abs(found - A).max() <= near


@pytest.mark.parametrize("form", ["OGG", "MP3"])
def test_lossy_files_are_read(form: str) -> None:
    """OGG and MP3 are told by content and sound as they did."""
    stereo = np.stack([tone(1.0, 440, 44_100)] * 2, axis=1)
    found = Hearing().samples(Audio(b""), file_of(stereo, 44_100, form, None), 30.0)
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(spectrum.argmax() * 16_000 / len(found) - 440) < 3


def test_any_rate_and_channels_become_16_khz_mono() -> None:
    """Channels are averaged; the resampler is soxr's high quality."""
    left, right = tone(0.5, 300, 44_100), tone(0.5, 700, 44_100)
    data = file_of(np.stack([left, right], axis=1), 44_100)
    found = Hearing().samples(Audio(b""), data, 30.0)
    assert np.allclose(found, resampled((left + right) / 2, 44_100), atol=1e-6)
    assert len(found) == 8000


def test_arrays_know_their_rate() -> None:
    """An array is 16 kHz unless its options say otherwise."""
    plain = Hearing().widen(Audio(A), ModelFacts({}), MediaBudget())
    fast = Hearing().widen(Audio(A, options={"rate": 32_000}), ModelFacts({}), MediaBudget())
    assert len(plain[2].samples) == 2 * len(fast[2].samples)


def hostile() -> dict[str, tuple[Any, str]]:
    good = file_of(A)
    rate = bytearray(good)
    rate[24:28] = (655_350).to_bytes(4, "little")
    many = np.zeros((100, 64), dtype=np.float32)
    endless = file_of(A, 16_000, "WAV", "PCM_16")
    long = np.zeros(16_000 * 31, dtype=np.float32)
    nan = A.copy()
    nan[7] = np.nan
    return {
        "empty": (b"", "empty"),
        "text": (b"hello" * 100, "cannot be read|no sound file"),
        "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "no sound file"),
        "zeros": (bytes(10_000), "no sound file"),
        "only a header": (good[:44], "no sound file|no samples|cut off"),
        "half a header": (good[:20], "no sound file"),
        "rate of 655350": (bytes(rate), "samples a second"),
        "64 channels": (file_of(many), "64 channels"),
        "no samples": (file_of(A[:0]), "no samples"),
        "nan": (file_of(nan), "not finite"),
        "infinite": (file_of(np.array([np.inf] * 900, dtype=np.float32)), "not finite"),
        "too long": (file_of(long, 16_000, "WAV", "PCM_16"), "at a time"),
        "an hour": (file_of(np.zeros(1000 * 3700, dtype=np.float32), 1000, "FLAC", "PCM_16"), "lasts 3700 s"),
        "too short": (file_of(A[:20]), "0.03 s or more"),
        "flac cut": (file_of(A, 16_000, "FLAC", "PCM_16")[:60], "refused"),
        "mp3 of noise": (b"ID3" + bytes(range(256)) * 30, "no sound file"),
        "ogg of noise": (b"OggS" + bytes(range(256)) * 30, "no sound file"),
        "raw au": (b".snd" + b"\xff" * 400, "refused"),
        "claims 4 GB": (endless[:40] + b"\xff\xff\xff\xff" + endless[44:], ""),
        "not bytes": (7, "is a int"),
        "no such file": ("/nowhere/at/all.wav", "cannot read"),
        "a directory": ("/", "regular file|cannot read"),
        "ftp": ("ftp://example.com/a.wav", "scheme"),
        "data without base64": ("data:audio/wav;base64,@@@@", "base64"),
    }


@pytest.fixture(scope="module")
def hearing() -> Hearing:
    return Hearing()


@pytest.mark.parametrize("name", sorted(hostile()))
def test_f10_hostile_sound_is_refused(hearing: Hearing, name: str) -> None:
    """Each gets the promised error; the process that decodes serves the next one."""
    source, expected = hostile()[name]
    if not expected:  # a header that lies about a length that is really there is mended by the reader
        assert hearing.widen(Audio(source), ModelFacts({}), MediaBudget())[0] > 0
    else:
        with pytest.raises(MediaError, match=expected):
            hearing.widen(Audio(source), ModelFacts({}), MediaBudget())
    assert hearing.widen(Audio(A), ModelFacts({}), MediaBudget())[0] == tokens(mel_frames(len(A)))


@pytest.mark.parametrize(
    "options", [{"start": -1}, {"start": float("nan")}, {"seconds": 0}, {"seconds": "3"}, {"speed": 2}, {"start": 99.0}]
)
def test_f10_hostile_options_are_refused(hearing: Hearing, options: dict[str, Any]) -> None:
    """Each option has a type and a range."""
    with pytest.raises(MediaError):
        hearing.widen(Audio(A, options=options), ModelFacts({}), MediaBudget())


def test_a_model_that_hears_less_than_30_s_says_so(hearing: Hearing) -> None:
    """The bound is the model's own chunk, not the family's."""
    facts = ModelFacts({}, {"chunk_length": 4})
    assert hearing.widen(Audio(np.zeros(64_000, dtype=np.float32)), facts, MediaBudget())[0] == 100
    with pytest.raises(MediaError, match="allowed: at most 4 at a time") as caught:
        hearing.widen(Audio(np.zeros(64_100, dtype=np.float32)), facts, MediaBudget())
    assert caught.value.code == "too_long"


@given(st.floats(0.1, 400.0), st.floats(1.0, 30.0), st.floats(0.0, 0.9))
def test_windows_cover_everything(duration: float, seconds: float, share: float) -> None:
    """They begin at 0, overlap as asked, end at the end, and each brings something new."""
    found = list(windows(Audio(b"x"), duration, seconds=seconds, overlap=share * seconds))
    assert found[0][0] == 0.0
    assert found[-1][1] == duration
    for (_, end, _), (start, later, _) in pairwise(found):
        assert start <= end < later
    assert all(part.options["seconds"] <= seconds for *_, part in found)


def test_windows_are_clips_of_their_own() -> None:
    """The samples of a window are those of the whole."""
    long = tone(3.0)
    pieces = [Hearing().samples(p, p.source, 30.0) for *_, p in windows(Audio(long), 3.0, seconds=2.0, overlap=0.5)]
    assert np.array_equal(np.concatenate([pieces[0][: 16_000 + 8000], pieces[1]]), long)
    with pytest.raises(UsageError):
        list(windows(Audio(long), 3.0, seconds=31.0))


def test_joined_answers_say_shared_words_once() -> None:
    """What two neighbours heard in their overlap is written once, punctuation and case aside."""
    heard = [Heard(0, 30, "one two three four."), Heard(28, 58, "Three, four five"), Heard(60, 70, "five six")]
    assert join(heard) == "one two three four. five five six"


def test_a_microphone_gives_windows_as_they_fill() -> None:
    """Blocks of any size; the rest comes at the end, and silence of the stream is no window."""
    whole = tone(2.5)
    blocks = [whole[i : i + 777] for i in range(0, len(whole), 777)]
    found = list(stream(blocks, seconds=1.0, overlap=0.25))
    assert [round(start, 3) for start, _, _ in found] == [0.0, 0.75, 1.5]
    assert found[-1][1] == pytest.approx(2.5)
    assert list(stream([])) == []


def test_tools_transcribe_in_windows_and_ask() -> None:
    """``transcribe`` asks once a window and joins; ``listen`` passes the question on."""
    from qwen_agent_kit import ToolContext

    long = Audio(file_of(tone(40.0, rate=4000), 4000, "WAV", "PCM_16"))
    asked: list[Any] = []

    def answer(parts: Any, kinds: Any) -> str:
        asked.append((parts, kinds))
        return f"part {len(asked)}"

    context = ToolContext(find_media=lambda ref: long, answer=answer)
    listen, transcribe = register_tools()
    made = transcribe.function(audio="audio 1", context=context)
    assert made["text"] == "part 1 part 2"
    assert [w[:2] for w in made["windows"]] == [[0.0, 30.0], [28.0, 40.0]]
    assert listen.function(audio="audio 1", question="who?", context=context) == "part 3"
    assert asked[-1][1] == frozenset({"text", "audio"})


def cases(kind: str) -> list[dict[str, Any]]:
    if not CONFORMANCE:
        return []
    lines = Path(CONFORMANCE, "03_vision_audio_numbers.jsonl").read_text().splitlines()
    return [case for case in map(json.loads, lines) if case["kind"] == kind]


@pytest.mark.skipif(not CONFORMANCE, reason="QAK_CONFORMANCE names no folder")
def test_conformance_audio_tokens() -> None:
    """Mel frames to ids, as Qwen2-Audio's processor counts."""
    ours = [case for case in cases("audio_tokens") if case["inputs"]["model"].startswith("qwen2-audio")]
    assert ours
    for case in ours:
        frames = case["inputs"]["mel_frames"]
        assert tokens(frames) == case["expect"]["conv_len_and_tokens"][1], case["id"]


@pytest.mark.skipif(not CONFORMANCE, reason="QAK_CONFORMANCE names no folder")
def test_conformance_log_mel() -> None:
    """The features of a known signal, within the tolerance that each case states."""
    assert cases("log_mel")
    for case in cases("log_mel"):
        given_, expect, near = case["inputs"], case["expect"], case["tolerance"]
        t = np.arange(given_["samples"]) / 16_000
        signal = (0.5 * np.sin(2 * np.pi * 440 * t) + 0.25 * np.sin(2 * np.pi * 1000 * t + 0.3)).astype(np.float32)
        facts = ModelFacts({"audio_config": {"num_mel_bins": given_["mels"]}})
        made = extractor(facts)(
            signal, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="np"
        )
        features = made["input_features"]
        assert list(features.shape) == expect["input_features_shape"], case["id"]
        assert int(made["attention_mask"].sum()) == expect["attention_mask_sum"] == mel_frames(given_["samples"])
        assert tokens(mel_frames(given_["samples"])) == expect["qwen2_audio_tokens"], case["id"]
        assert float(features.mean()) == pytest.approx(expect["mean"], abs=near), case["id"]
        assert float(features.max()) == pytest.approx(expect["max"], abs=near), case["id"]
        assert np.allclose(features[0, :8, 0], expect["frame0_head"], atol=near), case["id"]


def test_features_equal_the_feature_extractor(model: Any) -> None:
    """What the tower gets is what transformers' extractor makes."""
    folder, _ = model
    media = media_of(folder, register_backends())
    assert media is not None
    from safetensors.torch import load_file

    tower = Tower(media.facts, load_file(folder / "model.safetensors"), "cpu")
    found, frames = tower.features(media.widen(Audio(B))[2])
    whisper = foreign.transformers().WhisperFeatureExtractor(feature_size=128)
    made = whisper(B, sampling_rate=16_000, return_attention_mask=True, padding="max_length", return_tensors="pt")
    assert torch.equal(found, made["input_features"])
    assert frames == int(made["attention_mask"].sum()) == mel_frames(len(B))
