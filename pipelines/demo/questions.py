"""Asks and answers about a chart from its table: the ground truth of everything the demo trains and measures.

In: a chart and a kind of question. Out: a question in one of several wordings, with its right answer, and
the same answer reasoned, i.e. the chart described first and the conclusion behind the last `Answer:`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.demo.charts import COLORS, Bar, Chart

MARKER = "Answer:"
"""The final answer is the text behind the last marker."""
NOT_THERE = "not in the image"
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class ChartQA:
    """A question on a chart, its short right answer, and the part of the chart which settles it (or nothing)."""

    kind: str
    question: str
    answer: str
    evidence: str = ""


def _words(*bars: Bar) -> str:
    return ", ".join(f"{bar.color} {bar.value}" for bar in bars)


def _describe(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    wording = rng.choice(("Describe the chart.", "What does the chart show?", "List the bars with their values."))
    return wording, chart.table(), ""


_READ = ("How tall is the {} bar?", "What is the value of the {} bar?", "What value does {} have?")
_RIGHT = ("Which bar is right of {}?", "Which bar comes after {}?")


def _read(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    bar = rng.choice(chart.bars)
    return rng.choice(_READ).format(bar.color), str(bar.value), _words(bar)


def _count(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    wording = rng.choice(("How many bars are there?", "Count the bars.", "How many bars does it have?"))
    return wording, str(len(chart.bars)), ""


def _most(bars: Sequence[Bar]) -> str:
    """The largest value, and the bars up to the one that has it: small models learn to go through a list long before
    they learn to look up a colour by its value."""
    most = max(bar.value for bar in bars)
    last = [bar.value for bar in bars].index(most)
    walk = [f"{bar.color} {'yes' if bar.value == most else 'no'}" for bar in bars[: last + 1]]
    return f"most {most}, " + ", ".join(walk)


def _compare(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    if rng.random() < 0.5:
        tallest = max(chart.bars, key=lambda bar: bar.value)
        wording = rng.choice(("Which bar is the tallest?", "Which bar is highest?"))
        return wording, tallest.color, _most(chart.bars)
    a, b = rng.sample(chart.bars, 2)
    wording = rng.choice(("Which bar is taller, {} or {}?", "Which is higher, {} or {}?"))
    taller = max(a, b, key=lambda bar: bar.value)
    return wording.format(a.color, b.color), taller.color, f"{_words(a, b)}, {_most((a, b))}"


def _locate(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    if rng.random() < 0.5:
        index = rng.randrange(len(chart.bars))
        wording = rng.choice(("Which bar is {} from the left?", "What color is the {} bar?"))
        counted = ", ".join(f"{ORDINALS[i]} {bar.color}" for i, bar in enumerate(chart.bars[: index + 1]))
        return wording.format(ORDINALS[index]), chart.bars[index].color, counted
    index = rng.randrange(len(chart.bars) - 1)
    left, right = chart.bars[index : index + 2]
    return rng.choice(_RIGHT).format(left.color), right.color, _words(left, right)


def _absent(rng: random.Random, chart: Chart) -> str:
    return rng.choice(sorted(set(COLORS) - {bar.color for bar in chart.bars}))


def _yesno(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    wanted = rng.random() < 0.5
    answer = "yes" if wanted else "no"
    if rng.random() < 0.5:
        a, b = rng.sample(chart.bars, 2)
        wording = rng.choice(("Is {} taller than {}?", "Is {} higher than {}?"))
        if (a.value > b.value) != wanted:
            a, b = b, a
        return wording.format(a.color, b.color), answer, _words(a, b)
    wording = rng.choice(("Is there a {} bar?", "Does the chart have a {} bar?"))
    if wanted:
        bar = rng.choice(chart.bars)
        return wording.format(bar.color), answer, _words(bar)
    absent = _absent(rng, chart)
    return wording.format(absent), answer, f"{absent} none"


def _unanswerable(rng: random.Random, chart: Chart) -> tuple[str, str, str]:
    absent = _absent(rng, chart)
    return rng.choice(_READ + _RIGHT).format(absent), NOT_THERE, f"{absent} none"


_MAKERS: dict[str, Callable[[random.Random, Chart], tuple[str, str, str]]] = {
    "describe": _describe,
    "read": _read,
    "count": _count,
    "compare": _compare,
    "locate": _locate,
    "yesno": _yesno,
    "unanswerable": _unanswerable,
}
KINDS: tuple[str, ...] = tuple(_MAKERS)


def ask(rng: random.Random, chart: Chart, kind: str) -> ChartQA:
    """A question of `kind` on `chart`; raises ValueError on an unknown kind."""
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS)}")
    return ChartQA(kind, *_MAKERS[kind](rng, chart))


def reason(chart: Chart, qa: ChartQA) -> str:
    """The answer reasoned: the chart described, the evidence picked out, the conclusion drawn.

    Where describing is the answer itself, it is the conclusion alone.
    """
    if qa.kind == "describe":
        return f"{MARKER} {qa.answer}"
    evidence = f" So {qa.evidence}." if qa.evidence else ""
    return f"Bars: {chart.table()}.{evidence} {MARKER} {qa.answer}"


def conclusion(text: str) -> str:
    """The final answer in `text`: what follows the last marker, or all of it when there is none."""
    return text.rpartition(MARKER)[2].strip()
