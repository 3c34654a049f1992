import json
from pathlib import Path

import pytest

from align.records import (
    QA,
    Candidate,
    Message,
    Row,
    Scored,
    dropped,
    read_parquet,
    row_id,
    row_seed,
    schema,
    write_parquet,
)


def scored(i: int, image: str = "/x/a.png", score: float | None = 0.5) -> Scored:
    return Scored(
        id=f"r{i}", images=[image], prompt=[Message(role="user", content="wie viele?")],
        completion=[Message(role="assistant", content="３ bars\n")], question_id="q", image_id="i", kind="count",
        split="train", reference=None, sampler="teacher", temperature=0.7, system="", seed=3, finish="stop",
        score=score, parts={"exact": None, "anls": 0.25}, reason="" if score is not None else "no reference",
    )  # fmt: skip


def test_rows_survive_parquet_unchanged(tmp_path: Path) -> None:
    rows = [scored(0), scored(1, score=None)]
    path = tmp_path / "p" / "part-00000.parquet"
    assert write_parquet(path, Scored, rows) == 2
    assert list(read_parquet([path], Scored)) == rows
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_a_richer_row_reads_as_the_plainer_type(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write_parquet(path, Scored, [scored(0)])
    (row,) = read_parquet([path], Candidate)
    assert type(row) is Candidate
    assert row.model_dump() == scored(0).model_dump(include=set(Candidate.model_fields))


def test_images_are_stored_by_name_so_that_a_store_can_move(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "blobs", tmp_path / "new" / "blobs"
    image = old / "ab" / "abcd.png"
    path = tmp_path / "part-00000.parquet"
    write_parquet(path, Scored, [scored(0, str(image)), scored(1, "/elsewhere/x.png")], old)
    assert [r.images for r in read_parquet([path], Scored)] == [["abcd.png"], ["/elsewhere/x.png"]]
    assert [r.images for r in read_parquet([path], Scored, new)] == [[str(new / "ab/abcd.png")], ["/elsewhere/x.png"]]


def test_ids_and_seeds_depend_on_every_part() -> None:
    assert row_id("a", 1) != row_id("a", 2) != row_id("b", 2)
    assert row_id("ab", "c") != row_id("a", "bc")
    seeds = {row_seed(s, "row", i) for s in range(3) for i in range(100)}
    assert len(seeds) == 300
    assert all(0 <= s < 2**31 for s in seeds)


def test_a_row_set_aside_names_its_images_as_parquet_does() -> None:
    kept = json.loads(dropped(scored(0, "/any/store/blobs/ab/abcd.png"), "odd").row)
    assert kept["images"] == ["abcd.png"]
    assert json.loads(dropped(scored(0, "/mine/x.png"), "odd").row)["images"] == ["/mine/x.png"]


def test_schema_names_are_trls() -> None:
    assert {"images", "prompt", "completion"} <= set(schema(QA).names)


def test_a_type_without_parquet_form_is_refused() -> None:
    class Odd(Row):
        value: complex

    with pytest.raises(TypeError, match="no parquet type"):
        schema(Odd)
