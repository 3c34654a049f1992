"""A server that refuses every request of a stage stops it with the server's words, and the same command asks again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.artifact import Out
from align.errors import UserError
from align.sample import Sample
from align.stage import Stage
from data_gen.augment import Augment
from data_gen.filter import Filter
from data_gen.generate import Generate
from tests.chat_server import Answer, Asked, ChatServer, chat_server
from tests.data_gen.manifests import array, new_out, noise, port, put_images, qa, set_aside

Make = Callable[[dict[str, Any], dict[str, str]], Stage]


def filtered(kind: str, **more: Any) -> Make:
    return lambda engine, ports: Filter.model_validate(
        {"input": ports["rows"], "filters": [{"filter": kind, "engine": engine, "shard": 2, **more}]}
    )


def sampled(engine: dict[str, Any], ports: dict[str, str]) -> Stage:
    one = {"name": "teacher", "engine": engine, "n": 2}
    return Sample.model_validate({"input": ports["rows"], "samplers": [one], "keep_reference": True, "shard": 2})


def generated(two_steps: bool) -> Make:
    return lambda engine, ports: Generate.model_validate(
        {
            "images": ports["images"], "teacher": engine, "kinds": ["read", "count"], "shard": 2,
            "two_steps": two_steps, "per_kind": 1,
        }
    )  # fmt: skip


def augmented(engine: dict[str, Any], ports: dict[str, str]) -> Stage:
    return Augment.model_validate({"input": ports["rows"], "teacher": engine, "ways": ["harder"], "shard": 2})


STAGES = {
    "generate": (generated(False), 6),
    "two steps": (generated(True), 6),
    "augment": (augmented, 3),
    "sample": (sampled, 9),
    "blind": (filtered("blind"), 4),
    "round_trip": (filtered("round_trip", min_agreement=0.01), 0),
    "claims": (filtered("claims"), 1),
    "moderation": (filtered("moderation"), 0),
}


def ports_of(root: Path) -> dict[str, str]:
    images = put_images(root, {f"train/{n}.png": noise(n) for n in range(3)})
    made = [qa(image, f"What is number {n}?", f"only {n}", "read") for n, image in enumerate(images)]
    made.append(qa(images[0], "Is it red?", "yes", "unanswerable"))  # blind and claims ask nothing about it
    return {
        "images": port(root, "images-1", "images", images),
        "rows": port(root, "generate-0", "rows", made if root.name in ("blind", "claims") else made[:3]),
    }


def good(asked: Asked) -> Answer:
    return Answer(array((f"How many {len(asked.text)}?", "4")))


def ran(make: Make, server: ChatServer, out: Out, ports: dict[str, str]) -> None:
    make({"engine": "server", "model": "org/m", "base_url": server.base_url, "retries": 0}, ports).run(out)


@pytest.mark.parametrize("name", STAGES)
def test_the_servers_words_and_then_its_answers(tmp_path: Path, name: str) -> None:
    make, rows_out = STAGES[name]
    root = tmp_path / name.split()[0]
    ports = ports_of(root)
    with chat_server(lambda asked: Answer("images are not supported here", status=400)) as server:
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"'org/m' answered none of \d+ requests.*400: images are not supported"
            ):
                ran(make, server, new_out(root, "stage-1"), ports)
    out = new_out(root, "stage-1")
    with chat_server(good) as server:
        ran(make, server, out, ports)
        assert server.asked
    assert sum(out.counts()["out"].values()) == rows_out
    assert not any("400" in row.detail for row in set_aside(out))


@pytest.mark.parametrize("name", ["generate", "augment", "sample", "blind"])
def test_one_answer_of_whatever_kind_is_enough(tmp_path: Path, name: str) -> None:
    make, _ = STAGES[name]
    root = tmp_path / name
    ports = ports_of(root)
    first: list[str] = []

    def reply(asked: Asked) -> Answer:
        said = json.dumps(asked.body["messages"])
        first[:] = first or [said]
        return Answer("" if name == "sample" else "garbage") if said == first[0] else Answer("no", status=400)

    out = new_out(root, "stage-1")
    with chat_server(reply) as server:
        ran(make, server, out, ports)
    assert out.counts()["dropped"]


def test_an_unreadable_image_is_its_rows_fault(tmp_path: Path) -> None:
    ports = ports_of(tmp_path)
    for blob in (tmp_path / "blobs").rglob("*.png"):
        blob.write_bytes(b"no image")
    out = new_out(tmp_path, "stage-1")
    with chat_server(good) as server:
        ran(STAGES["generate"][0], server, out, ports)
        assert not server.asked
    assert out.counts() == {"in": 6, "out": {"questions": 0}, "dropped": {"no answer": 6}}
