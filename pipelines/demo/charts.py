"""Draws the demo's bar charts, so that every image has a table that is known to be right.

In: counts and a seed. Out: `images/{train,eval}/*.png`, each chart's table as
`tables/{train,eval}/*.txt`, and `questions.jsonl` with ground-truth questions on the held-out charts.

Every chart belongs to exactly one `Part`, chosen by a hash of its table: the teacher's training, the
student's pre-training, the pipeline's own images and the evaluation can therefore never share a chart.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

IMAGE_SIZE = 64
"""Side of a chart in pixels."""
SLOT_WIDTH = 16
"""Pixels between the left edges of two bars."""
BAR_WIDTH = 12
UNIT_HEIGHT = 8
"""Pixels a bar grows by for each unit of its value."""
BASELINE = 60
"""The row on which the bars stand, counted from the top."""
MAX_VALUE = 7
BAR_COUNTS = (2, 3, 4)
BAR_COUNT_WEIGHTS = (1, 2, 2)
BACKGROUND = (255, 255, 255)
AXIS = (0, 0, 0)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 30),
    "purple": (140, 50, 170),
    "orange": (250, 130, 20),
}

Progress = Callable[[int, int], None]
"""Called with (units done, units in total)."""


class Part(StrEnum):
    """What a chart may be used for; the share of all charts is in `_SHARES`."""

    EVALUATION = "evaluation"
    PIPELINE = "pipeline"
    TEACHER = "teacher"
    STUDENT = "student"


_SHARES = ((Part.EVALUATION, 10), (Part.PIPELINE, 20), (Part.TEACHER, 60), (Part.STUDENT, 100))


@dataclass(frozen=True)
class Bar:
    """One bar: a colour out of `COLORS` and a height in units, 1 to `MAX_VALUE`."""

    color: str
    value: int


@dataclass(frozen=True)
class Chart:
    """The bars of a chart from left to right; no colour and no value occurs twice."""

    bars: tuple[Bar, ...]

    def table(self) -> str:
        """The chart in words, left to right: `red 3, blue 7`."""
        return ", ".join(f"{bar.color} {bar.value}" for bar in self.bars)

    def text_form(self) -> str:
        """The chart as the text that is written beside its image."""
        return f"Bars: {self.table()}."

    @property
    def part(self) -> Part:
        """The only part that may use this chart."""
        bucket = int.from_bytes(hashlib.sha256(self.table().encode()).digest()[:4], "big") % 100
        return next(part for part, end in _SHARES if bucket < end)


def sample_chart(rng: random.Random, part: Part) -> Chart:
    """A random chart of `part`."""
    while True:
        (count,) = rng.choices(BAR_COUNTS, BAR_COUNT_WEIGHTS)
        colors = rng.sample(sorted(COLORS), count)
        values = rng.sample(range(1, MAX_VALUE + 1), count)
        chart = Chart(tuple(Bar(*bar) for bar in zip(colors, values, strict=True)))
        if chart.part is part:
            return chart


def corrupt(rng: random.Random, chart: Chart) -> Chart:
    """`chart` with one mistake (a value off, a colour swapped, a bar lost), still of the same part."""
    while True:
        bars = list(chart.bars)
        index = rng.randrange(len(bars))
        mistake = rng.choice(("value", "value", "color", "swap", "drop"))
        if mistake == "value":
            unused = sorted(set(range(1, MAX_VALUE + 1)) - {bar.value for bar in bars})
            bars[index] = Bar(bars[index].color, rng.choice(unused))
        elif mistake == "color":
            bars[index] = Bar(rng.choice(sorted(set(COLORS) - {bar.color for bar in bars})), bars[index].value)
        elif mistake == "swap":
            other = rng.randrange(len(bars))
            bars[index], bars[other] = bars[other], bars[index]
        elif len(bars) > min(BAR_COUNTS):
            del bars[index]
        wrong = Chart(tuple(bars))
        if wrong != chart and wrong.part is chart.part:
            return wrong


def draw(chart: Chart) -> Image.Image:
    """The chart as an RGB image of `IMAGE_SIZE` squared."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for slot, bar in enumerate(chart.bars):
        left = slot * SLOT_WIDTH + (SLOT_WIDTH - BAR_WIDTH) // 2
        top = BASELINE - bar.value * UNIT_HEIGHT
        canvas.rectangle((left, top, left + BAR_WIDTH - 1, BASELINE - 1), fill=COLORS[bar.color])
    canvas.line((0, BASELINE, IMAGE_SIZE - 1, BASELINE), fill=AXIS)
    return image


def pixels(chart: Chart) -> NDArray[np.uint8]:
    """The drawn chart as an array of shape (3, `IMAGE_SIZE`, `IMAGE_SIZE`)."""
    return np.asarray(draw(chart)).transpose(2, 0, 1)


def distinct_charts(rng: random.Random, part: Part, count: int) -> list[Chart]:
    """`count` charts of `part` without repetition."""
    seen: dict[Chart, None] = {}
    while len(seen) < count:
        seen[sample_chart(rng, part)] = None
    return list(seen)


def draw_charts(out: Path, train: int, evaluation: int, seed: int, progress: Progress | None = None) -> dict[str, int]:
    """Write `train` charts for the pipeline and `evaluation` held-out ones under `out`.

    A held-out chart gets one question of each kind in `questions.jsonl`, as
    `{"image": "eval/0000.png", "question": ..., "answer": ..., "kind": ...}`.
    Returns the counts of what was written. Raises ValueError when a count is not positive.
    """
    from pipelines.demo.questions import KINDS, ask

    if train < 1 or evaluation < 1:
        raise ValueError(f"train and evaluation must be positive, not {train} and {evaluation}")
    total = train + evaluation
    done = 0
    rows: list[dict[str, str]] = []
    for split, part, count in (("train", Part.PIPELINE, train), ("eval", Part.EVALUATION, evaluation)):
        rng = random.Random(f"{seed}/{split}")
        for folder in ("images", "tables"):
            (out / folder / split).mkdir(parents=True, exist_ok=True)
        for number, chart in enumerate(distinct_charts(rng, part, count)):
            stem = f"{number:04d}"
            draw(chart).save(out / "images" / split / f"{stem}.png")
            (out / "tables" / split / f"{stem}.txt").write_text(chart.text_form() + "\n")
            if part is Part.EVALUATION:
                name = f"{split}/{stem}.png"
                for kind in KINDS:
                    qa = ask(rng, chart, kind)
                    row = {"image": name, "question": qa.question, "answer": qa.answer, "kind": kind}
                    rows.append(row)
            done += 1
            if progress is not None:
                progress(done, total)
    (out / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train": train, "evaluation": evaluation, "questions": len(rows)}
