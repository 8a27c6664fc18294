"""What happens in a video, and when: frames at even times, one question about each, equal answers joined.

    python examples/video_summary.py [clip.mp4 question [model]]

A large model takes the video whole: `Agent("Qwen/Qwen2.5-VL-7B-Instruct").run("Summarise it", video="clip.mp4")`. The
small one that answers here sees one picture at a time.
"""

from __future__ import annotations

import io
import sys
from itertools import groupby

import av
import numpy as np
from qwen_agent_kit_vision import frames

from qwen_agent_kit import Agent, Video


def drawn() -> bytes:
    """Six seconds: a red square, then a blue one, then a green one."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "bgr0"
        for number in range(24):
            picture = np.full((112, 112, 3), 255, dtype=np.uint8)
            picture[40:72, 40:72] = ((215, 40, 40), (45, 85, 215), (40, 160, 60))[number // 8]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return sink.getvalue()


def main() -> None:
    source, question = (sys.argv[1], sys.argv[2]) if len(sys.argv) > 2 else (drawn(), "Which colour is the square?")
    agent = Agent(sys.argv[3] if len(sys.argv) > 3 else None)
    seen = [(time, agent.run([question, picture]).output) for time, picture in frames(Video(source), 12)]
    for answer, group in groupby(seen, key=lambda one: one[1]):
        times = [time for time, _ in group]
        print(f"{times[0]:.1f} to {times[-1]:.1f} s: {answer}")


if __name__ == "__main__":
    main()
