import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.artifact import Batch, Store, artifact_at, begin, commit, rows, write_json
from align.records import Row


class Word(Row):
    images: list[str] = []


def test_images_of_a_store_behind_a_link_are_written_by_name(tmp_path: Path) -> None:
    """The rows that a stage reads come through the real place of the store, whatever link leads there."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    store = Store(tmp_path / "link" / "store")
    image = str(store.add_blob(b"x", ".png"))
    with begin(store, "first", "a") as out:
        out.write("words", Word, [Word(id="w", images=[image])])
        first = commit(out, {}, {})
    with begin(store, "second", "b") as out:
        out.write("words", Word, rows(tmp_path / "link" / "store" / "artifacts" / "first-a" / "words", Word))
        second = commit(out, {}, {})
    for artifact in (first, second):
        (part,) = (artifact.path / "words").glob("*.parquet")
        assert pq.read_table(part).column("images").to_pylist() == [[Path(image).name]]
    (tmp_path / "real").rename(tmp_path / "moved")
    (row,) = rows(tmp_path / "moved" / "store" / "artifacts" / "second-b" / "words", Word)
    assert Path(row.images[0]).read_bytes() == b"x"


@pytest.mark.parametrize("text", ["{}", '{"stage": "x"}', "[1]", "null", "no json", '"stage key"'])
def test_an_artifact_json_of_somebody_else_is_no_artifact(text: str, tmp_path: Path) -> None:
    (tmp_path / "artifact.json").write_text(text)
    assert artifact_at(tmp_path) is None
    assert artifact_at(tmp_path / "none") is None


def test_an_artifact_is_found_through_links(tmp_path: Path) -> None:
    with begin(Store(tmp_path / "store"), "s", "k") as out:
        made = commit(out, {"stage": "s", "key": "k"}, {})
    (tmp_path / "link").symlink_to(made.path)
    assert artifact_at(tmp_path / "link") == artifact_at(made.path) == made


def test_a_shard_whose_rows_are_gone_is_done_again_and_goes_with_the_rest(tmp_path: Path) -> None:
    worked = []

    def work(chunk: list[Word]) -> Batch[Word]:
        worked.append([row.id for row in chunk])
        return Batch({"words": chunk})

    def go() -> Path:
        with begin(Store(tmp_path / "store"), "s", "k") as out:
            source = [Word(id=name) for name in "abcd"]
            out.map_rows(source, 4, work, {"words": Word}, shard=2, label="words")
            (out.folder("steps") / "0").touch()
            out.discard("steps")
            assert (out.path / "shards").is_dir()
            if len(worked) < 3:
                return out.path
            return commit(out, {}, {}).path

    (go() / "words" / "part-00000.parquet").unlink()
    made = go()
    assert worked == [["a", "b"], ["c", "d"], ["a", "b"]]
    assert [row.id for row in rows(made / "words", Word)] == list("abcd")
    assert not [name for name in ("steps", "shards") if (made / name).exists()]


def test_json_of_a_file_name_that_is_not_utf8_is_read_back_the_same(tmp_path: Path) -> None:
    value = {"caf\udce9.png": "größer", "n": ["\ud83d"]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes().decode("utf-8")) == value
    assert "größer" in (tmp_path / "a.json").read_text(encoding="utf-8")
