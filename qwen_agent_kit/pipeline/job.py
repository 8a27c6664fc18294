"""What a job is, in digests: results of one job are never mixed with those of another."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_agent_kit.errors import StoreError, UsageError
from qwen_agent_kit.paths import write_private
from qwen_agent_kit.pipeline.items import Columns

if TYPE_CHECKING:
    from qwen_agent_kit.agent import Agent
    from qwen_agent_kit.tools import OutputType

__all__ = ["Job", "job_of"]

VERSION = 1
MAX_FILE = 2**20


@dataclass(frozen=True, slots=True)
class Job:
    """The digest of each thing that decides what the results are.

    Args:
        digests: By name: prompt, output, model, settings, columns.
    """

    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of all of them together."""
        return _digest(dict(self.digests))

    def save(self, path: Path) -> None:
        """Write it beside the results, whole or not at all.

        Raises:
            StoreError: Where the disk refuses.
        """
        data = {"schema_version": VERSION, "job": self.digest, "digests": dict(self.digests)}
        try:
            write_private(path, json.dumps(data, indent=1).encode() + b"\n")
        except OSError as error:
            raise StoreError(f"cannot write `{path.name[:80]}`: {error.strerror}") from error

    def check(self, path: Path, sink: Path) -> None:
        """Refuse results that another job wrote.

        Args:
            path: Where the job of the results was saved.
            sink: The results, for the message.

        Raises:
            UsageError: Says what changed.
        """
        before = _load(path)
        hint = "name another sink, or begin anew with --restart (restart=True), which replaces what is there"
        if before is None:
            raise UsageError(
                f"`{sink.name[:80]}` is there and holds no results of a pipeline", hint=hint, code="foreign_sink"
            )
        names = dict.fromkeys([*self.digests, *before])
        changed = [name for name in names if self.digests.get(name) != before.get(name)]
        if changed:
            raise UsageError(
                f"`{sink.name[:80]}` holds the results of another job: {', '.join(changed)} changed",
                hint=hint,
                code="job_changed",
            )


def _load(path: Path) -> dict[str, str] | None:
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        if path.is_file() and path.stat().st_size <= MAX_FILE:
            data = json.loads(path.read_bytes())
            if data["schema_version"] == VERSION and isinstance(data["digests"], dict):
                return dict(data["digests"])
    return None


def job_of(agent: Agent, prompt: str, output: OutputType | None, columns: Columns) -> Job:
    """The job that an agent would do with a prompt."""
    setup = agent.setup
    models = [model if isinstance(model, str) else _name(agent, model) for model in setup.candidates]
    limits, sampling = repr(setup.limits), repr(setup.sampling)
    settings: list[Any] = [setup.system, limits, sampling, setup.thinking, setup.tool_choice]
    tools = [tool.definition() for tool in setup.tools.values()]
    meant = {"key": columns.key, "media": sorted(columns.media.items())}
    parts: dict[str, Any] = {"prompt": prompt, "output": output.schema if output is not None else None, "model": models}
    parts |= {"settings": [*settings, tools], "columns": meant}
    return Job({name: _digest(value) for name, value in parts.items()})


def _name(agent: Agent, model: Any) -> str:
    """What a model is called: an object's own name, or what the host takes where none is named."""
    if model is not None:
        return str(model.name)
    return str(agent.setup.host.target(None).name)


def _digest(value: Any) -> str:
    data = json.dumps(value, sort_keys=True, default=repr).encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:32]
