"""The plugin, on a model that was trained a moment ago."""

import sys
from pathlib import Path

import pytest
from qwen_agent_kit_series import Series, register_backends, widen

from qwen_agent_kit import Agent, Host
from qwen_agent_kit.errors import MediaError, UsageError
from qwen_agent_kit.testing import check_backend

sys.path.insert(0, str(Path(__file__).parents[1]))


def series(*values: float) -> Series:
    return Series(" ".join(map(str, values)).encode())


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    from make_model import train

    folder = tmp_path_factory.mktemp("model")
    train(folder)
    with Host(quant="fp32", cache=False, prefixes=False) as host:
        yield Agent(str(folder), host=host)


def test_it_is_a_backend():
    """It keeps what hosts and agents rely on."""
    check_backend(register_backends()[0])


def test_it_answers(agent):
    """Lengths that training never drew together, any unit, short and long."""
    for answer, values in {
        "it rises": [range(20, 100), [1e6 + 5 * n for n in range(24)], [0.1 * n for n in range(17)]],
        "it falls": [range(80, 20, -1), [3 - 0.2 * n for n in range(30)]],
        "it stays": [[5, 4, 5, 6] * 10, [0.1, 0.2, 0.15, 0.12, 0.18, 0.2, 0.1, 0.16] * 3],
    }.items():
        for one in values:
            assert agent.run(["Does it rise or fall?", series(*one)]).output == answer


def test_two_series_share_nothing(agent):
    """Equal length, other numbers: each is encoded, and the same again is not."""
    for values in (range(64), range(64, 0, -1), range(64)):
        result = agent.run(["Does it rise or fall?", series(*values)])
    assert result.steps[0].backend == "series"
    counters = agent.host.open(agent.model, kinds=frozenset({"text", "series"})).engine.media_counters
    assert counters.found >= 1


@pytest.mark.parametrize("data", [b"", b"1", b"1 two", b"1 nan", b"1 " * 5000])
def test_what_is_no_series_is_refused(data):
    with pytest.raises(MediaError):
        widen(Series(data), None, None)


def test_a_kind_that_the_model_lacks_is_named(agent):
    with pytest.raises(UsageError, match="'image'"):
        agent.run("what?", images=[b"x"])
