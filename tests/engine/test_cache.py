"""The cache: what is reused is what would have been computed, and never more memory than the budget.

Stands in for the model: keys and values of a position are a checksum over everything the position depends on, so that
any wrong reuse, copy or growth shows as a wrong number.
"""

from __future__ import annotations

import random
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent_kit.backends import MediaSpan
from qwen_agent_kit.engine.cache import MOST_IDLE, Cache, Content, Lease, Live, common_prefix
from qwen_agent_kit.engine.kv import KVLayout, SequenceKV

LAYOUT = KVLayout(layers=2, kv_heads=2, head_dim=4, dtype=torch.float64)
CONTEXT = 1024


def cache_of(positions: int, context: int = CONTEXT) -> Cache:
    return Cache(LAYOUT, positions * LAYOUT.position_bytes, context)


def content_of(ids: list[int], media: tuple[MediaSpan, ...] = (), positions: np.ndarray | None = None) -> Content:
    return Content(np.asarray(ids, dtype=np.int32), media, positions)


def checksums(ids: list[int], media: tuple[MediaSpan, ...], positions: np.ndarray) -> list[int]:
    """For each position: of all ids, media contents and positions up to it."""
    sums, running = [], 0
    for at, token in enumerate(ids):
        digest = next((m.digest for m in media if m.start <= at < m.start + m.length), "")
        column = positions[..., at].tolist()
        column = column if isinstance(column, list) else [column] * 3
        running = zlib.crc32(repr((token, digest, column)).encode(), running)
        sums.append(running)
    return sums


def compute(live: Live, count: int) -> None:
    """What the runner does, with checksums for a model."""
    end = live.length + count
    sums = checksums(live.ids(0, end).tolist(), live.media, live.positions(0, end))[live.length :]
    live.kv.ensure(end, live.length, live.reserved)
    for layer in range(LAYOUT.layers):
        k = torch.tensor(sums, dtype=torch.float64)[:, None, None] + torch.arange(8.0).view(1, 2, 4) + layer
        live.kv.write(layer, k, -k, live.length)
    live.length = end


def verify(live: Live) -> None:
    sums = checksums(live.ids(0, live.length).tolist(), live.media, live.positions(0, live.length))
    for layer in range(LAYOUT.layers):
        k = torch.tensor(sums, dtype=torch.float64)[:, None, None] + torch.arange(8.0).view(1, 2, 4) + layer
        keys, values = live.kv.read(layer, live.length)
        assert torch.equal(keys, k)
        assert torch.equal(values, -k)


def run(cache: Cache, ids: list[int], output: list[int] = (), total: int | None = None, **fields) -> Lease:
    """A whole request: admit, compute the prompt, append ``output`` (the last id stays uncomputed), release."""
    lease = cache.acquire(content_of(ids, **fields), total or len(ids) + len(output) + 1)
    assert lease is not None
    compute(lease.live, lease.live.pending)
    for token in output:
        if lease.live.pending:
            compute(lease.live, 1)
        lease.live.append(token)
    verify(lease.live)
    cache.release(lease.live)
    return lease


def test_a_step_extends_the_last_to_its_last_token() -> None:
    """In a loop each prompt begins with the last prompt and its output: all but the output's last id is reused."""
    cache = cache_of(4000)
    prompt = list(range(10))
    lease = run(cache, prompt, [50, 51, 52])
    live = lease.live
    for step in range(30):
        before = len(prompt) + 3
        prompt = [*prompt, 50, 51, 52, *range(step, step + 5)]
        lease = run(cache, prompt, [50, 51, 52])
        assert lease.cached == before - 1
        assert lease.live is live
        assert lease.prefix_break is None
    assert len(cache.lives) == 1


def test_the_same_prompt_again_computes_one_position() -> None:
    """Logits of the last position are always needed, so a full hit leaves exactly it."""
    cache = cache_of(4000)
    run(cache, list(range(100)), [1, 2])
    lease = run(cache, list(range(100)))
    assert (lease.cached, lease.prefix_break) == (99, None)


def test_a_fork_copies_and_the_branches_stay_apart() -> None:
    """Two branches of one beginning reuse it both, and neither sees what the other appended."""
    cache = cache_of(4000)
    base = list(range(200))
    trunk = run(cache, base)
    left = cache.acquire(content_of([*base, 1, 2, 3]), 300)
    right = cache.acquire(content_of([*base, 4, 5, 6]), 300)
    assert left is not None
    assert right is not None
    assert left.live is trunk.live
    assert (left.cached, right.cached) == (200, 200)
    for _ in range(40):
        for lease, token in ((left, 7), (right, 8)):
            compute(lease.live, lease.live.pending)
            lease.live.append(token)
    verify(left.live)
    verify(right.live)


def test_a_partial_hit_says_where_and_why_it_broke() -> None:
    """A live sequence that matched only partly is named with position and reason."""
    cache = cache_of(4000)
    run(cache, list(range(456)))
    lease = run(cache, [*range(123), 9999, *range(124, 300)])
    assert (lease.cached, lease.prefix_break) == (123, "ids differ at 123 of 456")


IMAGE = (MediaSpan(5, 10, "digest-a"),)


@pytest.mark.parametrize(
    ("media", "cached", "why"),
    [
        ((MediaSpan(5, 10, "digest-a"),), 29, None),
        ((MediaSpan(5, 10, "digest-b"),), 5, "media differ at 5 of 30"),
        ((), 5, "media differ at 5 of 30"),
        ((MediaSpan(5, 9, "digest-a"),), 5, "media differ at 5 of 30"),
        ((MediaSpan(5, 10, "digest-a"), MediaSpan(20, 4, "digest-c")), 20, "media differ at 20 of 30"),
    ],
)
def test_f62_media_are_part_of_the_identity(media: tuple[MediaSpan, ...], cached: int, why: str | None) -> None:
    """Equal placeholder ids over different pictures never share keys and values."""
    cache = cache_of(4000)
    run(cache, list(range(30)), media=IMAGE)
    lease = run(cache, list(range(30)), media=media)
    assert (lease.cached, lease.prefix_break) == (cached, why)


def test_reuse_is_cut_before_a_medium_never_inside() -> None:
    """Where ids part inside a medium, or the prompt ends in it, reuse ends at its beginning."""
    cache = cache_of(4000)
    run(cache, list(range(30)), media=IMAGE)
    assert run(cache, [*range(9), 99, *range(10, 30)], media=IMAGE).cached == 5
    assert run(cache, list(range(15)), media=IMAGE).cached == 5


def test_positions_are_part_of_the_identity() -> None:
    """Equal ids at other m-rope positions are computed again; equal positions are reused."""
    cache = cache_of(4000)
    flat = np.tile(np.arange(40), (3, 1))
    bent = flat.copy()
    bent[1, 25:] += 2
    assert run(cache, list(range(40)), positions=flat).cached == 0
    assert run(cache, list(range(40))).cached == 39
    lease = run(cache, list(range(40)), positions=bent)
    assert (lease.cached, lease.prefix_break) == (25, "positions differ at 25 of 40")


def test_positions_go_on_after_the_prompt() -> None:
    """Generated ids follow on the largest m-rope position, alike on the three axes."""
    positions = np.array([[0, 1, 1, 1, 4], [0, 1, 2, 3, 4], [0, 1, 1, 2, 9]])
    live = Live(LAYOUT)
    live.begin(content_of([1, 2, 3, 4, 5], positions=positions), 0)
    for token in (6, 7):
        live.append(token)
    assert live.positions(3, 7).tolist() == [[1, 4, 10, 11], [3, 4, 10, 11], [2, 9, 10, 11]]
    assert live.positions(6, 7).tolist() == [[11]] * 3
    live.begin(content_of([1, 2, 3]), 0)
    assert live.positions(1, 3).tolist() == [1, 2]


def test_the_oldest_idle_sequence_goes_first() -> None:
    """Room is made by forgetting what was used least recently, and memory returns with it."""
    cache = cache_of(64 * 4)
    for start in (0, 1000, 2000):
        run(cache, list(range(start, start + 60)))
    run(cache, list(range(60)), [1])
    run(cache, list(range(3000, 3100)))
    assert run(cache, [*range(60), 1, 2]).cached == 60
    assert run(cache, list(range(1000, 1060))).cached == 0
    cache.clear()
    assert cache.used_bytes == 0


def test_nothing_is_forgotten_for_what_cannot_start() -> None:
    """A request that has to wait for running ones evicts nobody."""
    cache = cache_of(64 * 4)
    run(cache, list(range(60)))
    running = cache.acquire(content_of(list(range(500, 600))), 128)
    assert running is not None
    assert cache.acquire(content_of(list(range(2000, 2100))), 256) is None
    assert len(cache.lives) == 2
    cache.release(running.live, keep=False)
    assert cache.acquire(content_of(list(range(2000, 2100))), 256) is not None


def test_an_idle_sequence_is_taken_over_where_two_do_not_fit() -> None:
    """Without room for a copy, the shared beginning is kept and the old end given up."""
    cache = cache_of(64 * 4)
    run(cache, list(range(200)))
    lease = run(cache, [*range(150), 7, 8, 9])
    assert lease.cached == 150
    assert len(cache.lives) == 1


def test_kept_sequences_are_bounded() -> None:
    """However small they are, no more than ``MOST_IDLE`` are kept, so that a lookup stays cheap."""
    cache = cache_of(10**6)
    for start in range(MOST_IDLE + 20):
        run(cache, [start, 1, 2])
    assert len(cache.lives) == MOST_IDLE
    assert run(cache, [0, 1, 2]).cached == 0
    assert run(cache, [MOST_IDLE + 19, 1, 2]).cached == 2


def test_a_failed_request_leaves_nothing() -> None:
    """What a failed request computed is not trusted."""
    cache = cache_of(4000)
    lease = cache.acquire(content_of(list(range(50))), 100)
    assert lease is not None
    compute(lease.live, 50)
    cache.release(lease.live, keep=False)
    assert cache.used_bytes == 0


def test_appending_never_moves_the_whole_history_each_time() -> None:
    """Growth is by half at a time: 4,000 appended positions move less than three times their number."""
    kv = SequenceKV(LAYOUT)
    moved = 0
    for end in range(1, 4001):
        before = kv.capacity
        kv.ensure(end, end - 1, 10**6)
        moved += (end - 1) if kv.capacity != before else 0
    assert moved < 3 * 4000


def test_a_loop_of_short_steps_moves_little() -> None:
    """Also where every step reserves little, slabs grow by half: few growths in 150 steps."""
    cache = cache_of(10**6, context=10**5)
    prompt = list(range(20))
    capacities = set()
    for step in range(150):
        lease = run(cache, prompt, [7, 8])
        capacities.add(lease.live.kv.capacity)
        prompt = [*prompt, 7, 8, *range(step, step + 20)]
    assert len(capacities) < 16


def test_growth_by_half_evicts_nobody() -> None:
    """A sequence that is extended takes room in advance only where it is free."""
    cache = cache_of(64 * 8)
    run(cache, list(range(1000, 1060)))
    run(cache, list(range(250)), [1])
    lease = cache.acquire(content_of([*range(250), 1, 2]), 280)
    assert lease is not None
    assert lease.cached == 250
    assert lease.live.reserved == 384
    assert len(cache.lives) == 2
    cache.release(lease.live)
    run(cache, list(range(5000, 5060)))
    run(cache, list(range(6000, 6060)))
    lease = cache.acquire(content_of([*range(250), 1, 2]), 280)
    assert lease is not None
    assert lease.live.reserved == 320
    assert len(cache.lives) == 4


def test_a_lookup_is_flat_in_history() -> None:
    """Finding a prefix of 50,000 ids costs a fraction of a millisecond more than one of 500."""
    small, large = np.arange(500, dtype=np.int32), np.arange(50_000, dtype=np.int32)

    def cost(ids: np.ndarray) -> float:
        other = ids.copy()
        times = []
        for _ in range(30):
            began = time.perf_counter()
            assert common_prefix(ids, other) == len(ids)
            times.append(time.perf_counter() - began)
        return min(times)

    assert cost(large) - cost(small) < 0.3e-3


@given(st.lists(st.integers(0, 1), max_size=400), st.lists(st.integers(0, 1), max_size=400), st.integers(0, 400))
def test_common_prefix_is_that_of_a_loop(a: list[int], b: list[int], same: int) -> None:
    """The array comparison agrees with a plain loop at every length."""
    b = a[:same] + b
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(np.asarray(a, dtype=np.int32), np.asarray(b, dtype=np.int32)) == expected


# --- any order of requests ---------------------------------------------------------------------------------------


class Traffic:
    """Random requests over contents that share beginnings, several at once, against a brute-force oracle."""

    def __init__(self, seed: int, positions: int) -> None:
        self.random = random.Random(seed)
        self.cache = cache_of(positions, context=400)
        self.running: list[tuple[Live, int]] = []
        self.known: list[Content] = [self.fresh()]

    def fresh(self) -> Content:
        n = self.random.randrange(1, 120)
        return self.make([self.random.randrange(4) for _ in range(n)])

    def make(self, ids: list[int]) -> Content:
        media: list[MediaSpan] = []
        if len(ids) > 20 and self.random.random() < 0.4:
            media.append(MediaSpan(4, 6, self.random.choice("ab")))
            if self.random.random() < 0.5:
                media.append(MediaSpan(12, 3, self.random.choice("ab")))
        positions = None
        if self.random.random() < 0.3:
            positions = np.tile(np.arange(len(ids)), (3, 1))
            if self.random.random() < 0.5:
                positions[1, self.random.randrange(len(ids)) :] += 1
        return content_of(ids, tuple(media), positions)

    def next_content(self) -> Content:
        base = self.random.choice(self.known)
        kind = self.random.random()
        ids = base.ids.tolist()
        if kind < 0.2:
            return self.fresh()
        if kind < 0.5:
            return self.make([*ids[: self.random.randrange(1, len(ids) + 1)], *(9, 8, 7)][:300])
        extra = [self.random.randrange(4) for _ in range(self.random.randrange(1, 40))]
        positions = base.positions
        if positions is not None:
            after = positions.max() + 1 + np.arange(len(extra))
            positions = np.concatenate([positions, np.tile(after, (3, 1))], axis=1)
        return content_of([*ids, *extra][:300], base.media, None if positions is None else positions[:, :300])

    def oracle(self, content: Content) -> int:
        """The most positions of any live sequence that are position by position those of ``content``."""
        n = len(content.ids)
        mine = np.arange(n) if content.positions is None else content.positions
        sums = checksums(content.ids.tolist(), content.media, mine)
        best = 0
        for live in self.cache.lives:
            theirs = checksums(live.ids(0, live.length).tolist(), live.media, live.positions(0, live.length))
            pairs = zip(sums, theirs, strict=False)
            common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(n, live.length))
            spans = (*content.media, *live.media)
            usable = min(common, n - 1)
            while any(m.start < usable < m.start + m.length for m in spans):
                usable -= 1
            best = max(best, usable)
        return best

    def act(self) -> None:
        if self.running and self.random.random() < 0.6:
            live, left = self.running.pop(self.random.randrange(len(self.running)))
            compute(live, self.random.randrange(1, live.pending + 1))
            if live.pending == 0 and left:
                live.append(self.random.randrange(4))
                left -= 1
            if left and self.random.random() < 0.9:
                self.running.append((live, left))
                return
            verify(live)
            self.known.append(
                content_of(
                    live.ids(0, live.count).tolist(),
                    live.media,
                    None if live._positions is None else live.positions(0, live.count),
                )
            )
            self.cache.release(live, keep=self.random.random() < 0.9)
            return
        content = self.next_content()
        expected = self.oracle(content)
        output = self.random.randrange(1, 30)
        lease = self.cache.acquire(content, len(content.ids) + output)
        if lease is not None:
            assert lease.cached <= expected
            if all(live.media == content.media for live in self.cache.lives):
                assert lease.cached == expected
            verify(lease.live)
            self.running.append((lease.live, output))

    def check(self) -> None:
        assert self.cache.used_bytes <= self.cache._room * LAYOUT.position_bytes
        assert all(any(live is kept for kept in self.cache.lives) for live, _ in self.running)
        for live in self.cache.lives:
            verify(live)


def traffic(seed: int, positions: int, actions: int) -> None:
    state = Traffic(seed, positions)
    for _ in range(actions):
        state.act()
        state.check()
    for live, _ in state.running:
        state.cache.release(live)
    state.cache.clear()
    assert state.cache.used_bytes == 0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**9), positions=st.sampled_from([450, 900, 4000]))
def test_any_order_of_requests_reuses_right(seed: int, positions: int) -> None:
    """Whatever runs beside, forks, extends or is evicted: kept keys and values are right, the budget holds, and as much
    is reused as the most similar live sequence allows."""
    traffic(seed, positions, 60)


@pytest.mark.full
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), positions=st.sampled_from([450, 900, 4000]))
def test_any_order_of_requests_at_length(seed: int, positions: int) -> None:
    """The same, over many more orders."""
    traffic(seed, positions, 120)
