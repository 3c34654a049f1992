import hashlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from align.artifact import Store
from align.digests import files_below, times


def of(path: Path, root: Path) -> str:
    return Store(root / "store").digest(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.png"):
        (tmp_path / "photos" / name).write_text(name)
    return tmp_path / "photos"


def test_a_folder_is_its_names_and_contents(photos: Path, tmp_path: Path) -> None:
    text = "".join(f"{n}\0{hashlib.sha256(n.encode()).hexdigest()}\n" for n in ("a.png", "b.png", "more/c.png"))
    for _ in range(2):
        assert of(photos, tmp_path / "runs") == hashlib.sha256(text.encode()).hexdigest()


def test_what_is_remembered_is_believed_until_size_or_times_change(photos: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs" / "store")
    before = store.digest(photos / "a.png")
    with sqlite3.connect(store.root / "digests.sqlite") as db:
        db.execute("update digests set digest = 'known'")
    assert store.digest(photos / "a.png") == "known"
    os.utime(photos / "a.png", (1, 1))
    assert store.digest(photos / "a.png") == before


def test_a_folder_of_runs_is_no_content(photos: Path) -> None:
    """`images=. --runs runs` inside the folder of images: what the run writes must not count as its source."""
    before = of(photos, photos.parent / "elsewhere")
    assert of(photos, photos / "runs") == before
    assert (photos / "runs" / "store" / "digests.sqlite").is_file()
    seen = times(photos)
    (photos / "runs" / "r" / "logs").mkdir(parents=True)
    (photos / "runs" / "r" / "logs" / "a.log").write_text("x")
    assert of(photos, photos / "runs") == before
    assert times(photos) == seen
    assert [path.name for path in files_below(photos)] == ["a.png", "b.png", "c.png"]
    assert of(photos, photos) == before  # `--runs .`
    (photos / "r" / "logs").mkdir(parents=True)
    (photos / "r" / "logs" / "a.log").write_text("x")
    assert of(photos, photos) == of(photos, photos / "runs") == before


def test_times_notice_a_file_that_was_written_back(photos: Path) -> None:
    before = times(photos), times(photos / "a.png")
    os.utime(photos / "a.png", (1, 1))
    assert all(now != then for now, then in zip((times(photos), times(photos / "a.png")), before, strict=True))


@pytest.mark.parametrize("damage", ["garbage", "torn", "pages"])
def test_a_damaged_memory_is_begun_anew(damage: str, photos: Path, tmp_path: Path) -> None:
    before = of(photos, tmp_path)
    memory = tmp_path / "store" / "digests.sqlite"
    whole = memory.read_bytes()
    broken = {
        "garbage": b"no data base" * 999,
        "torn": whole[:5000],
        "pages": whole[:4096] + b"\xff" * len(whole[4096:]),
    }
    memory.write_bytes(broken[damage])
    assert of(photos, tmp_path) == before
    assert of(photos, tmp_path) == before
    with sqlite3.connect(memory) as db:
        assert db.execute("select count(*) from digests").fetchone() == (3,)


def test_without_a_place_to_remember_it_is_found_all_the_same(photos: Path, tmp_path: Path) -> None:
    before = of(photos, tmp_path)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store" / "digests.sqlite").mkdir(parents=True)
    assert of(photos, tmp_path) == before
