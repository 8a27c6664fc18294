"""Prefixes on disk: another process gets what it would have computed, and nothing that is damaged, foreign or another
model's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_decoder import plain_greedy, small_loaded

from qwen_agent_kit.backends import Embeddings, MediaSpan, Prompt, Sampling
from qwen_agent_kit.engine import Engine
from qwen_agent_kit.engine.blocks import BLOCK
from qwen_agent_kit.models import load_model
from qwen_agent_kit.testing import tiny_model_dir

PROMPT = [(i * 7) % 250 for i in range(300)]


def greedy(n: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=n)


def run(folder: Path, prompt: Any, n: int = 8, **options: Any) -> tuple[list[int], Any]:
    """One request in an engine of its own, which is closed."""
    with Engine(small_loaded(), prefixes=folder, **options) as engine:
        generation = engine.submit(prompt, greedy(n))
        return list(generation), generation.usage


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


def test_the_next_engine_computes_only_what_is_new(tmp_path: Path) -> None:
    """The same prompt: one position. The same beginning and another question: the question, to the position."""
    expected = plain_greedy(small_loaded().model, PROMPT, 8)
    cold, usage = run(tmp_path, PROMPT)
    assert (cold, usage.cached_tokens) == (expected, 0)
    warm, usage = run(tmp_path, PROMPT)
    assert warm == expected
    assert usage.cached_tokens == len(PROMPT) - 1
    for cut in (64, 100, 128, 299):
        other = [*PROMPT[:cut], 251, 252, 253]
        ids, usage = run(tmp_path, other)
        assert ids == plain_greedy(small_loaded().model, other, 8)
        assert usage.cached_tokens == cut
        assert usage.computed_tokens == 3 + 8 - 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    chunk=st.integers(1, 80),
    tail=st.lists(st.integers(0, 3), min_size=1, max_size=140),
)
def test_any_history_of_engines_gives_the_same_ids(
    tmp_path: Path, cuts: list[int], chunk: int, tail: list[int]
) -> None:
    """Whatever earlier engines left in the directory, output is that of the whole sequence recomputed, and as much is
    reused as the longest common beginning with any earlier prompt of enough length."""
    folder = tmp_path / str(abs(hash((tuple(cuts), chunk, tuple(tail)))))
    known: list[list[int]] = []
    for cut in cuts:
        prompt = [*PROMPT[:cut], *tail]
        ids, usage = run(folder, prompt, 5, chunk=chunk)
        assert ids == plain_greedy(small_loaded().model, prompt, 5)
        assert usage.cached_tokens + usage.computed_tokens == len(prompt) + 4
        longest = max((_common(prompt, other) for other in known if len(other) - 1 >= 2 * BLOCK), default=0)
        assert usage.cached_tokens in (0, min(longest, len(prompt) - 1))
        known.append([*prompt, *ids])


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b) - 1))


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "grown", "header", "other ids"])
def test_a_damaged_file_is_removed_and_computed_again(tmp_path: Path, damage: str) -> None:
    """A file that is torn, flipped, foreign or not what its name says is never used; the ids stay right."""
    expected, _ = run(tmp_path, PROMPT)
    target = files(tmp_path)
    for path in target:
        raw = bytearray(path.read_bytes())
        if damage == "cut":
            raw = raw[: len(raw) // 2]
        elif damage == "bit":
            raw[-5] ^= 16
        elif damage == "empty":
            raw = bytearray()
        elif damage == "grown":
            raw += b"x"
        elif damage == "header":
            raw[:8] = b"notours!"
        else:
            raw[30] ^= 1
        path.write_bytes(raw)
    ids, usage = run(tmp_path, PROMPT)
    assert ids == expected
    assert usage.cached_tokens == 0
    again, usage = run(tmp_path, PROMPT)
    assert again == expected
    assert usage.cached_tokens == len(PROMPT) - 1


def test_foreign_files_are_removed_and_a_link_is_not_followed(tmp_path: Path) -> None:
    """What is no file of ours goes; a link in the place of a file is not read, and what it names stays."""
    expected, _ = run(tmp_path, PROMPT)
    precious = tmp_path.parent / f"{tmp_path.name}-precious"
    precious.write_bytes(files(tmp_path)[0].read_bytes())
    for path in files(tmp_path):
        path.unlink()
        path.symlink_to(precious)
    folder = files(tmp_path)[0].parent
    (folder / "readme.txt").write_text("hello")
    ids, usage = run(tmp_path, PROMPT)
    assert (ids, usage.cached_tokens) == (expected, 0)
    assert not (folder / "readme.txt").exists()
    assert precious.exists()
    assert all(not path.is_symlink() for path in files(tmp_path))


def test_files_are_private(tmp_path: Path) -> None:
    """Directories are 0700 and files 0600, whatever the umask."""
    old = os.umask(0)
    try:
        run(tmp_path / "new", PROMPT)
    finally:
        os.umask(old)
    assert files(tmp_path)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_another_model_scheme_or_kernel_shares_nothing(tmp_path: Path) -> None:
    """What keys and values depend on is part of the place."""
    run(tmp_path, PROMPT)
    for fields, kernels in (({"digest": "other"}, None), ({"scheme": "int8"}, None), ({}, "native-1")):
        loaded = small_loaded(**fields)
        if kernels:
            loaded.model.kernels = kernels
        with Engine(loaded, prefixes=tmp_path) as engine:
            generation = engine.submit(PROMPT, greedy(2))
            list(generation)
        assert generation.usage.cached_tokens == 0


def test_the_budget_holds_and_the_oldest_goes_first(tmp_path: Path) -> None:
    """All files together stay within the bytes that are allowed; what was used last is still there."""
    run(tmp_path, PROMPT)
    size = sum(path.stat().st_size for path in files(tmp_path))
    budget = int(size * 2.5)
    for start in range(6):
        run(tmp_path, [start, *PROMPT], prefix_bytes=budget)
        assert sum(path.stat().st_size for path in files(tmp_path)) <= budget
    _, usage = run(tmp_path, [5, *PROMPT], prefix_bytes=budget)
    assert usage.cached_tokens == len(PROMPT)


def test_a_budget_below_a_block_keeps_what_there_is(tmp_path: Path) -> None:
    """Nothing is written, and nothing removed for what could never fit."""
    run(tmp_path, PROMPT)
    before = files(tmp_path)
    assert run(tmp_path, [9, *PROMPT], prefix_bytes=1000)[0] == plain_greedy(small_loaded().model, [9, *PROMPT], 8)
    assert files(tmp_path) == before


def test_a_directory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    """A file in the directory's place: nothing is kept, nothing fails."""
    (tmp_path / "place").write_text("a file")
    ids, usage = run(tmp_path / "place", PROMPT)
    assert ids == plain_greedy(small_loaded().model, PROMPT, 8)
    assert usage.cached_tokens == 0


def test_f62_media_positions_and_salts_part_prefixes_on_disk(tmp_path: Path) -> None:
    """Equal ids over another picture, at other positions or under a salt never get each other's keys and values; reuse
    ends before a medium, never inside."""
    ids = list(PROMPT)
    one = Prompt(ids, (MediaSpan(100, 90, "one"),))
    run(tmp_path, one)
    assert run(tmp_path, one)[1].cached_tokens == len(ids) - 1
    assert run(tmp_path, Prompt(ids, (MediaSpan(100, 90, "two"),)))[1].cached_tokens == 64
    assert run(tmp_path, Prompt(ids[:150], (MediaSpan(100, 50, "one"),)))[1].cached_tokens == 64
    positions = np.tile(np.arange(300), (3, 1))
    positions[1, 70:] += 5
    assert run(tmp_path, Prompt(ids, (MediaSpan(100, 90, "one"),), positions))[1].cached_tokens == 64
    with Engine(small_loaded(), prefixes=tmp_path) as engine:
        salted = engine.submit(one, greedy(2), salt="tenant")
        list(salted)
        assert salted.usage.cached_tokens == 0


def test_short_prompts_leave_nothing(tmp_path: Path) -> None:
    """Below two blocks there is nothing to win."""
    run(tmp_path, PROMPT[:100])
    assert not files(tmp_path)


_CHILD = """
import sys
from pathlib import Path
from small_decoder import small_loaded
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
with Engine(small_loaded(), prefixes=Path(sys.argv[1])) as engine:
    generation = engine.submit([(i * 7) % 250 for i in range(300)], Sampling(temperature=0, max_tokens=8))
    list(generation)
    print(generation.ids, generation.usage.cached_tokens)
"""


def test_another_process_finds_it(tmp_path: Path) -> None:
    """Written here, read by a fresh interpreter, with the same ids."""
    expected, _ = run(tmp_path, PROMPT)
    support = str(Path(__file__).resolve().parents[1] / "support")
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert child.stdout.strip() == f"{expected} 299"


def test_bfloat16_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """What is read is what was written, in the dtype that the model has."""
    from qwen_agent_kit.engine.blocks import Index, chain_of
    from qwen_agent_kit.engine.content import Content
    from qwen_agent_kit.engine.kv import KVLayout, SequenceKV
    from qwen_agent_kit.engine.live import Live
    from qwen_agent_kit.engine.spill import Spill

    layout = KVLayout(layers=2, kv_heads=2, head_dim=4, dtype=torch.bfloat16)
    content = Content(np.arange(200, dtype=np.int32))
    live = Live(layout)
    live.begin(content, 0)
    live.kv.ensure(200, 0, 256)
    for layer in range(2):
        live.kv.write(layer, torch.randn(200, 2, 4).bfloat16(), torch.randn(200, 2, 4).bfloat16(), 0)
    live.length = 200
    Index().note(live)
    spill = Spill(tmp_path, "a" * 32, layout)
    while spill.save(live, tail=True):
        pass
    kv = SequenceKV(layout)
    assert Spill(tmp_path, "a" * 32, layout).restore(content, chain_of(content), kv, 0, 256) == 199
    assert torch.equal(kv.dump(0, 199), live.kv.dump(0, 199))


# --- what others do to the directory ------------------------------------------------------------------------------


def _child(code: str, *arguments: str) -> subprocess.Popen[str]:
    support = str(Path(__file__).resolve().parents[1] / "support")
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_f51_a_full_disk_ends_writing_not_reading(tmp_path: Path) -> None:
    """No file can be written whole: what is there still serves, nothing torn is left, and once there is room the next
    engine writes again."""
    resource = pytest.importorskip("resource")
    run(tmp_path, PROMPT)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    other = [*PROMPT, *range(200)]
    expected = plain_greedy(small_loaded().model, other, 8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        for _ in range(2):
            ids, usage = run(tmp_path, other)
            assert (ids, usage.cached_tokens) == (expected, len(PROMPT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert run(tmp_path, other)[0] == expected
    assert run(tmp_path, other)[1].cached_tokens == len(other) - 1


def test_a_read_only_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written, touched or removed, what is there is used, and a foreign file is no obstacle."""
    expected, _ = run(tmp_path, PROMPT)
    (files(tmp_path)[0].parent / "readme.txt").write_text("hello")

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr("tempfile.mkstemp", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    ids, usage = run(tmp_path, PROMPT)
    assert (ids, usage.cached_tokens) == (expected, len(PROMPT) - 1)


def test_an_encoder_of_another_version_shares_nothing_on_disk(tmp_path: Path) -> None:
    """A part of the same digest is other keys and values once the code that encodes it has changed."""
    loaded = load_model(tiny_model_dir(tmp_path / "model"))
    prompt = Prompt(PROMPT[:200], (MediaSpan(70, 4, "one", None),))
    cached = []
    for version in ("1", "1", "2", "2", "1"):
        tower = _Tower(version, loaded.config.hidden)
        with Engine(loaded, prefixes=tmp_path / "kept", encoder=tower) as engine:
            generation = engine.submit(prompt, greedy(2))
            list(generation)
            cached.append(generation.usage.cached_tokens)
    assert cached == [0, 199, 0, 199, 199]


class _Tower:
    def __init__(self, version: str, hidden: int) -> None:
        self.version, self.hidden = version, hidden

    def encode(self, items: Any) -> list[Embeddings]:
        return [Embeddings(torch.zeros(4, self.hidden)) for _ in items]


def test_what_goes_on_is_removed_before_what_it_goes_on_from(tmp_path: Path) -> None:
    """Where half of an old sequence has to go it is the second half: its beginning still serves."""
    run(tmp_path, PROMPT)
    size = sum(path.stat().st_size for path in files(tmp_path))
    for path in files(tmp_path):
        os.utime(path, (1e9, 1e9))
    run(tmp_path, [251, *PROMPT], prefix_bytes=int(size * 1.7))
    left = run(tmp_path, PROMPT, prefix_bytes=int(size * 1.7))[1].cached_tokens
    assert 64 <= left < len(PROMPT) - 1
    assert left % BLOCK == 0


def test_an_engine_that_stays_finds_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is looked at again; and one that was removed meanwhile is made again."""
    monkeypatch.setattr("qwen_agent_kit.engine.spill._AGAIN", 0.0)
    folder = tmp_path / "prefixes"
    with Engine(small_loaded(), prefixes=folder) as engine:
        list(engine.submit(PROMPT[::-1], greedy(2)))
        run(folder, PROMPT)
        found = engine.submit(PROMPT, greedy(2))
        list(found)
        assert found.usage.cached_tokens == len(PROMPT) - 1
        folder.rename(tmp_path / "gone")  # at once, as the engine may be writing
        list(engine.submit([250, *PROMPT], greedy(2)))
    assert run(folder, [250, *PROMPT])[1].cached_tokens == len(PROMPT)


def test_a_directory_that_goes_while_it_is_looked_at_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the question whether it can be made and the one whether it is a directory somebody moves it away."""
    folder, plain, gone = tmp_path / "prefixes", os.mkdir, []
    run(folder, PROMPT)

    def mkdir(path: Any, mode: int = 0o777) -> None:
        try:
            plain(path, mode)
        except FileExistsError:
            if not gone:
                gone.append(folder.rename(tmp_path / "gone"))
            raise

    monkeypatch.setattr(os, "mkdir", mkdir)
    run(folder, PROMPT)
    assert len(gone) == 1
    assert run(folder, PROMPT)[1].cached_tokens == len(PROMPT) - 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())} == {0o700}


_KILLED = """
import os, sys, time
from pathlib import Path
from small_decoder import small_loaded
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine
plain, count = os.replace, 0
def replace(*names):
    global count
    count += 1
    if count > 2:
        print("now", flush=True)
        time.sleep(600)
    plain(*names)
os.replace = replace
with Engine(small_loaded(), prefixes=Path(sys.argv[1])) as engine:
    list(engine.submit([(i * 7) % 250 for i in range(300)], Sampling(temperature=0, max_tokens=8)))
    time.sleep(600)
"""


def test_f51_killed_between_write_and_rename(tmp_path: Path) -> None:
    """SIGKILL while a block is written: what was finished serves the next process, the rest is computed, and the
    remains of the file are removed once they are old."""
    with _child(_KILLED, str(tmp_path)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "now\n"
        child.kill()
    assert len(files(tmp_path)) == 2
    remains = [path for path in files(tmp_path)[0].parent.iterdir() if path.name.startswith(".")]
    assert len(remains) == 1
    ids, usage = run(tmp_path, PROMPT)
    assert ids == plain_greedy(small_loaded().model, PROMPT, 8)
    assert usage.cached_tokens == 2 * BLOCK
    os.utime(remains[0], (1e9, 1e9))
    assert run(tmp_path, PROMPT)[1].cached_tokens == len(PROMPT) - 1
    assert not remains[0].exists()


_CROWD = """
import random, sys
from pathlib import Path
from small_decoder import plain_greedy, small_loaded
from qwen_agent_kit.backends import Sampling
from qwen_agent_kit.engine import Engine, spill
spill._AGAIN = 0.0
choice, found = random.Random(int(sys.argv[2])), 0
for _ in range(25):
    prompt = [(i * 7) % 250 for i in range(choice.randrange(130, 300))] + [choice.randrange(2)] * choice.randrange(90)
    with Engine(small_loaded(), prefixes=Path(sys.argv[1]), prefix_bytes=150_000) as engine:
        generation = engine.submit(prompt, Sampling(temperature=0, max_tokens=4))
        assert list(generation) == plain_greedy(small_loaded().model, prompt, 4)
        found += generation.usage.cached_tokens > 0
print(found > 0)
"""


def test_processes_share_a_directory(tmp_path: Path) -> None:
    """Two processes write, read and remove blocks in one small directory: every answer is right, nobody complains, and
    each finds something."""
    children = [_child(_CROWD, str(tmp_path), str(seed)) for seed in (1, 2)]
    for child in children:
        out, complaints = child.communicate(timeout=120)
        assert (child.returncode, out, complaints) == (0, "True\n", "")
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
