"""The main job, offline, on real weights: a question, one tool, a streamed answer and what it cost."""

import random

from qwen_agent_kit import Agent, RunDone, TextDelta, ToolCalled, ToolReturned, tool


@tool
def get_temperature(city: str) -> str:
    """Get the current temperature of a city.

    Args:
        city: Name of the city
    """
    return f"The temperature in {city} is {random.randint(11, 39)} degrees."  # no secret, a demo


agent = Agent(tools=[get_temperature], tool_choice="required")
for event in agent.stream("What is the temperature in Oslo right now?"):
    match event:
        case ToolCalled(call):
            print(f"-> {call.name}({dict(call.arguments)})", flush=True)
        case ToolReturned(_, result, ms):
            print(f"<- {result.text} ({ms:.1f} ms)", flush=True)
        case TextDelta(text):
            print(text, end="", flush=True)
        case RunDone(result):
            print(f"\nstop_reason: {result.stop_reason}")
            for step in result.steps:
                print(f"step {step.index}: {step.usage}")
