"""Questions made by rule from the facts of an image: no model, every answer follows from the text form.

In: the facts of an image, values of other images for false statements, a random generator. Out: by kind, questions
with answers, the ones to prefer first. A rule asks nothing where it cannot be sure of the answer.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import combinations
from random import Random
from typing import TypeVar

from align.records import row_id
from data_gen.facts import Box, Fact, Facts, amount, quantity, same, squash, year

T = TypeVar("T")
Asked = tuple[str, str]
"""A question and its answer."""
NOT_THERE = "not in the image"
"""The answer to a question that the image does not answer."""
TEXT = "text"
"""The group of the lines of text in boxes."""
ABSENT = (
    "blood type", "boarding gate", "chess rating", "boiling point", "gestation period", "runway length", "wingspan",
    "shoe size", "magnitude of the earthquake", "name of the pilot", "melting point", "orbital period", "horsepower",
    "number of goals", "name of the conductor", "atomic weight", "tide height", "tail number", "knitting pattern",
    "half-life",
)  # fmt: skip
"""What next to no image of a document, table or chart gives; those whose words occur in the text form are not used."""
MAX_VALUES = 1000
"""Values kept a group to draw false ones from."""
LONGEST = 120
"""Characters above which a value is too long to stand inside a question."""
CLEAR = 0.04
"""Share of the side of an image by which a place must be clear of the border between two ninths."""


class Pool:
    """Values by group over all images, bounded: of many, those with the least hashes stay."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = defaultdict(set)

    def add(self, found: Facts) -> None:
        for fact in found.facts:
            self._values[fact.group].add(fact.value)
        self._values[TEXT].update(box.text for box in found.boxes if _sayable(box.text))
        for group, values in self._values.items():
            if len(values) > 2 * MAX_VALUES:
                self._values[group] = set(sorted(values, key=row_id)[:MAX_VALUES])

    def other(self, group: str, fits: Callable[[str], bool], rng: Random) -> str | None:
        """A value of the group for which `fits` holds, None where a good many tries find none."""
        values = sorted(self._values.get(group, ()))
        drawn = rng.sample(values, min(len(values), 50))
        return next((value for value in drawn if fits(value)), None)


def describe(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """Everything that the text form says."""
    if found.boxes:
        lines = [b.text for b in sorted(found.boxes, key=lambda b: (b.top, b.left))]
        wording = rng.choice(("Read all the text in the image, from top to bottom.", "What text does the image hold?"))
        return [(wording, "; ".join(lines))]
    if not found.facts:
        return []
    wordings = (
        "List everything that the image states, with its value.",
        "What does the image state? List every value.",
    )
    return [(rng.choice(wordings), "; ".join(f"{f.label}: {f.value}" for f in found.facts))]


def read(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """One value, or the first and the last line of text where these stand clear of all others."""
    if found.boxes:
        boxes = found.boxes
        first, last = min(boxes, key=lambda b: b.bottom), max(boxes, key=lambda b: b.top)
        asked = []
        if all(first.bottom <= b.top for b in boxes if b is not first):
            asked.append(("What does the topmost line of text say?", first.text))
        if all(last.top >= b.bottom for b in boxes if b is not last):
            asked.append(("What does the lowest line of text say?", last.text))
        return asked
    wordings = ("What is the {}?", "Read the {} from the image.", "What does the image give as the {}?")
    return [(rng.choice(wordings).format(f.label), f.value) for f in _shuffled(found.facts, rng)]


def count(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """How many entries a list has, how many of some things the image gives, how many of some statements are true."""
    asked = [(f"How many {what} are there?", str(size)) for what, size in found.sizes]
    here, absent = _shuffled([f.label for f in found.facts], rng)[:4], _absent(found, rng)
    if here:
        given = here[: rng.randint(1, len(here))]
        names = _shuffled([*given, *absent[: rng.randint(1, 2)]], rng)
        asked.append((f"How many of these does the image give: {', '.join(names)}?", str(len(given))))
    true, false = _statements(found, pool, rng)
    if len(true) + len(false) > 1 and false:
        kept = true[: rng.randint(0 if len(false) > 1 else 1, 2)]
        lines = _shuffled([*kept, *false[: max(rng.randint(1, 2), 2 - len(kept))]], rng)
        asked.append((f"How many of these statements are true of the image: {'; '.join(lines)}?", str(len(kept))))
    return asked


def compare(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """An amount against a round one, two amounts, a date against a year, two lines of text by height."""
    if found.boxes:
        return _higher(found, rng)
    near, pairs = [], []
    numbers = [(f, n) for f in found.facts if (n := quantity(f)) is not None]
    for fact, number in _shuffled(numbers, rng):
        below, above = _round_numbers(number)
        sides = [("more", rng.choice(below)), ("less", rng.choice(above))]
        near += [
            (f"Is the {fact.label} more or less than {limit:.12g}?", word) for word, limit in _shuffled(sides, rng)
        ]
    for (a, x), (b, y) in combinations(_shuffled(numbers, rng)[:6], 2):
        if x != y and (a.group == b.group or (_is_money(a.value) and _is_money(b.value))):
            pairs.append((f"Which is larger, the {a.label} or the {b.label}?", (a if x > y else b).label))
    for fact in found.facts:
        if (when := year(fact.value)) is not None:
            sides = [("after", when - rng.randint(1, 3)), ("before", when + rng.randint(1, 3))]
            near += [(f"Is the {fact.label} before or after the year {y}?", word) for word, y in _shuffled(sides, rng)]
    return _in_turn(pairs, near)


def locate(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """In which ninth of the image a line of text stands; needs boxes. `found` is measured in shares of the image."""
    asked = []
    for box in _shuffled(_unique(found.boxes), rng):
        x, y = _third((box.left + box.right) / 2), _third((box.top + box.bottom) / 2)
        if x is not None and y is not None:
            row, column = ("top", "middle", "bottom")[y], ("left", "center", "right")[x]
            asked.append((f'Where in the image is the text "{box.text}"?', f"{row} {column}"))
    return asked


def yesno(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """True and false statements in turn, as many of one as of the other; a false one has a value of another image."""
    if found.boxes:
        wording = 'Does the text "{}" appear in the image?'
        yes = [(wording.format(b.text), "yes") for b in _shuffled(_unique(found.boxes), rng)]
        no = [(wording.format(text), "no") for text in _foreign(found, pool, rng, 3)]
    else:
        yes = [(f"Is the {f.label} {f.value}?", "yes") for f in _shuffled(_short(found), rng)]
        no = [(f"Is the {f.label} {v}?", "no") for f in _shuffled(_short(found), rng) if (v := _other(f, pool, rng))]
    size = min(len(yes), len(no))
    return _in_turn(*_shuffled([yes[:size], no[:size]], rng))


def unanswerable(found: Facts, pool: Pool, rng: Random) -> list[Asked]:
    """Things that the image does not give."""
    return [(f"What is the {thing}?", NOT_THERE) for thing in _absent(found, rng)]


RULES: dict[str, Callable[[Facts, Pool, Random], list[Asked]]] = {
    "describe": describe,
    "read": read,
    "count": count,
    "compare": compare,
    "locate": locate,
    "yesno": yesno,
    "unanswerable": unanswerable,
}
"""The rules by kind of question."""


def in_shares(found: Facts, width: int, height: int) -> Facts:
    """The same with boxes in shares of the image's sides; without boxes where they reach beyond the image, so that
    they were measured on another one."""
    if any(b.right > 1.02 * width or b.bottom > 1.02 * height for b in found.boxes):
        return Facts(found.facts, found.sizes)
    scaled = (Box(b.text, b.left / width, b.top / height, b.right / width, b.bottom / height) for b in found.boxes)
    return Facts(found.facts, found.sizes, tuple(scaled))


def _statements(found: Facts, pool: Pool, rng: Random) -> tuple[list[str], list[str]]:
    """True and false ones, of each field one at most."""
    if found.boxes:
        held = [f'it holds the text "{b.text}"' for b in _shuffled(_unique(found.boxes), rng)[:2]]
        return held, [f'it holds the text "{t}"' for t in _foreign(found, pool, rng, 2)]
    true: list[str] = []
    false: list[str] = []
    for fact in _shuffled(_short(found), rng):
        other = _other(fact, pool, rng) if len(false) < len(true) or rng.random() < 0.5 else None
        (true if other is None else false).append(f"the {fact.label} is {other or fact.value}")
    return true, false


def _other(fact: Fact, pool: Pool, rng: Random) -> str | None:
    return pool.other(fact.group, lambda v: len(v) <= LONGEST and not same(v, fact.value), rng)


def _foreign(found: Facts, pool: Pool, rng: Random, number: int) -> list[str]:
    """Lines of text of other images that do not stand in this one, not even nearly."""
    here = [squash(b.text) for b in found.boxes]
    texts: list[str] = []
    whole = "".join(here)

    def fits(text: str) -> bool:
        form = squash(text)
        return text not in texts and form not in whole and not any(same(text, b.text) for b in found.boxes)

    while len(texts) < number and (text := pool.other(TEXT, fits, rng)) is not None:
        texts.append(text)
    return texts


def _absent(found: Facts, rng: Random) -> list[str]:
    words = [squash(t) for f in found.facts for t in (f.label, f.value)] + [squash(b.text) for b in found.boxes]
    whole = " ".join(words)
    return _shuffled([a for a in ABSENT if not any(squash(w) in whole for w in a.split() if len(w) > 3)], rng)


def _higher(found: Facts, rng: Random) -> list[Asked]:
    asked = []
    boxes = _shuffled(_unique(found.boxes), rng)
    for a, b in zip(boxes[0::2], boxes[1::2], strict=False):
        if a.bottom < b.top or b.bottom < a.top:
            higher = a if a.bottom < b.top else b
            asked.append((f'Which stands higher in the image, "{a.text}" or "{b.text}"?', higher.text))
    return asked


def _unique(boxes: Iterable[Box]) -> list[Box]:
    """Boxes whose text is worth naming and is part of no other box's text."""
    forms = [(box, squash(box.text)) for box in boxes]
    return [b for b, form in forms if _sayable(b.text) and sum(form in other for _, other in forms) == 1]


def _sayable(text: str) -> bool:
    return len(squash(text)) >= 3 and len(text) <= LONGEST and '"' not in text


def _short(found: Facts) -> list[Fact]:
    return [f for f in found.facts if len(f.value) <= LONGEST]


def _is_money(value: str) -> bool:
    return amount(value) is not None and ("." in value or "," in value or not value[:1].isdigit())


def _round_numbers(number: float) -> tuple[list[float], list[float]]:
    """The two nearest of ... 1, 2, 5, 10, 20 ... below a number and above it."""
    if number <= 0:
        return [number - 5, number - 1], [number + 1, number + 5]
    power = math.floor(math.log10(number))
    scale = [float(f"{m}e{e}") for e in range(power - 2, power + 3) for m in (1, 2, 5)]
    return [n for n in scale if n < number][-2:], [n for n in scale if n > number][:2]


def _third(share: float) -> int | None:
    """0, 1 or 2 for a place along a side; None near a border between thirds, or outside."""
    if not 0 <= share <= 1 or any(abs(share - border) < CLEAR for border in (1 / 3, 2 / 3)):
        return None
    return int(share * 3) if share < 1 else 2


def _shuffled(items: Iterable[T], rng: Random) -> list[T]:
    found = list(items)
    rng.shuffle(found)
    return found


def _in_turn(first: list[Asked], second: list[Asked]) -> list[Asked]:
    """One of each in turn, then the rest of the longer."""
    size = min(len(first), len(second))
    mixed = [asked for both in zip(first, second, strict=False) for asked in both]
    return [*mixed, *first[size:], *second[size:]]
