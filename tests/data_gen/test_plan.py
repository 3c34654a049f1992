"""The plan: shares on every axis, slots by seed and image; and rows that do not depend on shards or stops."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from align.artifact import Out, rows
from align.engines.images import data_url
from align.errors import UserError
from align.records import QA
from data_gen.generate import Generate
from data_gen.plan import Plan, deal
from data_gen.rules import RULES
from tests.chat_server import Answer, Asked, chat_server
from tests.data_gen.manifests import array, new_out, noise, port, put_images, set_aside

KINDS = list(RULES)


def test_shares_hold_on_every_image_and_over_all() -> None:
    weights = {"a": 3.0, "b": 1.0, "c": 0.5, "d": 0.1}
    total: Counter[str] = Counter()
    for seed in range(2000):
        dealt = Counter(deal(weights, 8, Random(seed)))
        assert dealt.total() == 8
        for word, weight in weights.items():
            share = weight / 4.6 * 8
            assert int(share) <= dealt[word] <= int(share) + 1
        total += dealt
    for word, weight in weights.items():
        assert total[word] / total.total() == pytest.approx(weight / 4.6, rel=0.12)


def test_slots_depend_on_the_seed_and_the_image_alone() -> None:
    plan = Plan(per_image=12, difficulty={"easy": 1, "hard": 1}, language={"en": 3, "th": 1}, form={"terse": 1})
    slots = plan.slots(KINDS, "x", 1)
    assert slots == plan.slots(KINDS, "x", 1)
    assert slots != plan.slots(KINDS, "y", 1)
    assert slots != plan.slots(KINDS, "x", 2)
    assert sum(slots.values()) == 12
    by_language = Counter[str | None]()
    for slot, count in slots.items():
        by_language[slot.language] += count
    assert by_language == {"en": 9, "th": 3}
    assert {slot.kind for slot in slots} == set(KINDS)  # twelve questions: each of the seven kinds


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"plan": {"kinds": {"cuont": 1}}}, "did you mean 'count'"),
        ({"plan": {"language": {"eng": 1}}}, "plan.language: 'eng'"),
        ({"mode": "fields", "teacher": None, "plan": {"form": {"terse": 1}}}, "knows kinds alone"),
        ({"two_steps": True, "prompts": "PROMPTS"}, "describe.jinja"),
    ],
)
def test_mistakes_are_found_before_the_run(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "ask.jinja").write_text("{{ kind }}")
    given = {
        "images": "x",
        "teacher": {"engine": "server", "model": "m", "base_url": "http://127.0.0.1:1/v1"},
        **config,
    }
    given["prompts"] = str(tmp_path) if given.get("prompts") else "configs/prompts/default"
    with pytest.raises(UserError, match=said):
        Generate.model_validate(given).check()


PLAN = {"per_image": 5, "difficulty": {"easy": 1, "hard": 1}, "language": {"en": 1, "de": 1}}


def planned(root: Path, manifest: str, url: str, name: str, **more: Any) -> Out:
    server = {"engine": "server", "base_url": url, "retries": 0}
    folder = root / "prompts"
    folder.mkdir(exist_ok=True)
    (folder / "ask.jinja").write_text(
        "{{ kind }} x{{ count }} {{ difficulty }} {{ language }}{% if description %} seen: {{ description }}{% endif %}"
    )
    (folder / "describe.jinja").write_text("Describe.")
    stage = Generate.model_validate(
        {
            "images": manifest, "teacher": {**server, "model": "first"}, "plan": PLAN,
            "more_teachers": [{**server, "model": "second"}],
            "two_steps": True, "prompts": str(folder), "seed": 4, **more,
        }
    )  # fmt: skip
    stage.check()
    out = new_out(root, name)
    metrics = stage.run(out)
    assert sum(metrics["difficulty"].values()) == metrics["questions"] == sum(metrics["kinds"].values())
    return out


def reply(asked: Asked) -> Answer:
    """A function of all that a request says, its image and seed too."""
    if asked.text == "Describe.":
        return Answer(f"a thing {asked.images[0][-30:-20]} {asked.body['seed']}")
    count = int(asked.text.split()[1][1:])
    names = [f"{asked.model} {asked.text} {asked.images[0][-30:]} {asked.body['seed']} {n}?" for n in range(count)]
    return Answer(array(*((name, "A") for name in names)))


def test_the_same_rows_in_any_shard_after_any_stop_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = put_images(tmp_path, {f"train/{n}.png": noise(n) for n in range(6)})
    manifest = port(tmp_path, "images-1", "images", images)
    turned = port(tmp_path, "images-2", "images", images[::-1])

    def made(out: Out) -> dict[str, QA]:
        found = list(rows(out.path / "questions", QA))
        assert len({row.id for row in found}) == len(found) == 30
        return {row.id: row for row in found}

    with chat_server(reply) as server:
        whole = made(planned(tmp_path, manifest, server.base_url, "generate-1"))
        for shard in (1, 7, 1000):
            assert made(planned(tmp_path, manifest, server.base_url, f"generate-s{shard}", shard=shard)) == whole
        assert made(planned(tmp_path, turned, server.base_url, "generate-t")) == whole
        keep, kept = Out._keep, []

        def stop_at(number: int) -> None:
            def counted(self: Out, *arguments: Any) -> None:
                keep(self, *arguments)
                kept.append(1)
                if len(kept) == number:
                    raise KeyboardInterrupt

            monkeypatch.setattr(Out, "_keep", counted)

        for number in (2, 5):  # in the first step, in the second
            kept.clear()
            stop_at(number)
            with pytest.raises(KeyboardInterrupt):
                planned(tmp_path, manifest, server.base_url, f"generate-i{number}", shard=4)
            monkeypatch.setattr(Out, "_keep", keep)
            assert made(planned(tmp_path, manifest, server.base_url, f"generate-i{number}", shard=4)) == whole
    sources = [json.loads(row.source) for row in whole.values()]
    assert {s["teacher"] for s in sources} == {"first", "second"}
    assert all(s["description"].startswith("a thing") and len(s["describe_template"]) == 64 for s in sources)
    assert {(s["seed"], s["max_tokens"], s["temperature"]) for s in sources} == {(4, 1024, 0.7)}
    assert {tuple(s["planned"]) for s in sources} == {("difficulty", "language")}


def test_an_image_without_a_description(tmp_path: Path) -> None:
    images = put_images(tmp_path, {"train/0.png": noise(0), "train/1.png": noise(1)})
    manifest = port(tmp_path, "images-1", "images", images)

    def reply(asked: Asked) -> Answer:
        sees_second = asked.images == [data_url(images[1].images[0])]
        return Answer(array(("How many?", "3"))) if sees_second else Answer(status=400, text="no")

    with chat_server(reply) as server:
        teacher = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0}
        stage = Generate.model_validate({"images": manifest, "teacher": teacher, "two_steps": True, "kinds": ["read"]})
        out = new_out(tmp_path, "generate-1")
        stage.run(out)
    assert [d.reason for d in set_aside(out)] == ["no description"]
    assert out.counts()["out"] == {"questions": 1}


def test_fields_with_a_plan(tmp_path: Path) -> None:
    form = json.dumps({"total": "9.00", "company": "A B", "date": "25/12/2018"})
    images = put_images(tmp_path, {"train/0.png": noise(0)}, {"train/0.png": form})
    stage = Generate.model_validate(
        {"images": port(tmp_path, "images-1", "images", images), "mode": "fields",
         "plan": {"per_image": 6, "kinds": {"read": 2, "yesno": 1}}}
    )  # fmt: skip
    stage.check()
    out = new_out(tmp_path, "generate-1")
    kinds = stage.run(out)["kinds"]
    assert kinds["read"] == 3  # four are planned; there are three fields to read
    assert kinds["yesno"] == 0  # no other image to take a false value from, and as many true as false ones
