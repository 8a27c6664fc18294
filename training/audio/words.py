"""What is said in the clips, and what is asked about them."""

from __future__ import annotations

DIGITS = "zero one two three four five six seven eight nine".split()
WORDS = (
    "yes no stop go left right up down on off red green blue black cat dog bird house tree happy water music hello "
    "open close light door"
).split()
SENTENCES = (
    "What was said?",
    "What did the speaker say?",
    "What do you hear?",
    "Which digits were said?",
    "Which word was said first?",
    "Which word was said last?",
    "How many words were said?",
    "How many digits were said?",
    "How many tones do you hear?",
    "Is anyone speaking?",
    "Is the tone high or low?",
    "Does the tone rise or fall?",
    "high",
    "low",
    "it rises",
    "it falls",
    "speech",
    "a tone",
    "noise",
    "silence",
)
