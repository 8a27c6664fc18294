"""``qak pipeline``: a folder, a CSV or JSON Lines file through one prompt, into JSON Lines or Parquet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_agent_kit.cli.options import lone_agent_options, open_agent, read_schema
from qwen_agent_kit.cli.output import json_option, note, print_json, talk_only
from qwen_agent_kit.errors import UsageError

if TYPE_CHECKING:
    from qwen_agent_kit.pipeline import Pipeline, Report
    from qwen_agent_kit.pipeline.rows import Source

__all__ = ["pipeline_command"]

MAX_PROMPT = 2**20
LINE_EVERY = 30.0
"""Seconds between lines of progress where stderr is no terminal."""


@click.command("pipeline")
@click.argument("source")
@click.option("--prompt", "-p", metavar="TEXT", help="The prompt; {field} is an item's field, {{ and }} are braces.")
@click.option("--prompt-file", metavar="PATH", help="The prompt, in a file.")
@click.option("--sink", "-o", required=True, metavar="PATH", help="out.jsonl or out.parquet.")
@click.option("--image", "images", multiple=True, metavar="COLUMN", help="A column with pictures; repeatable.")
@click.option("--audio", multiple=True, metavar="COLUMN", help="A column with clips; repeatable.")
@click.option("--video", multiple=True, metavar="COLUMN", help="A column with videos; repeatable.")
@click.option("--key", metavar="COLUMN", help="The column that names an item.")
@click.option("--pattern", metavar="GLOB", help="For a folder: which names are items, as in '*.png'.")
@click.option("--output-schema", metavar="SCHEMA", help="A JSON schema, or its file: every answer is such JSON.")
@click.option("--concurrency", type=int, default=16, show_default=True, metavar="N", help="Items that run at once.")
@click.option("--prefetch", type=int, default=8, show_default=True, metavar="N", help="Items that are loaded ahead.")
@click.option("--retries", type=int, default=1, show_default=True, metavar="N", help="More attempts after a fault.")
@click.option("--limit", type=int, metavar="N", help="The most items that are read.")
@click.option("--max-errors", type=int, metavar="N", help="Stop after so many failed items.")
@click.option("--ordered", is_flag=True, help="Results in the order of the source; else as they come.")
@click.option("--retry-failed", is_flag=True, help="Run the items again whose result is an error.")
@click.option("--restart", is_flag=True, help="Replace what the sink holds.")
@click.option("--allow-outside", is_flag=True, help="Follow links and paths that lead out of the source's folder.")
@lone_agent_options
@json_option
def pipeline_command(source: str, as_json: bool, **options: Any) -> int:
    """Run every item of SOURCE (a folder, .csv, .tsv, .jsonl or .ndjson) through one prompt.

    \b
    The items of a folder are its files; their fields are path, name, stem,
    suffix and file (the picture, clip or text itself).

    Each result is written as it comes, also one that failed. After Ctrl-C, a crash or a power cut the same command
    goes on where it was: what has a result is not run again. A changed prompt, schema, model or setting is another
    job and is refused, unless --restart replaces what is there.

    --json prints the counts as one object. Exit codes: 0 every item has an answer, 1 some failed or it was stopped,
    2 asked wrongly.
    """  # noqa: D301  # click reads the control character itself: it keeps the lines that follow as they are
    prompt = _prompt(options["prompt"], options["prompt_file"])
    output = read_schema(options["output_schema"])
    with talk_only(), open_agent(options, output=output) as agent, _progress() as (shown, measure):
        made, rows = _pipeline(source, agent, prompt, options, shown)
        measure(rows)
        try:
            report = made.run()
        except KeyboardInterrupt:
            report = made.report
    if as_json:
        print_json(report.to_dict())
    _talk(report)
    return 0 if not report.failed and report.stopped in (None, "limit") else 1


def _pipeline(
    source: str, agent: Any, prompt: str, options: dict[str, Any], progress: Callable[[Report], None]
) -> tuple[Pipeline, Source]:
    from qwen_agent_kit.pipeline import Columns, Pipeline, Settings, source_of

    names = ("concurrency", "prefetch", "retries", "limit", "max_errors", "ordered", "restart", "retry_failed")
    settings = Settings(**{name: options[name] for name in names})
    outside = options["allow_outside"]
    columns = Columns.of(options["key"], options["images"], options["audio"], options["video"], outside=outside)
    rows = source_of(Path(source).expanduser(), pattern=options["pattern"], outside=outside)
    sink = Path(options["sink"]).expanduser()
    return Pipeline(rows, agent, prompt, None, sink, columns, settings, progress), rows


def _prompt(text: str | None, path: str | None) -> str:
    if (text is None) == (path is None):
        raise UsageError(
            "the prompt is missing, or is there twice", hint='one of --prompt "..." and --prompt-file PATH'
        )
    if path is None:
        return text or ""
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig") as file:
            found = file.read(MAX_PROMPT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"cannot read the prompt `{path[:200]}`: {reason}", hint="check the path") from error
    if len(found) > MAX_PROMPT:
        raise UsageError(f"the prompt has more than {MAX_PROMPT} characters")
    return found.removesuffix("\n")


# --- what is shown ----------------------------------------------------------------------------------------------------


def _talk(report: Report) -> None:
    if not report.seen and report.stopped is None:
        note("the source has no items")
    rate = f", {report.items_per_second:.2f} items/s" if report.items_per_second else ""
    earlier = f", {report.before} done before" if report.before else ""
    twice = f", {report.duplicates} left out (their key came before)" if report.duplicates else ""
    note(
        f"{report.done} answered, {report.failed} failed{earlier}{twice} in {report.seconds:.1f} s{rate}: {report.sink}"
    )
    for code, count in sorted(report.errors.items(), key=lambda pair: -pair[1]):
        note(f"  {count} x {code}")
    if report.stopped in ("interrupted", "max_errors"):
        note(f"stopped ({report.stopped}); the same command goes on where it was")
    if report.failed:
        note("hint: --retry-failed runs the failed items again")


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Callable[[Report], None], Callable[[Source], None]]]:
    """A bar where a person watches, else a line now and then.

    Yields:
        What shows the counts, and what learns how many items there are.
    """
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines().show, lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("items", total=None, rate="")

        def show(report: Report) -> None:
            failed = f", {report.failed} failed" if report.failed else ""
            rate = f"{report.items_per_second or 0.0:.2f} items/s{failed}"
            bar.update(task, completed=report.done + report.failed + report.before + report.duplicates, rate=rate)

        yield show, lambda source: bar.update(task, total=source.total())


class _Lines:
    """Progress for logs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, report: Report) -> None:
        """Write a line where the last one is old enough."""
        if time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            rate = report.items_per_second or 0.0
            note(f"{report.done} answered, {report.failed} failed, {report.before} before, {rate:.2f} items/s")
