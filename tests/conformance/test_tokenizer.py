"""Token ids of public test suites, with the real tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import load

from qwen_agent_kit.prompt.tokens import PlainTokenizer

CASES = load("09_tokenizer_qwen.jsonl")
# The vocabulary of qwen3.5 is another one, and is not to be had offline.
KNOWN = [case for case in CASES if case["vocab"] != "qwen3.5"]


def test_there_are_cases() -> None:
    """The cases are those of the Qwen2, 2.5 and 3 vocabularies; all but the Qwen3.5 ones are run."""
    assert {case["vocab"] for case in KNOWN} <= {"qwen2", "qwen2.5", "qwen3"}
    assert len(KNOWN) == sum(case["vocab"] in ("qwen2", "qwen2.5", "qwen3") for case in CASES)
    assert len(KNOWN) >= 16


@pytest.fixture(scope="module", params=["qwen25_dir", "qwen3_dir"])
def tokenizer(request: pytest.FixtureRequest) -> PlainTokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return PlainTokenizer((folder / "tokenizer.json").read_bytes())


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case["id"])
def test_text_becomes_the_expected_ids(tokenizer: PlainTokenizer, case: dict[str, Any]) -> None:
    """Text between control tokens, encoded by our copy without added tokens, gives the reference's ids."""
    from qwen_agent_kit.prompt.template import Marks

    marks = Marks(tokenizer.control)
    ids: list[int] = []
    text, at = marks.put(case["text"]), 0  # the reference reads tags in the text as control tokens
    for found in marks.pattern.finditer(text):
        ids += tokenizer.encode(text[at : found.start()]) if found.start() > at else []
        ids.append(marks.id(found))
        at = found.end()
    ids += tokenizer.encode(text[at:]) if at < len(text) else []
    assert ids == case["ids"]
