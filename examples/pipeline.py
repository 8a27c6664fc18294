"""A pipeline over a folder: a question about each note, typed answers, and a run that goes on after it was stopped."""

import tempfile
from pathlib import Path

import pydantic

from qwen_agent_kit import Agent, Sampling, run_pipeline


class Verdict(pydantic.BaseModel):
    """What is asked about each note."""

    happy: bool


NOTES = {
    "monday.txt": "The train was late and it rained all day.",
    "tuesday.txt": "We won the game! Everybody sang on the way home.",
    "wednesday.txt": "I lost my keys.",
    "thursday.txt": "Grandmother baked a cake for us, it was wonderful.",
}

with tempfile.TemporaryDirectory() as place:
    folder, sink = Path(place) / "notes", Path(place) / "verdicts.jsonl"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    agent = Agent(output=Verdict, sampling=Sampling(temperature=0, max_tokens=32))
    question = "Is the writer of this note happy?\n\n{file}"
    first = run_pipeline(folder, agent, prompt=question, sink=sink, limit=2)
    rest = run_pipeline(folder, agent, prompt=question, sink=sink)
    print(f"first run: {first.done} done; second run: {rest.before} before, {rest.done} done, {rest.failed} failed")
    print(sink.read_text(), end="")
