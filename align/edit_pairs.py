"""Stage `edit-pairs`: preference pairs whose rejected answer is the right one made wrong in one place.

In: questions with right answers. Out: pairs, the edit recorded in each. The chosen answer always ranks above the edited
one, and the two have the same length and style: what is left to learn is what the image shows. Mix them with pairs from
sampling (`mix-pairs`); alone they teach to tell edits.
"""

from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from random import Random
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.artifact import Batch, Out, count_rows, rows
from align.metrics import final_answer
from align.perturb import names_in, perturb
from align.records import QA, Message, Pair, dropped, row_id, row_seed, text_of
from align.stage import RUNTIME, Metrics, PortType, Ref, Stage

Kind = Literal["number", "colour", "yesno", "name", "relation"]
MOST_NAMES = 10_000


class EditPairs(Stage):
    """Make rejected answers by editing right ones."""

    NAME: ClassVar[str] = "edit-pairs"
    VERSION: ClassVar[int] = 2
    OUTPUTS: ClassVar[dict[str, PortType]] = {"pairs": Pair}

    input: Annotated[str, Ref(QA)]
    kinds: list[Kind] = Field(["number", "colour", "yesno", "name", "relation"], min_length=1)
    per_answer: int = Field(1, ge=1)  # different edits of one answer
    answer_after: str | None = None  # edit only what follows the last of these: the conclusion
    shard: Annotated[int, RUNTIME, Field(ge=1)] = 1024

    def run(self, out: Out) -> Metrics:
        """Answer by answer; an edit depends on the answer, the seed and the names that all answers mention."""
        names = self._names()

        def work(chunk: list[QA]) -> Batch[Pair]:
            batch: Batch[Pair] = Batch({"pairs": []})
            for row in chunk:
                made = [] if row.split != "train" else list(self.pairs(row, names))
                batch.rows["pairs"] += made
                if not made:
                    batch.dropped.append(dropped(row, "nothing to edit" if row.split == "train" else "eval split"))
            return batch

        total = count_rows(self.input)
        out.map_rows(rows(self.input, QA), total, work, {"pairs": Pair}, shard=self.shard, label="answers")
        edits = Counter(row.edit.partition(":")[0] for row in rows(out.path / "pairs", Pair))
        return {"edits": dict(edits.most_common())}

    def _names(self) -> list[str]:
        """Names that the answers mention, the first so many by hash: the same in any order of the rows."""
        found: dict[str, None] = {}
        for row in rows(self.input, QA):
            for name in names_in([text_of(row.completion)]):
                found[name] = None
            if len(found) > 2 * MOST_NAMES:
                found = dict.fromkeys(sorted(found, key=row_id)[:MOST_NAMES])
        return sorted(sorted(found, key=row_id)[:MOST_NAMES])

    def pairs(self, row: QA, names: list[str]) -> Iterator[Pair]:
        """Up to `per_answer` pairs with different edits."""
        text = text_of(row.completion)
        said = final_answer(text, self.answer_after)
        if said is None:
            return
        start = text.rindex(said) if self.answer_after is not None else 0
        seen = set()
        for i in range(self.per_answer):
            made = perturb(text[start:], names, Random(row_seed(self.seed, row.id, "edit", i)), self.kinds)
            if made is None or made[0] in seen:
                continue
            seen.add(made[0])
            rejected = text[:start] + made[0]
            yield Pair(
                id=row_id("edit", row.id, self.seed, i),
                images=row.images,
                prompt=row.prompt,
                chosen=row.completion,
                rejected=[*row.completion[:-1], Message(role="assistant", content=rejected)],
                question_id=row.id,
                image_id=row.image_id,
                kind=row.kind,
                chosen_score=1.0,
                rejected_score=0.0,
                edit=f"{made[1]}: {difference(text, rejected)}",
            )


def difference(before: str, after: str) -> str:
    """`old -> new` for two texts that differ in one place, whole words."""
    a, b = before.split(), after.split()
    codes = [c for c in SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if c[0] != "equal"]
    return "; ".join(f"{' '.join(a[i:j])} -> {' '.join(b[k:m])}" for _, i, j, k, m in codes)
