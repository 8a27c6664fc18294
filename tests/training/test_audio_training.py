"""The clips that the listening miniature is made from, and that what is trained is what transformers runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen_agent_kit import foreign
from training.audio import clips, evaluate, export, mel
from training.audio import train as listening
from training.audio.hear import features_of
from training.rows import IGNORED, Writer
from training.tokenizer import make_tokenizer

KINDS = ("speech", "tone", "tones", "noise", "silence")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> clips.Bank:
    """Three utterances that are tones in truth: what is said does not matter here."""
    path = tmp_path_factory.mktemp("bank") / "bank"
    lengths, texts = (6000, 9000, 13001), ("three", "one two", "stop cat dog")
    sound = [(8000 * np.sin(np.arange(n) * 0.05 * k)).astype(np.int16) for k, n in enumerate(lengths, 1)]
    np.concatenate(sound).tofile(path.with_suffix(".i16"))
    stops = np.cumsum(lengths).tolist()
    rows = [{"text": t, "start": b - n, "stop": b} for t, n, b in zip(texts, lengths, stops, strict=True)]
    path.with_suffix(".json").write_text(json.dumps(rows))
    return clips.Bank(path)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_official_ones(bank: clips.Bank, kind: str) -> None:
    """Log-mel features equal WhisperFeatureExtractor's, for the clip and the two frames after it."""
    official = foreign.transformers().WhisperFeatureExtractor(feature_size=mel.BANDS, chunk_length=mel.SECONDS)
    for seed in range(5):
        samples = clips.draw_clip(random.Random(seed), bank, kind=kind).samples
        made = mel.log_mel(samples)
        want = official(samples, sampling_rate=mel.RATE, return_tensors="np")["input_features"][0].T
        assert len(made) == -(-len(samples) // mel.HOP) + 2
        assert np.allclose(made, want[: len(made)], atol=2e-3)  # float32 here, float64 there; silence is all rounding
        assert float(np.abs(made - want[: len(made)]).mean()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_clip(bank: clips.Bank, kind: str) -> None:
    """The same seed makes the same sound, in range and short enough for one chunk."""
    for seed in range(20):
        first, again = (clips.draw_clip(random.Random(seed), bank, kind=kind) for _ in range(2))
        assert np.array_equal(first.samples, again.samples)
        assert first.kind == kind
        assert 0 < len(first.samples) < mel.SECONDS * mel.RATE
        assert float(np.abs(first.samples).max()) <= 1.0


def test_answers_are_about_the_clip(bank: clips.Bank) -> None:
    """What was said, how many words and the first and last of them agree with the utterances joined."""
    for seed in range(200):
        rng = random.Random(seed)
        clip = clips.draw_clip(rng, bank)
        for question in clips.ask(rng, clip, 5):
            words = clip.text.split()
            said = {"words": clip.text, "digits": clip.text, "count words": str(len(words))}
            if question.type in said:
                assert question.answer == said[question.type]
            if question.type in ("first word", "last word"):
                assert question.answer == words[0 if question.type == "first word" else -1]
            if question.type == "is anyone speaking":
                assert question.answer == ("yes" if words else "no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, as the training writes it."""
    torch.manual_seed(3)
    model = listening.Listener(make_tokenizer().get_vocab_size())
    with torch.no_grad():
        for value in model.parameters():
            value += 0.05 * torch.randn_like(value)  # biases and norms too, so that a lost one shows
    target = tmp_path_factory.mktemp("listener")
    export.save(model, target)
    return target


@pytest.mark.parametrize("first", [False, True])
def test_what_is_trained_is_what_transformers_runs(folder: Path, bank: clips.Bank, first: bool) -> None:
    """Features, placeholders and logits equal those of transformers' own classes on the checkpoint."""
    model, tokenizer = export.load(folder)
    oracle = evaluate.Oracle(folder)
    rng = random.Random(f"{first}")
    heard = [clips.draw_clip(rng, bank, kind=kind) for kind in ("speech", "tone", "tones", "noise")]
    features, frames, rows = listening.batch_of(Writer(tokenizer), heard, rng, 2, first=first, plain=True)
    with torch.no_grad():
        logits, _, _ = model(features, frames, rows)
    done = 0
    for k, question in enumerate(rows.questions):
        at = (rows.labels[k] != IGNORED).nonzero()[:, 0] + len(rows.prefix)
        want = oracle.logits(question, heard[int(rows.clips[k])], first=first)
        assert torch.allclose(logits[done : done + len(at)], want[at], atol=1e-4)
        done += len(at)
    assert done == len(logits)


def test_padding_does_not_change_what_is_heard(folder: Path, bank: clips.Bank) -> None:
    """A clip alone and the same clip beside a longer one give the same states."""
    model, _ = export.load(folder)
    short, long = (clips.Clip("speech", bank.samples[:n].astype(np.float32) / 32768) for n in (5000, 26000))
    alone, frames = features_of([short])
    both, all_frames = features_of([short, long])
    with torch.no_grad():
        one, two = model.encoder(alone, frames), model.encoder(both, all_frames)
    places = int(listening.lengths_of(frames)[1])
    assert torch.allclose(one[0, :places], two[0, :places], atol=1e-5)


def test_the_folder_is_an_ordinary_checkpoint(folder: Path) -> None:
    """transformers' configuration reads it, the encoder's window is the chunk, and the weights are small."""
    library = foreign.transformers()
    config = library.AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "Qwen2AudioConfig"
    chunk = library.AutoFeatureExtractor.from_pretrained(folder)
    assert config.audio_config.max_source_positions * 2 == chunk.nb_max_frames == mel.SECONDS * 100
    assert (folder / "model.safetensors").stat().st_size < 12e6
