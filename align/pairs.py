"""Preference pairs from the scored answers to a question.

In: good and worse answers. Out: pairs of chosen and rejected whose scores differ by a margin, in reward or in steps of
a rating, with caps on how many a question and an image give and on how much longer one of the two may be. No two equal
texts and no two equal scores ever make a pair. Everything here is a pure function; `align/reject.py` is the stage.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from align.metrics import collapse
from align.records import Message, Pair, Split, row_id

EQUAL = 1e-9
"""Scores nearer than this are equal."""


class PairRules(Protocol):
    """What decides on pairs: keys of the `reject` stage."""

    @property
    def margin(self) -> float: ...
    @property
    def levels(self) -> int | None: ...
    @property
    def max_length_ratio(self) -> float | None: ...
    @property
    def max_pairs(self) -> int: ...


@dataclass(slots=True)
class Drawn:
    """One answer to a question."""

    id: str
    text: str
    score: float
    sampler: str
    temperature: float
    finish: str


@dataclass(slots=True)
class Question:
    """A question with its answers, best first."""

    id: str
    images: list[str]
    prompt: list[Message]
    image_id: str
    kind: str
    split: Split
    reference: str | None = None
    drawn: list[Drawn] = field(default_factory=list)


@dataclass(slots=True)
class Picked:
    """What a question gave; a reason for each of the two that it did not give."""

    best: list[Drawn] = field(default_factory=list)
    pairs: list[tuple[Drawn, Drawn]] = field(default_factory=list)
    no_best: str = ""
    no_pair: str = ""


def words(text: str) -> int:
    """The length of an answer."""
    return len(text.split())


def better_by_enough(chosen: Drawn, rejected: Drawn, rules: PairRules) -> bool:
    """By `margin` in reward; with `levels`, by `margin` steps, one at least, of a rating with that many levels over
    0..1, each score rounded to its level, the higher of two as near (the published recipe drops pairs that differ
    slightly, arXiv 2407.21783, section 4.1.1)."""
    difference = chosen.score - rejected.score
    if difference <= EQUAL:
        return False
    if rules.levels is None:
        return difference >= rules.margin - EQUAL
    steps = [math.floor(d.score * (rules.levels - 1) + 0.5 + EQUAL) for d in (chosen, rejected)]
    return steps[0] - steps[1] >= max(1, rules.margin) - EQUAL


def alike_in_length(chosen: Drawn, rejected: Drawn, rules: PairRules) -> bool:
    """Neither has more than `max_length_ratio` times the words of the other."""
    shorter, longer = sorted((words(chosen.text), words(rejected.text)))
    return rules.max_length_ratio is None or longer <= rules.max_length_ratio * max(1, shorter) + EQUAL


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image is kept from training: by a hash of the image alone, so that all its rows go one way."""
    return int(row_id("held out", image_id), 16) < share * 2**64


def distinct(drawn: Iterable[Drawn]) -> dict[str, Drawn]:
    """The first of equal texts (white space aside) by text, in the same order; an empty text is no answer."""
    found: dict[str, Drawn] = {}
    for d in drawn:
        found.setdefault(collapse(d.text), d)
    found.pop("", None)
    return found


def make_pairs(good: list[Drawn], worse: list[Drawn], config: PairRules) -> list[tuple[Drawn, Drawn]]:
    """From the worst answer upward, each rejected once; the good ones take turns, best first. Equal texts have one
    score, so they make no pair."""
    found: list[tuple[Drawn, Drawn]] = []
    for rejected in sorted(worse, key=lambda d: (d.score, d.id)):
        if len(found) >= config.max_pairs:
            break
        turn = len(found) % len(good)
        for chosen in good[turn:] + good[:turn]:
            if better_by_enough(chosen, rejected, config) and alike_in_length(chosen, rejected, config):
                found.append((chosen, rejected))
                break
    return found


def cap_pairs(questions: list[Question], picked: dict[str, Picked], most: int | None) -> None:
    """Leave at most `most` pairs an image: first every question's first pair, those of the largest margin first."""
    if most is None:
        return
    of_image: defaultdict[str, list[tuple[int, float, str, int]]] = defaultdict(list)
    for question in questions:
        for i, (chosen, rejected) in enumerate(picked[question.id].pairs):
            of_image[question.image_id].append((i, rejected.score - chosen.score, question.id, i))
    for ranked in of_image.values():
        left: defaultdict[str, list[int]] = defaultdict(list)
        for _, _, question_id, i in sorted(ranked)[:most]:
            left[question_id].append(i)
        for question_id in {r[2] for r in ranked}:
            found = picked[question_id]
            found.pairs = [found.pairs[i] for i in sorted(left[question_id])]
            found.no_pair = "" if found.pairs else "enough pairs of the image"


def pair_rows(question: Question, picked: Picked) -> Iterator[Pair]:
    """A question's pairs as DPO rows."""
    for chosen, rejected in picked.pairs:
        yield Pair(
            id=row_id("pair", chosen.id, rejected.id),
            images=question.images,
            prompt=question.prompt,
            chosen=[Message(role="assistant", content=chosen.text)],
            rejected=[Message(role="assistant", content=rejected.text)],
            question_id=question.id,
            image_id=question.image_id,
            kind=question.kind,
            chosen_score=chosen.score,
            rejected_score=rejected.score,
        )
