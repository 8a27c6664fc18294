"""Finding what a prompt shares with many sequences: a chain of digests over blocks of positions.

A block's digest covers its ids, the media that begin in it, its positions where they are not plain, and the digest of
the block before; the first one's parent is the salt. So equal digests mean equal beginnings (BLAKE2b, 16 bytes), and
the longest beginning that many sequences share with a prompt is found in time that only depends on the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qwen_agent_kit.backends import MediaSpan
from qwen_agent_kit.engine.content import Content, Ids, positions_of
from qwen_agent_kit.engine.live import Live

__all__ = ["BLOCK", "Index", "chain_of", "digest_of", "root"]

BLOCK = 64
"""Positions of a block."""


class _Source(Protocol):
    @property
    def media(self) -> tuple[MediaSpan, ...]: ...

    @property
    def salt(self) -> str: ...


def root(salt: str) -> bytes:
    """The parent of a first block."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"qak-salt").digest()


def digest_of(
    parent: bytes, ids: Ids, start: int, media: Sequence[MediaSpan], positions: npt.NDArray[np.int64]
) -> bytes:
    """The digest of a block, or of the beginning of one.

    Args:
        parent: Of the block before.
        ids: Its ids, int32.
        start: Where it begins.
        media: Of the whole sequence.
        positions: Its own, [n] or [3, n].
    """
    found = hashlib.blake2b(parent, digest_size=16)
    found.update(ids.tobytes())
    for span in media:
        if start <= span.start < start + len(ids):
            found.update(f"|{span.start},{span.length},{span.digest}".encode())
    if positions.ndim > 1 and not (positions == np.arange(start, start + len(ids))).all():
        found.update(b"@" + positions.tobytes())
    return found.digest()


def chain_of(content: Content, known: Sequence[bytes] = ()) -> list[bytes]:
    """The digests of a prompt's whole blocks, of which the first ``known`` are given."""
    chain = list(known)
    for at in range(len(chain), len(content.ids) // BLOCK):
        start, end = at * BLOCK, (at + 1) * BLOCK
        parent = chain[-1] if chain else root(content.salt)
        chain.append(digest_of(parent, content.ids[start:end], start, content.media, positions_of(content, start, end)))
    return chain


class Index:
    """Which sequences have which blocks. Used by the engine's thread alone."""

    def __init__(self) -> None:
        self._lives: dict[bytes, dict[Live, None]] = {}

    def __len__(self) -> int:
        return len(self._lives)

    def note(self, live: Live) -> None:
        """Take in the blocks that a sequence has computed since it was last noted."""
        for at in range(len(live.chain), live.length // BLOCK):
            start, end = at * BLOCK, (at + 1) * BLOCK
            parent = live.chain[-1] if live.chain else root(live.salt)
            digest = digest_of(parent, live.ids(start, end), start, live.media, live.positions(start, end))
            live.chain.append(digest)
            self._lives.setdefault(digest, {})[live] = None

    def cut(self, live: Live, kept: int) -> None:
        """Forget its blocks beyond the first ``kept`` positions."""
        for digest in live.chain[kept // BLOCK :]:
            holders = self._lives[digest]
            holders.pop(live, None)
            if not holders:
                del self._lives[digest]
        del live.chain[kept // BLOCK :]

    def deepest(self, chain: Sequence[bytes]) -> tuple[int, Iterator[Live]]:
        """The most whole blocks of ``chain`` that any sequence has, and those that have them, latest noted first."""
        for depth in range(len(chain), 0, -1):
            if holders := self._lives.get(chain[depth - 1]):
                return depth, reversed(holders)
        return 0, iter(())
