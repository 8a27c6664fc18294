"""``run_pipeline``: many items through one agent, into a file that survives the end of the process."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import UsageError
from qwen_agent_kit.pipeline.attempt import Outcome, Runner
from qwen_agent_kit.pipeline.flow import Flow
from qwen_agent_kit.pipeline.given import source_of
from qwen_agent_kit.pipeline.items import Columns, Item, items_of, parts_of
from qwen_agent_kit.pipeline.job import Job, job_of
from qwen_agent_kit.pipeline.report import Report
from qwen_agent_kit.pipeline.rows import Source
from qwen_agent_kit.pipeline.sink import Sink
from qwen_agent_kit.pipeline.template import Template

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent

__all__ = ["Pipeline", "Settings", "run_pipeline"]

PATIENCE = 10.0
"""Seconds that the end waits for the last results to be written."""
SYNC_EVERY = 1.0
"""Seconds; a power cut loses at most the results of that time, the end of the process none."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a pipeline runs; see ``run_pipeline``.

    Raises:
        UsageError: For a value that is not allowed.
    """

    concurrency: int = 16
    prefetch: int = 8
    retries: int = 1
    limit: int | None = None
    max_errors: int | None = None
    ordered: bool = False
    restart: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        ranges = {"concurrency": (1, 256), "prefetch": (0, 256), "retries": (0, 10)}
        ranges |= {"limit": (0, 2**63), "max_errors": (1, 2**63)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None and name in ("limit", "max_errors"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                upper = f" to {high}" if high <= 256 else " on"
                raise UsageError(f"`{name}` is {value!r}; allowed: a whole number from {low}{upper}")


def run_pipeline(
    items: Any,
    agent: Agent,
    *,
    prompt: str,
    output: Any = None,
    sink: str | os.PathLike[str],
    key: str | None = None,
    images: str | Sequence[str] = (),
    audio: str | Sequence[str] = (),
    video: str | Sequence[str] = (),
    pattern: str | None = None,
    outside: bool = False,
    progress: Callable[[Report], None] | None = None,
    **settings: Any,
) -> Report:
    """Run every item through the agent and write one result each; run again, it goes on where it was.

    Args:
        items: A folder, a .csv, .tsv, .jsonl or .ndjson file, or an iterable of mappings, texts or media, read lazily.
        agent: What answers. Its engine works on many items at once.
        prompt: With ``{field}`` for an item's fields. Media that no place names come after the text.
        output: What each answer must be, in place of the agent's own.
        sink: A .jsonl or .parquet file (with its journal beside it).
        key: The field that names an item; else a folder's relative paths, or a digest of the fields.
        images: Fields that hold pictures: paths, ``data:`` URLs, bytes. The same for ``audio`` and ``video``.
        audio: Fields that hold clips.
        video: Fields that hold moving pictures.
        pattern: For a folder: which names are items, as in ``*.png``.
        outside: Whether links and paths may lead out of the source's folder.
        progress: Called with the counts as results come.
        **settings: ``concurrency`` (16: items that run at once), ``prefetch`` (8: items that are loaded ahead),
            ``retries`` (1: more attempts after faults that may pass), ``limit`` (items that are read), ``max_errors``
            (failed items after which it stops), ``ordered`` (results in the order of the source, else as they come),
            ``restart`` (replace what is there), ``retry_failed`` (run the items again whose result is an error).

    Raises:
        UsageError: Before the first item runs, for arguments that are refused, fields that items do not have, and a
            sink that holds another job's results.
        StoreError: Where the disk refuses a result.
        QakError: What is wrong for every item, such as a model that is not there.
    """
    columns = Columns.of(key, images, audio, video, outside=outside)
    source = source_of(items, pattern=pattern, outside=outside)
    return Pipeline(source, agent, prompt, output, sink, columns, _settings(settings), progress).run()


class Pipeline:
    """One run of ``run_pipeline``, for callers who want the counts of a run that was interrupted.

    Attributes:
        report: The counts so far.
    """

    def __init__(
        self,
        source: Source,
        agent: Agent,
        prompt: str,
        output: Any,
        sink: str | os.PathLike[str],
        columns: Columns,
        settings: Settings,
        progress: Callable[[Report], None] | None = None,
    ) -> None:
        self._source, self._columns, self._settings = source, columns, settings
        self._template = Template(prompt)
        self._progress = progress or (lambda _: None)
        self._output = agent.output_of(output)
        self._check(source.columns())
        self._job: Job = job_of(agent, prompt, self._output, columns)
        self._sink = Sink(sink, self._output.schema if self._output is not None else None)
        self._sink.keep_off(source)
        self._stop = threading.Event()
        self._runner = Runner(agent, self._output, settings.retries, self._stop)
        self._count: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._began = time.monotonic()
        self._flow: Flow | None = None
        self._news = threading.Event()
        self._failure: Exception | None = None
        self._stopped: str | None = None

    def run(self) -> Report:
        """Run to the end; on Ctrl-C what is in flight is stopped, the sink is left whole, and it is raised."""
        self._began = time.monotonic()
        with self._sink.opened(self._job, restart=self._settings.restart, retry_failed=self._settings.retry_failed):
            self._flow = flow = self._make_flow()
            # Results are written by a thread of their own, which Ctrl-C cannot break between two steps.
            writer = threading.Thread(target=self._drain, args=(flow,), name="qak-writer", daemon=True)
            try:
                with flow:
                    writer.start()
                    self._watch(writer)
            except KeyboardInterrupt:
                self._stopped = "interrupted"
                raise
            finally:
                writer.join(PATIENCE)
            if self._failure is not None:
                raise self._failure
            self._sink.finish()
        return self.report

    @property
    def report(self) -> Report:
        """The counts so far."""
        count = self._count
        return Report(
            sink=str(self._sink.path),
            job=self._job.digest,
            errors=dict(self._errors),
            seconds=time.monotonic() - self._began,
            peak_items=self._flow.peak if self._flow is not None else 0,
            order="source" if self._settings.ordered else "completion",
            stopped=self._stopped,
            prompt_tokens=count.get("prompt_tokens"),
            generated_tokens=count.get("generated_tokens"),
            **{name: count[name] for name in ("seen", "before", "duplicates", "done", "failed", "cut", "retried")},
        )

    # --- inside ----------------------------------------------------------------------------------------------------

    def _check(self, found: tuple[str, ...] | None) -> None:
        """Refuse fields that items do not have, before anything is opened; a source without items asks for none."""
        if found is not None:
            self._template.check(found)
            self._columns.check(found)

    def _make_flow(self) -> Flow:
        return Flow(
            self._wanted(),
            lambda item: parts_of(item, self._template, self._columns, self._source.root),
            self._runner.run,
            workers=self._settings.concurrency,
            ahead=self._settings.prefetch,
            ordered=self._settings.ordered,
            stop=self._stop,
        )

    def _wanted(self) -> Iterator[Item]:
        """The items that have no result yet."""
        limit = self._settings.limit
        for item in items_of(self._source, self._columns):
            if limit is not None and self._count["seen"] >= limit:
                self._stopped = "limit"
                return
            self._count["seen"] += 1
            if item.repeated:
                self._count["duplicates"] += 1
            elif self._sink.has(item.mark):
                self._count["before"] += 1
            else:
                yield item

    def _watch(self, writer: threading.Thread) -> None:
        """Tell the progress until everything is written."""
        while writer.is_alive():
            if self._news.wait(0.5):
                self._news.clear()
                self._progress(self.report)
        self._progress(self.report)

    def _drain(self, flow: Flow) -> None:
        synced = time.monotonic()
        try:
            for outcome in flow.outcomes():
                self._write(outcome, flow)
                self._news.set()
                if self._settings.max_errors is not None and self._count["failed"] >= self._settings.max_errors:
                    self._stopped = "max_errors"
                    flow.halt()
                if time.monotonic() - synced >= SYNC_EVERY:
                    self._sink.sync()
                    synced = time.monotonic()
        except Exception as error:  # noqa: BLE001  # it is raised by run()
            self._failure = error
        finally:
            self._news.set()

    def _write(self, outcome: Outcome, flow: Flow) -> None:
        self._sink.append(outcome.record)
        flow.written(outcome)
        error = outcome.record["error"]
        self._count["done" if error is None else "failed"] += 1
        self._count["retried"] += max(0, outcome.record["attempts"] - 1)
        if error is not None:
            self._errors[error["code"]] += 1
        if outcome.result is not None:
            self._count["cut"] += error is None and outcome.result.stop_reason == "length"
            for name in ("prompt_tokens", "generated_tokens"):
                if (tokens := getattr(outcome.result.usage, name)) is not None:
                    self._count[name] += tokens


def _settings(given: dict[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    for name in given:
        if name not in known:
            raise UsageError(f"`run_pipeline` takes no {name!r}; allowed: {', '.join(known)}")
    return Settings(**given)
