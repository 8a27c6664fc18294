"""Draw what a model pointed at: its answer's boxes become pixels of the original picture.

    python examples/boxes.py out.png

The answer below is what Qwen2.5-VL writes; with a model it is `Agent(...).run("Find ...", images=[path]).output`.
"""

from __future__ import annotations

import sys

import numpy as np
from qwen_agent_kit_vision import Box, draw, parse_marks

ANSWER = '[{"bbox_2d": [56, 28, 224, 140], "label": "square"}, {"point_2d": [420, 84], "label": "dot"}]'


def main(target: str) -> None:
    picture = np.full((200, 800, 3), 255, dtype=np.uint8)
    picture[40:200, 80:320] = (90, 160, 220)
    picture[115:125, 595:605] = 0
    marks = parse_marks(ANSWER, size=(800, 200), seen=(560, 140))
    for mark in marks:
        if isinstance(mark, Box):
            place = f"{mark.left:g},{mark.top:g} to {mark.right:g},{mark.bottom:g}"
        else:
            place = f"{mark.x:g},{mark.y:g}"
        print(f"{mark.label}: {place}")
    draw(picture, marks).save(target)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "boxes.png")
