from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from align.artifact import Out, Store, begin, rows
from align.records import Candidate
from align.vote import Vote, winner
from tests.align.test_reject import scored


@pytest.mark.parametrize(
    ("votes", "share", "least", "won"),
    [
        ({"a": 3, "b": 1}, 0.5, 2, "a"),
        ({"a": 2, "b": 2}, 0.1, 1, None),
        ({"a": 3, "b": 4}, 0.6, 2, None),
        ({"a": 3, "b": 1, "": 4}, 0.5, 2, None),  # those who say nothing are no majority for anybody
        ({"a": 1}, 0.5, 2, None),
        ({"": 9}, 0.5, 2, None),
    ],
)
def test_winner(votes: dict[str, int], share: float, least: int, won: str | None) -> None:
    assert winner(Counter(votes), share, least) == won


def voted(
    tmp_path: Path, answers: dict[str, list[str]], reference: str | None = None, **config: Any
) -> tuple[dict[str, set[str | None]], Out]:
    found = [
        Candidate(
            **{
                name: value
                for name, value in scored(q, t, None, number=f"{q}{i}", reference=reference)
                if name in Candidate.model_fields
            }
        )
        for q, texts in answers.items()
        for i, t in enumerate(texts)
    ]
    store = Store(tmp_path)
    with begin(store, "set", "0" * 16) as source:
        source.write("rows", Candidate, found)
        out = Out(tmp_path / "artifacts" / "vote.partial", store)
        Vote(input=str(source.path / "rows"), **config).run(out)
    got: dict[str, set[str | None]] = {}
    for row in rows(out.path / "candidates", Candidate):
        got.setdefault(row.question_id, set()).add(row.reference)
    return got, out


def test_the_majority_is_the_reference_in_its_own_spelling(tmp_path: Path) -> None:
    answers = {"q": ["So 1. Answer: Paris.", "Answer: paris", "Answer: Rome"], "tie": ["Answer: 1", "Answer: 2"]}
    got, out = voted(tmp_path, answers, answer_after="Answer:")
    assert got == {"q": {"Paris."}}
    assert out.counts() == {"in": 5, "out": {"candidates": 3}, "dropped": {"no majority": 2}}


def test_a_known_answer_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    answers = {"q": ["7", "7", "8"]}
    assert voted(tmp_path, answers, reference="9")[0] == {"q": {"9"}}
    assert voted(tmp_path, answers, reference="9", replace=True)[0] == {"q": {"7"}}
