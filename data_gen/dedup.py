"""Filters that compare rows with others: repeated texts, repeated images, overlap with an evaluation.

In: rows of questions, and the evaluation's images and questions. Out: the rows that pass, the first of its like kept.
Images are compared by the 16 x 16 lowest DCT coefficients of the 64 x 64 grey image without the mean (those of pHash,
Zauner 2010), each under a square root that keeps its sign, so that print weighs beside paper; the distance is one
minus the cosine. pHash's own 64 bits cannot tell receipts of one shop apart. Measured on scanned receipts, drawn
puzzles and bar charts: an image saved again at JPEG quality 40 or at half its size is at most 0.005 away, another
image at least 0.013, but for two scans of one bill. As grey says nothing of colours, those of a 16 x 16 thumbnail must
agree too.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from align.artifact import rows as rows_of
from align.errors import UserError
from align.images import BadImage, open_image
from align.records import QA, ImageRow, row_id, text_of
from align.stage import Ref
from data_gen.predicates import Filter, Step, words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Distance = Annotated[float, Field(ge=0, le=1)]
"""One minus the cosine of two looks: 0 for equal ones, about 0.8 for unrelated images."""
SIDE, LOW, CELLS = 64, 16, 16
MAX_COLOR = 48
"""Steps of 255 in any channel of any cell of the thumbnail by which images of equal look may differ."""
FLAT = 64.0
"""Length of the coefficients below which an image has no contents: 0.06 grey levels of one wave."""
LONG_ANSWER = 8
"""Words from which an answer does not recur by chance."""


class TextDuplicates(Filter):
    """Questions asked before about the same image: equal after case, punctuation and spaces, or near it."""

    filter: Literal["text_duplicates"] = "text_duplicates"
    near: Annotated[float, Field(gt=0, le=1)] = 0.8  # Jaccard similarity of word pairs; 1: equal texts only
    across_images: bool = False  # also the same question with the same answer on another image

    def apply(self, rows: Iterable[QA], step: Step) -> Iterator[QA]:
        """Memory: about 0.5 kB a row that is kept."""
        by_image: dict[str, list[Shingled]] = defaultdict(list)
        everywhere: dict[str, str] = {}
        for row in rows:
            text = Shingled.of(row)
            before = next((old for old in by_image[row.image_id] if old.like(text, self.near)), None)
            if before is not None:
                step.aside(self.dropped(row, f"asks what {before.id} asks about the same image"))
                continue
            if self.across_images:
                first = everywhere.setdefault(row_id(text.question, text.answer), row.id)
                if first != row.id:
                    step.aside(self.dropped(row, f"asks and answers what {first} does about another image"))
                    continue
            by_image[row.image_id].append(text)
            yield row


class Shingled:
    """The texts of a row, made comparable."""

    __slots__ = ("answer", "id", "numbers", "pairs", "question")

    def __init__(self, name: str, question: str, answer: str) -> None:
        self.id = name
        self.question, self.answer = plain(question), plain(answer)
        self.numbers = tuple(sorted(re.findall(r"\d+", question)))
        self.pairs = frozenset(shingles(question))

    @classmethod
    def of(cls, row: QA) -> "Shingled":
        return cls(row.id, text_of(row.prompt), text_of(row.completion))

    def like(self, other: "Shingled", near: float) -> bool:
        """Whether both ask the same: equal questions, or similar ones with equal answers and equal numbers. Questions
        that differ in one word (the red bar, the blue bar) are similar, so the answers must agree."""
        if self.question == other.question:
            return True
        if near == 1 or self.answer != other.answer or self.numbers != other.numbers:
            return False
        return jaccard(self.pairs, other.pairs) >= near


class ImageDuplicates(Filter):
    """Rows of images that look like an image which came before."""

    filter: Literal["image_duplicates"] = "image_duplicates"
    distance: Distance = 0.008

    def apply(self, rows: Iterable[QA], step: Step) -> Iterator[QA]:
        known = Looks()
        first: dict[str, str] = {}  # image -> what it looks like, itself where it is the first
        for row in rows:
            if row.image_id not in first:
                try:
                    look = look_of(row.images[0])
                except BadImage as error:
                    step.aside(self.dropped(row, f"the image cannot be opened: {error}"))
                    continue
                first[row.image_id] = next(known.near(look, self.distance), row.image_id)
                if first[row.image_id] == row.image_id:
                    known.add(row.image_id, look)
            if first[row.image_id] != row.image_id:
                step.aside(self.dropped(row, f"the image looks like {first[row.image_id]}"))
            else:
                yield row


class Decontaminate(Filter):
    """Training rows that would give away the evaluation: those about an image that is, or looks like, one of its
    images; those that ask and answer what it does about an image still somewhat like it; those that give one of its
    long answers to the same question. Short questions and answers recur by chance and are no leak by themselves."""

    filter: Literal["decontaminate"] = "decontaminate"
    evaluation_images: Annotated[str | None, Ref(ImageRow)] = None  # of which those of the split `eval`
    evaluation_questions: Annotated[str | None, Ref(QA)] = None  # of which those of the split `eval`
    distance: Distance = 0.008
    distance_of_same_text: Distance = 0.1  # a crop by 1 % or a turn by 1 degree is nearer

    def check(self) -> None:
        if self.evaluation_images is None and self.evaluation_questions is None:
            raise UserError("evaluation_images, evaluation_questions: one of the two, at least, is required")

    def apply(self, rows: Iterable[QA], step: Step) -> Iterator[QA]:
        known, ids, texts = self._evaluation()
        looks: dict[str, tuple[str, frozenset[str]]] = {}
        for row in rows:
            why = "" if row.split == "eval" else self._leak(row, known, ids, texts, looks)
            if why:
                step.aside(self.dropped(row, why))
            else:
                yield row

    def _evaluation(self) -> "tuple[Looks, set[str], dict[tuple[str, str], set[str]]]":
        """Its images by look and by id, its questions with answers and the images they are about."""
        known = Looks()
        ids: set[str] = set()
        texts: dict[tuple[str, str], set[str]] = defaultdict(set)
        images = rows_of(self.evaluation_images, ImageRow) if self.evaluation_images else iter(())
        questions = rows_of(self.evaluation_questions, QA) if self.evaluation_questions else iter(())
        for image in images:
            if image.split == "eval":
                _learn(image.id, image.images[0], known, ids)
        for row in questions:
            if row.split == "eval":
                _learn(row.image_id, row.images[0], known, ids)
                texts[plain(text_of(row.prompt)), plain(text_of(row.completion))].add(row.image_id)
        return known, ids, texts

    def _leak(
        self,
        row: QA,
        known: "Looks",
        ids: set[str],
        texts: dict[tuple[str, str], set[str]],
        looks: dict[str, tuple[str, frozenset[str]]],
    ) -> str:
        if row.image_id in ids:
            return "the image is in the evaluation"
        if row.image_id not in looks:
            try:
                look = look_of(row.images[0])
            except BadImage as error:
                return f"the image cannot be opened: {error}"
            near = next(known.near(look, self.distance), "")
            somewhat = frozenset(known.near(look, self.distance_of_same_text, colors=False))
            looks[row.image_id] = near, somewhat
        near, somewhat = looks[row.image_id]
        if near:
            return f"the image looks like {near} of the evaluation"
        asked = texts.get((plain(text_of(row.prompt)), plain(text_of(row.completion))))
        if asked and asked & somewhat:
            return (
                f"the evaluation asks and answers the same about {min(asked & somewhat)}, which looks somewhat like it"
            )
        if asked and len(words(text_of(row.completion))) >= LONG_ANSWER:
            return f"the evaluation has the same question with the same long answer, about {min(asked)}"
        return ""


class Looks:
    """Images by how they look. 2 kB an image; a search compares with all of them."""

    def __init__(self) -> None:
        import numpy as np

        self._ids: list[str] = []
        self._waves = np.zeros((256, LOW * LOW), np.float32)
        self._cells = np.zeros((256, CELLS * CELLS * 3), np.uint8)

    def add(self, image_id: str, look: "Look") -> None:
        import numpy as np

        size = len(self._ids)
        if size == len(self._waves):
            self._waves = np.concatenate([self._waves, np.zeros_like(self._waves)])
            self._cells = np.concatenate([self._cells, np.zeros_like(self._cells)])
        self._waves[size], self._cells[size] = look
        self._ids.append(image_id)

    def near(self, look: "Look", distance: float, *, colors: bool = True) -> Iterator[str]:
        """The images no further than `distance` and, but for `colors=False`, of like colours, the nearest first."""
        import numpy as np

        waves, cells = look
        apart = 1 - self._waves[: len(self._ids)] @ waves
        found = np.flatnonzero(apart <= distance + 1e-6)  # equal images differ by the rounding of float32
        for index in found[np.argsort(apart[found], kind="stable")]:
            gap = np.abs(self._cells[index].astype(np.int16) - cells.astype(np.int16)).max()
            if not colors or gap <= MAX_COLOR:
                yield self._ids[index]


Look = tuple["NDArray[np.float32]", "NDArray[np.uint8]"]
"""256 coefficients of length 1 together, and the thumbnail's 16 x 16 x 3 colours."""


def look_of(path: str) -> Look:
    """How the image at `path` looks. Raises BadImage."""
    import numpy as np
    from PIL import Image

    image = open_image(path)
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float64)
    basis = _cosines()
    low = (basis @ grey @ basis.T).ravel()
    low[0] = 0.0  # the mean: a scan may be lighter
    if np.linalg.norm(low) < FLAT:
        low[:] = 0.0
        low[0] = 1.0
    waves = np.sign(low) * np.sqrt(np.abs(low))
    cells = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), np.uint8).ravel()
    return (waves / np.linalg.norm(waves)).astype(np.float32), cells


@cache
def _cosines() -> "NDArray[np.float64]":
    """The first 16 rows of the DCT-II of 64 points."""
    import numpy as np

    return np.cos(np.pi * (2 * np.arange(SIDE)[None] + 1) * np.arange(LOW)[:, None] / (2 * SIDE))


def _learn(image_id: str, path: str, known: Looks, ids: set[str]) -> None:
    if image_id not in ids:
        ids.add(image_id)
        with contextlib.suppress(BadImage):  # known by its id at least
            known.add(image_id, look_of(path))


def plain(text: str) -> str:
    """The words of a text without case and punctuation; signs that change a number's meaning stay."""
    return " ".join(re.findall(r"[^\W_]+(?:[.,:/-][^\W_]+)*|[-+%$€£<>=]", text.casefold()))


def shingles(text: str) -> set[tuple[str, str]]:
    """Pairs of neighbouring words, with the two ends of the text as words."""
    found = ["", *words(plain(text)), ""]
    return set(pairwise(found))


def jaccard(a: frozenset[tuple[str, str]], b: frozenset[tuple[str, str]]) -> float:
    """Size of the intersection over size of the union."""
    return len(a & b) / len(a | b) if a | b else 1.0
