"""Filter `decontaminate`: training rows that overlap an evaluation, by image and by text.

In: rows of questions, the evaluation's images and questions (held in memory: 2 kB an image of the evaluation). Out: the
rows that give nothing of it away.
"""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from align.artifact import rows as rows_of
from align.errors import UserError
from align.images import BadImage
from align.records import QA, ImageRow, text_of
from align.stage import Ref
from data_gen.dedup import plain
from data_gen.looks import Distance, Looks, look_of
from data_gen.predicates import Filter, Step, words

LONG_ANSWER = 8
"""Words from which an answer does not recur by chance."""
REMEMBERED = 4096
"""Images of the training side whose looks are kept, so that the next question about one costs nothing."""


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
        looks: OrderedDict[str, tuple[str, frozenset[str]]] = OrderedDict()
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
        looks: OrderedDict[str, tuple[str, frozenset[str]]],
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
            if len(looks) > REMEMBERED:
                looks.popitem(last=False)
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


def _learn(image_id: str, path: str, known: Looks, ids: set[str]) -> None:
    if image_id not in ids:
        ids.add(image_id)
        with contextlib.suppress(BadImage):  # known by its id at least
            known.add(image_id, look_of(path))
