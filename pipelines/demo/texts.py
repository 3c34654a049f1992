"""Makes the plain texts which a language model learns from before it sees an image.

In: a random generator. Out: captions (clean or noisy) and short general exchanges whose answers can be
checked, so that "the text ability did not change" can be measured.
"""

from __future__ import annotations

import random

from pipelines.demo.charts import Chart, corrupt

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("open", "closed"),
    ("early", "late"),
    ("full", "empty"),
    ("loud", "quiet"),
)
_HOMES = (("bee", "hive"), ("bird", "nest"), ("dog", "kennel"), ("fish", "pond"), ("horse", "stable"))
_CAPTIONS = (
    "Bars: {table}.",
    "A bar chart: {table}.",
    "From left to right: {table}.",
    "This chart shows {table}.",
)
_NOISE = ("A drawing with some bars.", "A small chart, white background.", "Figure 2. See the text.")
_SYSTEM = (
    "You are a helpful assistant.",
    "Answer the question about the image.",
    "Look at the image carefully.",
    "Think step by step.",
)


def system_text(rng: random.Random) -> str:
    """A system prompt, or none at all most of the time."""
    return rng.choice(_SYSTEM) if rng.random() < 0.2 else ""


def clean_caption(rng: random.Random, chart: Chart) -> str:
    """A caption that is right."""
    return rng.choice(_CAPTIONS).format(table=chart.table())


def noisy_caption(rng: random.Random, chart: Chart, noise: float) -> str:
    """A caption as found beside an image: wrong in one place, or empty talk, with probability `noise`."""
    if rng.random() >= noise:
        return clean_caption(rng, chart)
    if rng.random() < 0.2:
        return rng.choice(_NOISE)
    return clean_caption(rng, corrupt(rng, chart))


def plain_exchange(rng: random.Random) -> tuple[str, str]:
    """A question and its answer about nothing drawn: sums, days, opposites, homes of animals."""
    choice = rng.randrange(4)
    if choice == 0:
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."
    if choice == 1:
        day = rng.randrange(len(_DAYS))
        return f"Which day follows {_DAYS[day]}?", f"{_DAYS[(day + 1) % len(_DAYS)]}."
    if choice == 2:
        pair = list(rng.choice(_OPPOSITES))
        rng.shuffle(pair)
        return f"What is the opposite of {pair[0]}?", f"{pair[1]}."
    animal, home = rng.choice(_HOMES)
    return f"Where does a {animal} live?", f"In a {home}."
