"""The probes of ``qak bench placement``: what their times say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent_kit.bench.placement import _FEW, _MANY, _WIDE, PROMPT, _probe, _speed
from qwen_agent_kit.placement import footprint, shape_from_config

micros = st.floats(0, 2000)


@given(scheme=st.sampled_from(["bf16", "int8", "int4"]), layer=micros, token=micros, stream=st.floats(0.05, 1.2))
def test_times_give_the_coefficients_back(scheme: str, layer: float, token: float, stream: float) -> None:
    """Times made from a layer's cost, a position's cost and a share of the bandwidth give these three again."""
    bandwidth = 30e9
    shape = shape_from_config(_probe(*_WIDE))
    parts = footprint(shape, scheme)
    read = sum(parts.read) + parts.read_head + shape.kv_bytes(parts.value) * PROMPT
    fixed = [(sizes[2] * layer + token) / 1e6 for sizes in (_FEW, _MANY, _WIDE)]
    seconds = fixed[2] + read / (bandwidth * stream)
    found = _speed(scheme, fixed[0], fixed[1], seconds, bandwidth)
    assert found.layer_us == pytest.approx(layer, abs=1e-3)
    assert found.token_us == pytest.approx(token, abs=1e-2)
    if seconds - fixed[2] > seconds / 10:
        assert found.stream == pytest.approx(stream, rel=1e-3)


def test_noise_never_gives_less_than_nothing() -> None:
    """Narrow decoders that seem slower with few layers than with many, or than the wide one, cost nothing extra."""
    found = _speed("int8", 5e-3, 4e-3, 3e-3, 30e9)
    assert found.layer_us == 0
    assert found.token_us >= 0
    assert found.stream > 0
