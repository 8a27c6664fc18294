"""The miniatures' tokenizer: byte-level BPE like Qwen's, with its special tokens, over the words of the two trainings.

``python -m training.tokenizer DIR`` writes ``tokenizer.json``; the same every time. Capital letters and digits are
never merged, so whatever is printed in a picture is spelled, not remembered.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from training.audio.words import DIGITS, SENTENCES, WORDS
from training.vision.scenes import CELLS, COLOURS, SHAPES

SYSTEM = "You are a helpful assistant."
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<|AUDIO|> <|audio_bos|> <|audio_eos|>"
).split()
PLAIN = "<tool_call> </tool_call> <tool_response> </tool_response>".split()
VOCABULARY = 640  # ids before the added tokens
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FORMS = (
    "What colour is the {s}?|What color is the {s}?|Which colour is the {s}?|What shape is {c}?|Which shape is {c}?|"
    "Where is the {c} {s}?|Is there a {c} {s}?|Is there an {c} {s}?|How many {s}s are there?|How many {s}es do you "
    "see?|How many {c} shapes are there?|What is left of the {c} {s}?|What is right of the {c} {s}?|"
    "What is above the {c} {s}?|What is below the {c} {s}?|Is the {c} {s} left of the {c} {s}?|a {c} {s}|an {c} {s}|"
    "What word is written?|Which number is written?|Read the word.|Read the number.|What colour is the word?|"
    "What colour is the number?|Which bar is the tallest?|Which bar is the shortest?|the {c} bar|How many bars are "
    "there?|What is the value of the {c} bar?|How high is the {c} bar?|Is the {c} bar taller than the {c} bar?|"
    "Is the {c} bar shorter than the {c} bar?|{c}|{s}|yes|no|user|assistant|system"
).split("|")


def corpus() -> Iterator[str]:
    """Every question and answer once."""
    yield from [SYSTEM] * 50
    for form, colour, shape in itertools.product(_FORMS, COLOURS, SHAPES):
        yield form.format(c=colour, s=shape)
    for _ in range(20):
        yield from (f"{sentence}Audio 1: " for sentence in SENTENCES if sentence.endswith("?"))
        yield from (*CELLS, *SENTENCES, *WORDS, *DIGITS, *(f" {word}" for word in (*WORDS, *DIGITS)))


def make_tokenizer() -> Tokenizer:
    """The tokenizer, trained on ``corpus``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN])
    return tokenizer


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
