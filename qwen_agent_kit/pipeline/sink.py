"""Where results go: a JSON Lines file that is its own journal, or Parquet made from a journal beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.job import Job
from qwen_agent_kit.pipeline.journal import Journal
from qwen_agent_kit.pipeline.parquet import require_pyarrow, write_parquet
from qwen_agent_kit.pipeline.rows import Source

__all__ = ["Sink"]


class Sink:
    """The results of one job.

    Beside ``out.jsonl`` lies ``out.jsonl.job``, which says whose results they are. Beside ``out.parquet`` lie
    ``out.parquet.job`` and ``out.parquet.journal``, the results as lines, from which the Parquet file is written
    whenever a run ends.

    Args:
        path: Its suffix says which.
        schema: Of the answers, None for text.

    Raises:
        UsageError: For another suffix, a folder that is not there, and Parquet without pyarrow.
    """

    def __init__(self, path: str | os.PathLike[str], schema: Mapping[str, Any] | None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"`sink` is a {type(path).__name__}; allowed: a path")
        self.path = Path(path)
        self._schema = schema
        suffix = self.path.suffix.lower()
        if suffix not in (".jsonl", ".ndjson", ".parquet"):
            raise UsageError(
                f"the sink is {str(path)[:200]!r}; allowed: a name that ends in .jsonl, .ndjson or .parquet"
            )
        if not self.path.parent.is_dir():
            raise UsageError(f"the sink's folder `{str(self.path.parent)[:200]}` is not there", hint="make it first")
        self._parquet = suffix == ".parquet"
        if self._parquet:
            require_pyarrow()
        self._lines = self._beside("journal") if self._parquet else self.path
        self._journal: Journal | None = None

    def keep_off(self, source: Source) -> None:
        """Refuse to write what is read.

        Raises:
            UsageError: Where one of the sink's files is the source, or an item of it.
        """
        if any(source.reads(place) for place in (self.path, self._lines, self._beside("job"))):
            raise UsageError(
                f"the sink `{self.path.name[:80]}` is the source, or lies in the folder that is read",
                hint="name a file somewhere else, or leave it out with --pattern (pattern=)",
            )

    @contextlib.contextmanager
    def opened(self, job: Job, *, restart: bool, retry_failed: bool) -> Iterator[None]:
        """Go on with the results of this job, or begin them.

        Raises:
            UsageError: Where they are another job's, or another process writes them.
            StoreError: Where they cannot be read or written.
        """
        if self.path.is_dir():
            raise UsageError(f"the sink `{str(self.path)[:200]}` is a folder; allowed: a file")
        saved = self._beside("job")
        if not restart and self._parquet and self.path.exists() and not self._lines.exists():
            raise UsageError(
                f"`{self.path.name[:80]}` is there without the journal it was made from, so nothing can be added to it",
                hint="name another sink, or begin anew with --restart (restart=True), which replaces what is there",
                code="foreign_sink",
            )
        with contextlib.closing(Journal(self._lines)) as journal:
            if not restart and not journal.empty:
                job.check(saved, self.path)
            if restart:
                journal.restart()
            if journal.empty:
                job.save(saved)
            journal.recover()
            if retry_failed:
                journal.drop_failed()
            self._journal = journal
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    journal.sync()
                self._journal = None

    def has(self, mark: bytes) -> bool:
        """Whether the item with this mark has a result."""
        return mark in self._open.done

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one result; see ``Journal.append``."""
        self._open.append(record)

    def sync(self) -> None:
        """Make what was kept safe from a power cut."""
        self._open.sync()

    def finish(self) -> None:
        """Write the Parquet file where that is what was asked for."""
        if self._parquet:
            self._open.sync()
            write_parquet(self._lines, self.path, self._schema)

    @property
    def _open(self) -> Journal:
        assert self._journal is not None, "the sink is used inside opened()"
        return self._journal

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{what}")
