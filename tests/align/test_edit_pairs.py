import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.artifact import Out, Store, begin, rows
from align.edit_pairs import EditPairs, difference
from align.perturb import OPPOSITE, perturb
from align.records import QA, Message, Pair, text_of


def qa(i: int, answer: str, split: Any = "train") -> QA:
    return QA(
        id=f"q{i}", images=[], prompt=[Message(role="user", content="?")],
        completion=[Message(role="assistant", content=answer)], image_id=f"i{i}", kind="read", split=split,
    )  # fmt: skip


def made(tmp_path: Path, found: list[QA], **config: Any) -> tuple[list[Pair], Out, dict[str, Any]]:
    store = Store(tmp_path)
    with begin(store, "set", "0" * 16) as source:
        source.rows_out.clear()
        source.write("rows", QA, found)
        out = Out(tmp_path / "artifacts" / f"edits-{random.random()}.partial", store)
        metrics = EditPairs(input=str(source.path / "rows"), **config).run(out)
        return list(rows(out.path / "pairs", Pair)), out, metrics


ANSWERS = [
    "The red bar is 12 tall.", "It stands left of the house in Kenya.", "Yes, there are 3 dogs.",
    'The sign says "Open".',
    "The upper line rises to 40 in Berlin.", "nothing here",
]  # fmt: skip


def test_one_place_is_wrong_and_the_edit_says_which(tmp_path: Path) -> None:
    pairs, out, metrics = made(tmp_path, [qa(i, a) for i, a in enumerate(ANSWERS * 20)])
    assert out.counts() == {"in": 120, "out": {"pairs": 100}, "dropped": {"nothing to edit": 20}}
    assert set(metrics["edits"]) == {"number", "colour", "yesno", "name", "relation"}
    for pair in pairs:
        kind, _, change = pair.edit.partition(": ")
        old, _, new = change.partition(" -> ")
        chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
        assert chosen.replace(old, new, 1) == rejected != chosen
        assert old not in ("", new)
        assert pair.chosen_score > pair.rejected_score
        assert kind in metrics["edits"]


def test_the_same_pairs_in_any_shards(tmp_path: Path) -> None:
    found = [qa(i, a) for i, a in enumerate(ANSWERS * 5)]
    assert made(tmp_path, found)[0] == made(tmp_path, found, shard=7)[0]
    assert made(tmp_path, found)[0] != made(tmp_path, found, seed=1)[0]


def test_only_the_conclusion_and_only_the_kinds_that_are_asked_for(tmp_path: Path) -> None:
    found = [qa(i, "Bars: red 5, blue 7. Answer: 7") for i in range(20)]
    pairs, _, _ = made(tmp_path, found, answer_after="Answer:")
    assert {p.edit.partition(" -> ")[0] for p in pairs} == {"number: 7"}
    assert all(text_of(p.rejected).startswith("Bars: red 5, blue 7. Answer: ") for p in pairs)
    pairs, _, _ = made(tmp_path, found, kinds=["colour"])
    assert {p.edit.partition(":")[0] for p in pairs} == {"colour"}


def test_several_edits_of_an_answer_differ(tmp_path: Path) -> None:
    pairs, _, _ = made(tmp_path, [qa(i, "Red 5, blue 7, green 9.") for i in range(10)], per_answer=4)
    assert all(n > 1 for n in Counter(p.question_id for p in pairs).values())
    assert len({(p.question_id, text_of(p.rejected)) for p in pairs}) == len(pairs)


def test_rows_of_the_evaluation_split_stay_out(tmp_path: Path) -> None:
    pairs, out, _ = made(tmp_path, [qa(0, "5"), qa(1, "6", split="eval")])
    assert [p.image_id for p in pairs] == ["i0"]
    assert out.reasons == {"eval split": 1}


@pytest.mark.parametrize(
    ("text", "other"),
    [("It is LEFT of it", "It is RIGHT of it"), ("Above", "Below"), ("in front of me", "behind me")],
)
def test_relations_turn_round(text: str, other: str) -> None:
    assert perturb(text, [], random.Random(0), ["relation"]) == (other, "relation")


def test_every_relation_has_an_opposite() -> None:
    assert all(new in OPPOSITE and new != old for old, new in OPPOSITE.items())


def test_a_difference_is_in_whole_words() -> None:
    assert difference("a 12 b", "a 15 b") == "12 -> 15"
