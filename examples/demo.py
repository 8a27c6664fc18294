"""The main job, offline, on real weights: a tool called and answered, then a picture seen and a clip heard."""

import random

import numpy as np

from qwen_agent_kit import Agent, Audio, Image, RunDone, TextDelta, ToolCalled, ToolReturned, tool


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

# No model is named: the small one that takes the parts answers. The picture and the clip are drawn here.
y, x = np.mgrid[:112, :112]
picture = np.full((112, 112, 3), 255, dtype=np.uint8)
picture[42:70, 5:33] = (45, 85, 215)
picture[(x - 93) ** 2 + (y - 56) ** 2 < 15**2] = (215, 40, 40)
ramp = np.minimum(1, np.linspace(0, 50, 16_000)) * np.minimum(1, np.linspace(50, 0, 16_000))
pitch = np.geomspace(300, 1800, 16_000)
tone = np.concatenate([np.zeros(3000), 0.4 * ramp * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000), np.zeros(3000)])
for question, media in {
    "What is left of the red circle?": Image(picture),
    "Does the tone rise or fall?": Audio(tone.astype(np.float32)),
}.items():
    answer = Agent().run([question, media])
    print(f"{media.kind}: {question} {answer.output}", flush=True)
