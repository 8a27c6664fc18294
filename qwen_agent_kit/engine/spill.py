"""Keys and values of prefixes on disk, so that another process need not compute them again.

One file per block of a sequence (``engine.blocks``), named by the digests of the block before and of its own, in a
directory per model, scheme, kernels and version. A file holds its ids, so that a prompt that parts inside a block still
gets what comes before, and a checksum, so that a torn or damaged one is told from a whole one: it is removed and
computed again. Files are written beside their place and renamed; nothing is synced, because nothing depends on it.

What is kept is the user's own and private (directories 0700, files 0600), and no more than a budget in bytes, all
models together: least recently used first to go, and of a sequence its end before its beginning, without which the rest
is of no use. Other processes read, write and remove files at the same time: the directory is looked at again now and
then, and what has gone meanwhile is computed. A directory that cannot be written, or a full disk, is still read.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from qwen_agent_kit.engine.blocks import BLOCK, digest_of, root
from qwen_agent_kit.engine.content import Content, Ids, common_prefix
from qwen_agent_kit.engine.kv import KVLayout, SequenceKV
from qwen_agent_kit.engine.live import Live

__all__ = ["FORMAT", "SPILL_BYTES", "Spill", "folder_key"]

_LOG = logging.getLogger("qwen_agent_kit")

FORMAT = 1
"""Raised whenever files change their meaning."""

SPILL_BYTES = 4 * 2**30
"""What all models together may take."""

SHORTEST = 2 * BLOCK
"""Sequences of fewer positions are not kept: computing them is as quick."""

LONGEST = 16_384
"""Positions beyond this are not kept."""

LOOK = 8
"""Blocks that part from a prompt in different ways: so many, the latest, are compared id by id."""

_HEADER = struct.Struct("<8sIII")
_MAGIC = b"qak-kv\x00" + bytes([FORMAT])
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.kv")
_STALE = 600.0

_AGAIN = 5.0
"""Seconds after which the directory is looked at again, for what other processes did."""

_TRIES = 5
"""Times that a directory is made which somebody removes meanwhile."""

_Name = tuple[str, str]
"""The digests of the block before and of its own."""


def folder_key(*parts: object) -> str:
    """The name of the directory for what keys and values depend on besides the ids."""
    return hashlib.sha256("\0".join(map(str, (FORMAT, *parts))).encode()).hexdigest()[:32]


@dataclass(slots=True)
class _Kept:
    path: Path
    size: int
    used: float


@dataclass(slots=True)
class _Filling:
    """Keys and values that are being read: ``have`` positions are there, ``most`` are wanted."""

    kv: SequenceKV
    have: int
    most: int
    limit: int

    def take(self, data: torch.Tensor, start: int, end: int) -> None:
        """Use a block's ``data`` for what is missing between its ``start`` and ``end``."""
        end = min(end, self.most)
        if end > self.have:
            self.kv.ensure(self.limit, self.have, self.limit)
            self.kv.load(data[:, :, :, self.have - start : end - start], self.have)
            self.have = end


class Spill:
    """The files of one model. Used by the engine's thread alone; other processes may use the same files.

    Args:
        folder: Holds a directory per model; made private if missing.
        key: Names this model's, see ``folder_key``.
        layout: Of its keys and values.
        budget: Bytes for all models together.
    """

    def __init__(self, folder: Path, key: str, layout: KVLayout, budget: int = SPILL_BYTES) -> None:
        self._root, self._folder = folder, folder / key
        self._layout, self._budget = layout, budget
        self._files: dict[_Name, _Kept] = {}
        self._children: dict[str, list[str]] = {}
        self._others: list[dict[_Name, _Kept]] = []
        self._looked = -math.inf
        self._off = self._full = self._damaged = False

    # --- reading ---------------------------------------------------------------------------------------------------

    def restore(self, content: Content, chain: Sequence[bytes], kv: SequenceKV, kept: int, limit: int) -> int:
        """Read what follows the first ``kept`` positions of a prompt.

        Args:
            content: The prompt.
            chain: The digests of its whole blocks.
            kv: Gets the keys and values; holds the first ``kept`` already.
            kept: Positions that are there.
            limit: Room in ``kv``.

        Returns:
            How many positions are there now; never within a medium, never the last one.
        """
        if not self._open():
            return kept
        filling = _Filling(kv, kept, min(limit, len(content.ids) - 1), limit)
        for at in range(kept // BLOCK, filling.most // BLOCK + 1):
            parent = (chain[at - 1] if at else root(content.salt)).hex()
            if at == len(chain) or not self._block(parent, chain[at].hex(), at * BLOCK, filling):
                self._part(parent, content, at * BLOCK, filling)
                break
        if self._damaged:  # what failed once was not the only one, perhaps
            self._verify([root(content.salt), *chain])
        return max(kept, _outside_media(content, filling.have))

    def _verify(self, parents: Sequence[bytes]) -> None:
        """Read all that goes on from these blocks, so that what is damaged is written anew."""
        for parent in parents:
            for digest in tuple(self._children.get(parent.hex(), ())):
                self._read(parent.hex(), digest)
        self._damaged = False

    def _block(self, parent: str, digest: str, start: int, filling: _Filling) -> bool:
        """Take a whole block; False where it is not here."""
        found = self._read(parent, digest) if (parent, digest) in self._files else None
        if found is None or len(found[0]) != BLOCK:
            return False
        filling.take(found[1], start, start + BLOCK)
        return True

    def _part(self, parent: str, content: Content, start: int, filling: _Filling) -> None:
        """Take the beginning of a block that goes on otherwise; only of plain text, where the ids say all."""
        ids = content.ids[start : start + BLOCK]
        if content.positions is not None or any(m.start + m.length > start for m in content.media):
            return
        for digest in tuple(self._children.get(parent, ()))[-LOOK:]:
            found = self._read(parent, digest)
            if found is not None and found[2]:
                filling.take(found[1], start, start + common_prefix(found[0], ids))

    def _read(self, parent: str, digest: str) -> tuple[Ids, torch.Tensor, bool] | None:
        """(ids, [2, layers, kv_heads, n, head_dim], plain) of a file; a bad one is removed."""
        kept = self._files[parent, digest]
        try:
            handle = os.open(kept.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with os.fdopen(handle, "rb") as file:
                raw = bytearray(file.read(kept.size + 1))
            found = self._parsed(raw)
        except (OSError, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                _LOG.warning("a kept prefix is damaged and was removed: %s", type(error).__name__)
            self._forget(parent, digest)
            self._damaged = True
            return None
        with contextlib.suppress(OSError):  # it may be read and not written
            os.utime(kept.path)
        kept.used = time.time()
        return found

    def _parsed(self, raw: bytearray) -> tuple[Ids, torch.Tensor, bool]:
        if len(raw) < _HEADER.size:
            raise ValueError("too short")
        magic, count, plain, checksum = _HEADER.unpack_from(raw)
        wanted = _HEADER.size + count * (4 + self._layout.position_bytes)
        if magic != _MAGIC or not 0 < count <= BLOCK or len(raw) != wanted:
            raise ValueError("not ours")
        body = memoryview(raw)[_HEADER.size :]
        if zlib.crc32(body) != checksum:
            raise ValueError("checksum")
        layout = self._layout
        data = torch.frombuffer(raw, dtype=layout.dtype, offset=_HEADER.size + 4 * count)
        shape = (2, layout.layers, layout.kv_heads, count, layout.head_dim)
        return np.frombuffer(body[: 4 * count], dtype=np.int32), data.view(shape), bool(plain)

    # --- writing ---------------------------------------------------------------------------------------------------

    def save(self, live: Live, *, tail: bool = False) -> bool:
        """Write the next block of a sequence that is not here yet, with ``tail`` an unfinished one too.

        Returns:
            Whether there was one.
        """
        if self._full or live.salt or live.length < SHORTEST or not self._open():
            return False
        most = min(live.length, LONGEST)
        while live.spilled + BLOCK <= most:
            at = live.spilled // BLOCK
            live.spilled += BLOCK
            parent, digest = live.chain[at - 1] if at else root(live.salt), live.chain[at]
            if (parent.hex(), digest.hex()) not in self._files:
                self._store(live, parent, digest, at * BLOCK, (at + 1) * BLOCK)
                return True
        if tail and live.spilled < most and len(live.chain) * BLOCK == live.spilled:
            start, live.spilled = live.spilled, most
            parent = live.chain[-1]
            digest = digest_of(parent, live.ids(start, most), start, live.media, live.positions(start, most))
            if (parent.hex(), digest.hex()) not in self._files:
                self._store(live, parent, digest, start, most)
                return True
        return False

    def _store(self, live: Live, parent: bytes, digest: bytes, start: int, end: int) -> None:
        ids = live.ids(start, end).tobytes()
        data = live.kv.dump(start, end).contiguous().view(torch.uint8).numpy()
        plain = live.positions(start, end).ndim == 1 and not any(
            m.start < end and m.start + m.length > start for m in live.media
        )
        header = _HEADER.pack(_MAGIC, end - start, plain, zlib.crc32(data.data, zlib.crc32(ids)))
        place = self._folder / f"{parent.hex()}-{digest.hex()}.kv"
        size = len(header) + len(ids) + data.nbytes
        if size > self._budget:
            self._full = True
            return
        try:
            self._make_room(size)
            _write(place, (header, ids, data.reshape(-1).data))
        except FileNotFoundError:  # the directory was removed: it is made again
            self._looked = -math.inf
            return
        except OSError as error:
            _LOG.warning("no more prefixes are kept on disk: %s", error.strerror)
            self._full = True
            return
        self._note(parent.hex(), digest.hex(), _Kept(place, size, time.time()))

    def _make_room(self, size: int) -> None:
        everything = [self._files, *self._others]
        total = size + sum(kept.size for files in everything for kept in files.values())
        if total <= self._budget:
            return
        target = self._budget * 9 // 10
        ranked = [(rank, name, files) for files in everything for name, rank in _ranks(files).items()]
        for _, name, files in sorted(ranked, key=lambda found: found[0]):
            if total <= target:
                return
            total -= files[name].size
            if files is self._files:
                self._forget(*name)
            else:
                _remove(files.pop(name).path)

    # --- which files there are ---------------------------------------------------------------------------------------

    def _open(self) -> bool:
        """Look at the directory, the first time and now and then; False where it cannot be used."""
        if not self._off and time.monotonic() - self._looked > _AGAIN:
            try:
                self._look()
            except OSError as error:
                _LOG.warning("prefixes are not kept on disk: %s", error.strerror)
                self._off = True
            self._looked = time.monotonic()
        return not self._off

    def _look(self) -> None:
        """Make the directories where they are missing, and look at them; again where they go while that is done."""
        for left in reversed(range(_TRIES)):
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folder.mkdir(mode=0o700, exist_ok=True)
                self._scan()
                return
            except (FileExistsError, FileNotFoundError):  # "exists" and no directory: gone between the two questions
                if not left:
                    raise

    def _scan(self) -> None:
        self._files, self._children, self._others = {}, {}, []
        for name, kept in _listed(self._folder, tidy=True).items():
            self._note(*name, kept)
        for other in _entries(self._root):
            if other.name != self._folder.name and other.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    self._others.append(_listed(Path(other.path)))

    def _note(self, parent: str, digest: str, kept: _Kept) -> None:
        self._files[parent, digest] = kept
        self._children.setdefault(parent, []).append(digest)

    def _forget(self, parent: str, digest: str) -> None:
        kept = self._files.pop((parent, digest))
        self._children[parent].remove(digest)
        _remove(kept.path)


def _outside_media(content: Content, position: int) -> int:
    return next((m.start for m in content.media if m.start < position < m.start + m.length), position)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _listed(folder: Path, *, tidy: bool = False) -> dict[_Name, _Kept]:
    """The blocks in a directory; with ``tidy`` what is none is removed, unless somebody may still be writing it."""
    found: dict[_Name, _Kept] = {}
    for entry in _entries(folder):
        try:
            known = entry.stat(follow_symlinks=False)
        except OSError:  # another process has just removed it
            continue
        name = _NAME.fullmatch(entry.name)
        if name and stat.S_ISREG(known.st_mode):
            found[name[1], name[2]] = _Kept(Path(entry.path), known.st_size, known.st_mtime)
        elif tidy and not stat.S_ISDIR(known.st_mode) and not _being_written(entry.name, known.st_mtime):
            _remove(Path(entry.path))
    return found


def _being_written(name: str, changed: float) -> bool:
    return name.startswith(".") and time.time() - changed < _STALE


def _ranks(files: Mapping[_Name, _Kept]) -> dict[_Name, tuple[float, int]]:
    """Lower goes first: (when it, or what goes on from it, was last used, how many blocks go on from it in a row)."""
    by_digest = {name[1]: name for name in files}
    ranks: dict[_Name, tuple[float, int]] = {}
    for start, kept in files.items():
        name: _Name | None = start
        used, height = kept.used, 0
        while name is not None and height <= len(files):  # names that others made may run in a circle
            before = ranks.get(name, (-math.inf, -1))
            ranks[name] = rank = max(before[0], used), max(before[1], height)
            if rank == before:
                break
            (used, height), name = (rank[0], rank[1] + 1), by_digest.get(name[0])
    return ranks


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # one that cannot be removed is only not used
        path.unlink(missing_ok=True)


def _write(place: Path, parts: Sequence[bytes | memoryview]) -> None:
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
