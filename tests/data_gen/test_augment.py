"""Rows made anew over HTTP: what stays, what is set aside, provenance; the story of a row."""

import json
from pathlib import Path

import pytest

from align.artifact import commit, rows
from align.errors import UserError
from align.records import QA, text_of
from data_gen.augment import Augment, Way, hold
from data_gen.explain import explain, search
from data_gen.filter import Filter
from data_gen.replies import Item
from tests.chat_server import Answer, Asked, chat_server
from tests.data_gen.manifests import array, new_out, noise, port, put_images, qa, set_aside

OLD = ("How tall is the red bar?", "Red 3. Answer: 3")


@pytest.mark.parametrize(
    ("way", "said", "expected"),
    [
        ("rephrase", ("What height has red?", "7"), ("What height has red?", "Red 3. Answer: 3")),
        ("rephrase", ("how tall is the red bar", "3"), "unchanged"),
        ("harder", ("How much taller is blue?", "4"), ("How much taller is blue?", "4")),
        ("multi_hop", (OLD[0], "4"), "unchanged"),
        ("reasoning", ("x", "I look. It is 3. Answer: 3"), (OLD[0], "I look. It is 3. Answer: 3")),
        ("reasoning", ("x", "I look. Answer: 4"), "another result"),
        ("reasoning", ("x", "It is 3."), "another result"),
        ("terse", ("x", "3"), (OLD[0], "3")),
        ("terse", ("x", "4"), "another result"),
        ("full", ("x", "The red bar is 3 units tall."), (OLD[0], "The red bar is 3 units tall.")),
        ("full", ("x", "The red bar is 13 units tall."), "another result"),
        ("full", ("x", " "), "empty"),
        ("full", ("x", "red 3. answer: 3."), "unchanged"),
    ],
)
def test_what_has_to_stay(way: Way, said: tuple[str, str], expected: tuple[str, str] | str) -> None:
    assert hold(way, *OLD, Item(*said)) == (expected if isinstance(expected, str) else Item(*expected))


def test_the_stage(tmp_path: Path) -> None:
    (image,) = put_images(tmp_path, {"train/a.png": noise(1)})
    row = qa(image, *OLD, "read")
    replies = {"same in other": array(("How high is red?", "?")), "bare": "no JSON", "harder": array(("How?", "4"))}

    def reply(asked: Asked) -> Answer:
        return Answer(next(text for word, text in replies.items() if word in asked.text))

    with chat_server(reply) as server:
        stage = Augment.model_validate(
            {
                "input": port(tmp_path, "generate-1", "questions", [row]),
                "teacher": {"engine": "server", "model": "org/teacher", "base_url": server.base_url, "retries": 0},
                "ways": ["rephrase", "terse", "harder"],
                "seed": 2,
            }
        )
        stage.check()
        out = new_out(tmp_path, "augment-1")
        stage.run(out)
        assert all(len(asked.images) == 1 for asked in server.asked)
    made = list(rows(out.path / "questions", QA))
    assert [(text_of(r.prompt), text_of(r.completion), r.kind) for r in made] == [
        ("How high is red?", OLD[1], "read"),
        ("How?", "4", "read"),
    ]
    source = json.loads(made[0].source)
    assert (source["parent"], source["way"], source["teacher"], source["seed"]) == (
        row.id,
        "rephrase",
        "org/teacher",
        2,
    )
    assert len({r.id for r in [row, *made]}) == 3
    assert [d.reason for d in set_aside(out)] == ["unparsed"]
    with pytest.raises(UserError, match="twice"):
        stage.model_copy(update={"ways": ["full", "full"]}).check()


def test_the_story_of_a_row(tmp_path: Path) -> None:
    (image,) = put_images(tmp_path, {"train/a.png": noise(1)})
    good, bad = qa(image, "How many bars are there?", "3"), qa(image, "How many bars are there? ", "4")
    filters = [{"filter": "format"}, {"filter": "text_duplicates"}, {"filter": "length"}]
    stage = Filter.model_validate({"input": port(tmp_path / "store", "g-1", "q", [good, bad]), "filters": filters})
    out = new_out(tmp_path / "store", "filter-1.partial")
    metrics = stage.run(out)
    folder = commit(out, {"stage": "filter", "config": stage.model_dump()}, metrics).path
    kept, aside = explain(folder, good.id), explain(folder, bad.id[:8])
    assert kept[-1] == "  kept"
    assert any(line.endswith("length           passed: question 5 words, answer 1") for line in kept)
    assert aside[-3:] == [
        f"  2. text_duplicates  set aside: asks what {good.id} asks about the same image",
        "  3. length           not reached",
        "  set aside",
    ]
    assert search(tmp_path, good.id) == kept
    with pytest.raises(UserError, match="no row of that id in 1 artifacts"):
        search(tmp_path, "ffff0000")
    with pytest.raises(UserError, match="at least 4 characters"):
        explain(folder, "f")
