"""Questions: right answers, balanced polarity, and conclusions that can be read back."""

import random
from collections import Counter

import pytest

from pipelines.demo.charts import COLORS, Bar, Chart, Part, sample_chart
from pipelines.demo.questions import KINDS, NOT_THERE, ask, conclusion, reason

CHART = Chart((Bar("red", 3), Bar("blue", 7), Bar("green", 2)))
KNOWN = {
    "How tall is the red bar?": "3",
    "What value does blue have?": "7",
    "How many bars are there?": "3",
    "Which bar is the tallest?": "blue",
    "Which bar is third from the left?": "green",
    "Which bar is right of red?": "blue",
    "Which is higher, red or green?": "red",
    "Which bar comes after blue?": "green",
    "Is red taller than green?": "yes",
    "Is red taller than blue?": "no",
    "Is there a yellow bar?": "no",
    "How tall is the yellow bar?": NOT_THERE,
    "Describe the chart.": "red 3, blue 7, green 2",
}
REASONED = {
    "Which bar is the tallest?": "Bars: red 3, blue 7, green 2. So most 7, red no, blue yes. Answer: blue",
    "Which is higher, red or green?": "Bars: red 3, blue 7, green 2. So red 3, green 2, most 3, red yes. Answer: red",
    "Which bar is third from the left?": (
        "Bars: red 3, blue 7, green 2. So first red, second blue, third green. Answer: green"
    ),
    "Describe the chart.": "Answer: red 3, blue 7, green 2",
}


def test_known_questions_get_their_known_answers() -> None:
    rng = random.Random(0)
    answers: dict[str, set[str]] = {}
    for kind in KINDS:
        for _ in range(600):
            qa = ask(rng, CHART, kind)
            assert qa.kind == kind
            answers.setdefault(qa.question, set()).add(qa.answer)
    for question, answer in KNOWN.items():
        assert answers[question] == {answer}
    assert all(len(found) == 1 for found in answers.values()), "a question has one answer"


def test_what_is_reasoned_goes_through_the_chart_step_by_step() -> None:
    rng = random.Random(4)
    found = {qa.question: reason(CHART, qa) for kind in KINDS for _ in range(600) for qa in [ask(rng, CHART, kind)]}
    assert {question: found[question] for question in REASONED} == REASONED


def test_each_kind_has_several_wordings() -> None:
    rng = random.Random(1)
    for kind in KINDS:
        colorless = set()
        for _ in range(200):
            question = ask(rng, sample_chart(rng, Part.TEACHER), kind).question
            for color in COLORS:
                question = question.replace(color, "X")
            colorless.add(question)
        assert len(colorless) >= 3, kind


def test_a_constant_answer_is_worth_little() -> None:
    rng = random.Random(2)
    drawn = [ask(rng, sample_chart(rng, Part.EVALUATION), kind) for _ in range(400) for kind in KINDS]
    (_, most), *_ = Counter(qa.answer for qa in drawn).most_common(1)
    assert most / len(drawn) < 0.2
    yes = Counter(qa.answer for qa in drawn if qa.kind == "yesno")
    assert abs(yes["yes"] - yes["no"]) < 0.15 * yes.total()


def test_the_conclusion_of_a_reasoned_answer_is_the_answer() -> None:
    rng = random.Random(3)
    for kind in KINDS:
        qa = ask(rng, CHART, kind)
        assert conclusion(reason(CHART, qa)) == qa.answer
    assert conclusion("Answer: 3. Answer: 4") == "4"
    assert conclusion(" just text ") == "just text"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        ask(random.Random(0), CHART, "count bars")
