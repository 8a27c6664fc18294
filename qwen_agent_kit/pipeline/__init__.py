"""Many items through one agent: a folder, a table or any iterable, a prompt with places for fields, a typed output.

Reading, loading of media and writing overlap with the model; memory is bounded; a run that was killed goes on.
"""

from __future__ import annotations

from qwen_agent_kit.pipeline.given import source_of
from qwen_agent_kit.pipeline.items import Columns
from qwen_agent_kit.pipeline.report import Report
from qwen_agent_kit.pipeline.run import Pipeline, Settings, run_pipeline

__all__ = ["Columns", "Pipeline", "Report", "Settings", "run_pipeline", "source_of"]
