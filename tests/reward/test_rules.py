"""Rules against values worked by hand."""

import random
from typing import Any

import pytest

from align.errors import UserError
from reward.base import Score
from reward.load import read_reward
from reward.rules import Rules
from tests.reward.candidates import candidate


def rules(*found: dict[str, Any], **more: Any) -> Rules:
    config = read_reward({"reward": "rules", "rules": list(found), **more})
    assert isinstance(config, Rules)
    return config


def value(rule: dict[str, Any], text: str, reference: str | None = None, **more: Any) -> float | None:
    (score,) = rules(rule, **more).score([candidate(text, reference)])
    return score.value


@pytest.mark.parametrize(
    ("rule", "text", "reference", "expected"),
    [
        ({"rule": "exact"}, "Blue.", "blue", 1),
        ({"rule": "exact"}, "bluish", "blue", 0),
        ({"rule": "relaxed"}, "104", "100", 1),
        ({"rule": "anls"}, "9.00", "9.0", 0.75),
        ({"rule": "option"}, "The answer is (b).", "B", 1),
        ({"rule": "option"}, "Paris", "B", 0),
        ({"rule": "format", "pattern": "Answer: .+"}, " Answer: 3\n", None, 1),
        ({"rule": "format", "pattern": "Answer: .+"}, "So, Answer: 3", None, 0),
        ({"rule": "length", "min": 2, "max": 4}, " abcd ", None, 1),
        ({"rule": "length", "min": 2, "max": 4}, "abcde", None, 0),
        ({"rule": "length", "min": 2}, "a", None, 0),
        ({"rule": "length"}, "", None, 0),
        ({"rule": "repetition", "ngram": 1}, "red red blue red", None, 0.5),
        ({"rule": "repetition"}, "a b c a b c", None, 0.75),  # abc bca cab abc
        ({"rule": "repetition"}, "a b", None, 1),
        ({"rule": "json"}, '{"total": "9.00", "date": "x", "more": 1}', '{"total": "9.00", "date": "y"}', 0.5),
        ({"rule": "json"}, '```json\n{"a": [1, {"b": "c"}]}\n```', '{"a": [1, {"b": "c"}]}', 1),
        ({"rule": "json"}, "total 9.00", '{"total": "9.00"}', 0),
        ({"rule": "json"}, "[" * 100_000, '{"total": "9.00"}', 0),
        ({"rule": "json"}, '{"a": null}', '{"a": "null"}', 1),
        ({"rule": "json", "fields": ["total"]}, '{"total": 9}', '{"total": 9, "date": "y"}', 1),
        ({"rule": "json", "metric": "relaxed"}, '{"total": 104}', '{"total": 100}', 1),
    ],
)
def test_values(rule: dict[str, Any], text: str, reference: str | None, expected: float) -> None:
    assert value(rule, text, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "reference", "reason"),
    [
        ({"rule": "exact"}, None, "exact: no reference"),
        ({"rule": "anls"}, "  ", "anls: no reference"),
        ({"rule": "option"}, "Paris", "option: the reference names no option letter"),
        ({"rule": "json"}, "9.00", "json: the reference is no JSON object"),
        ({"rule": "json", "fields": ["total"]}, '{"date": 1}', "json: the reference has none of the fields"),
    ],
)
def test_none_where_a_rule_says_nothing(rule: dict[str, Any], reference: str | None, reason: str) -> None:
    scores = rules(rule, {"rule": "length"}).score([candidate("x", reference)])
    assert scores == [Score(None, {rule["rule"]: None, "length": 1.0}, reason)]


def test_the_final_answer_of_candidate_and_reference() -> None:
    marked = rules({"rule": "exact"}, answer_after="Answer:")
    texts = ["red 3 blue 7. Answer: blue", "blue", "Answer: blue. Answer: red"]
    for reference in ("red 3 blue 7. Answer: blue", "blue"):
        scores = marked.score([candidate(t, reference) for t in texts])
        assert [s.value for s in scores] == [1.0, 0.0, 0.0]  # no marker: the candidate gave no answer


def test_form_is_judged_on_the_whole_text() -> None:
    rule = {"rule": "format", "pattern": ".*Answer: .*"}
    assert value(rule, "red 3. Answer: red", answer_after="Answer:") == 1


def test_weights_and_names_of_parts() -> None:
    both = rules(
        {"rule": "exact", "weight": 3},
        {"rule": "format", "pattern": "b.*"},
        {"rule": "format", "pattern": "r.*"},
    )
    (score,) = both.score([candidate("blue", "blue")])
    assert score == Score(0.8, {"exact": 1.0, "format": 1.0, "format_2": 0.0})


def test_batches_and_order_change_nothing() -> None:
    found = [candidate(f"bar {i % 5} {i}", None if i % 7 == 0 else f"bar {i % 5}") for i in range(40)]
    reward = rules({"rule": "anls"}, {"rule": "repetition", "ngram": 1})
    alone = {row.id: reward.score([row])[0] for row in found}
    random.Random(0).shuffle(found)
    assert dict(zip([r.id for r in found], reward.score(found), strict=True)) == alone
    assert reward.score([]) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rule": "exactly"}, "rules\\[0\\].*'exactly'.*'exact'"),
        ({"rule": "exact", "wieght": 2}, "rules\\[0\\].wieght: unknown key; did you mean 'weight'"),
        ({"rule": "exact", "weight": 0}, "rules\\[0\\].weight: .*0"),
        ({"rule": "format", "pattern": "("}, "rules\\[0\\].pattern: not a regular expression"),
        ({"rule": "length", "min": 5, "max": 2}, "rules\\[0\\]: max \\(2\\) is less than min \\(5\\)"),
    ],
)
def test_mistakes(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rules(rule)


def test_a_pattern_has_to_match_to_the_end() -> None:
    rule = {"rule": "format", "pattern": "[a-z]+"}
    assert [value(rule, text) for text in ("abc\n", "abc 1", "1 abc")] == [1.0, 0.0, 0.0]
