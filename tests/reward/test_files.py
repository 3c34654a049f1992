"""Scoring files: every form of image and answer, bad rows among good ones, a stop that changes nothing."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import UserError
from pipelines import cli as module
from pipelines.cli import cli
from reward import fetch
from reward.asks import BadAsk
from reward.files import Counts, score_file
from reward.load import read_reward
from reward.rules import Rules
from tests.chat_server import Answer, Asked, chat_server
from tests.reward.candidates import png

RULES = {"reward": "rules", "rules": [{"rule": "exact"}]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_in_both_forms_and_bad_ones_between(tmp_path: Path) -> None:
    data = base64.b64encode(Path(png(tmp_path / "a.png")).read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "How many?"},
    ]
    rows: list[Any] = [
        {"id": "a", "prompt": "How many?", "images": ["a.png"], "candidates": ["3", "4"], "reference": "3"},
        {"id": 7, "messages": [{"role": "user", "content": parts}], "completion": "4", "reference": "4"},
        {"id": "typo", "prompt": "?", "candidate": ["3"]},
        {"prompt": "?", "candidates": ["3"]},
        {"id": "url", "prompt": "?", "images": ["http://127.0.0.1/x.png"], "candidates": ["3"], "reference": "3"},
        {"id": "many", "prompt": "?", "candidates": ["3"] * 10_000, "reference": "3"},
        {"id": "base64", "prompt": "?", "images": ["data:image/png;base64,%%%"], "completion": "3", "reference": "3"},
        {"id": "no image", "prompt": "?", "images": [f"data:;base64,{data[:40]}"], "completion": "3"},
        {"id": "trl", "prompt": [{"role": "user", "content": "?"}], "reference": "x",
         "completion": [{"role": "assistant", "content": "x"}]},
        ["no object"],
    ]  # fmt: skip
    source = write(tmp_path / "in.jsonl", rows)
    with source.open("ab") as stream:
        stream.write(b'{"id": "\xff"}\n\n{"id": broken\n')
        stream.write(b'{"id": "s", "prompt": "?", "completion": "\\ud800", "reference": "x"}\n')
    counts = score_file(read_reward(RULES), source, tmp_path / "out.jsonl", chunk=3)
    found = lines(tmp_path / "out.jsonl")
    assert [(r["id"], r["candidate"], r["score"]) for r in found] == [
        ("a", 0, 1.0), ("a", 1, 0.0), (7, 0, 1.0), ("typo", None, None), (None, 0, None), ("url", None, None),
        ("many", None, None), ("base64", None, None), ("no image", None, None), ("trl", 0, 1.0), (None, None, None),
        (None, None, None), (None, None, None), ("s", None, None),
    ]  # fmt: skip
    assert [r["row"] for r in found] == [1, *range(1, 14)]
    reasons = [r["reason"] for r in found]
    for n, start in {
        3: "unknown key 'candidate'; did you mean 'candidates'?",
        4: "exact: no reference",
        5: "images from URLs are not allowed",
        6: "10000 candidates; 1024 are allowed",
        7: "the image's base64 cannot be read",
        8: "unreadable image: ",
        10: "an object is expected, not list",
        11: "line 11 is no JSON",
        12: "line 13 is no JSON",
        13: "a text holds a lone surrogate",
    }.items():
        assert reasons[n].startswith(start), reasons[n]
    assert counts == Counts(rows=13, answers=5, unscored=1, unreadable=9, reason=reasons[3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "in.jsonl", "out.jsonl"]


def test_parquet_in_and_out(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": "?", "candidates": [str(i), "x"], "reference": str(i)} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    score_file(read_reward(RULES), tmp_path / "in.parquet", tmp_path / "out.parquet", chunk=2)
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(r["id"], r["candidate"], r["score"]) for r in found] == [
        (str(i), n, 1.0 - n) for i in range(5) for n in range(2)
    ]
    assert found[0]["parts"] == [("exact", 1.0)]


def test_parquet_with_images_as_data_sets_keep_them(tmp_path: Path) -> None:
    data = Path(png(tmp_path / "a.png")).read_bytes()
    images = [[{"bytes": data, "path": "gone.png"}], [{"bytes": None, "path": "a.png"}], [{"bytes": b"no", "path": ""}],
              [{"bytes": None, "path": None}]]  # fmt: skip
    rows = [{"prompt": "?", "images": found, "completion": "1", "reference": "1"} for found in images]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    plain = [{**row, "images": [found[0]["bytes"]]} for row, found in zip(rows, images, strict=True)]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "plain.parquet")
    for name, expected in {"in": [1.0, 1.0, None, None], "plain": [1.0, None, None, None]}.items():
        score_file(read_reward(RULES), tmp_path / f"{name}.parquet", tmp_path / "out.jsonl")
        found = lines(tmp_path / "out.jsonl")
        assert [r["score"] for r in found] == expected
        assert "unreadable image" in found[2]["reason"]
        assert found[3]["reason"] == "images: a list of texts is expected"


def test_texts_that_are_no_utf8_cost_their_own_rows_alone(tmp_path: Path) -> None:
    prompts = pa.array([b"?", b"\xff\xfe", b"?"]).view(pa.string())
    table = pa.table({"id": ["a", "b", "c"], "prompt": prompts, "completion": ["1", "2", "3"], "reference": ["1"] * 3})
    pq.write_table(table, tmp_path / "in.parquet")
    score_file(read_reward(RULES), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert [r["score"] for r in lines(tmp_path / "out.jsonl")] == [1.0, None, 0.0]
    assert "no UTF-8" in lines(tmp_path / "out.jsonl")[1]["reason"]

    row = {"prompt": "?", "completion": "1", "reference": "1"}
    text = "\ufeff" + "".join(json.dumps(r) + "\n" for r in (row, {**row, "id": "\ud800"}))
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")  # as some editors begin a file
    score_file(read_reward(RULES), tmp_path / "in.jsonl", tmp_path / "out.parquet")
    assert [r["score"] for r in pq.read_table(tmp_path / "out.parquet").to_pylist()] == [1.0, None]


def test_rows_are_told_apart_by_number_and_keep_their_ids(tmp_path: Path) -> None:
    row = {"prompt": "?", "candidates": ["1", "2"], "reference": "1"}
    ids = ["2", None, 2, {"a": 1}, True, 1.5, ["x"], ""]
    source = write(tmp_path / "in.jsonl", [{**row, "id": own} for own in ids])
    for suffix, kept in {"jsonl": ["2", None, 2, ""], "parquet": ["2", None, "2", ""]}.items():
        target = tmp_path / f"out.{suffix}"
        score_file(read_reward(RULES), source, target)
        found = lines(target) if suffix == "jsonl" else pq.read_table(target).to_pylist()
        good = [r for r in found if r["candidate"] is not None]
        assert [(r["row"], r["id"]) for r in good] == [
            (n, own) for n, own in zip([1, 2, 3, 8], kept, strict=True) for _ in range(2)
        ]
        bad = [(r["row"], r["id"], r["reason"]) for r in found if r["candidate"] is None]
        assert bad == [
            (n, None, f"id: a text or a whole number is expected, not {kind}")
            for n, kind in enumerate(("dict", "bool", "float", "list"), 4)
        ]


def test_a_folder_that_is_somebody_elses_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "?", "completion": "1", "reference": "1"}])
    target, kept = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    kept.mkdir()
    for name, text in {"notes.txt": "mine", "state.json": '{"mine": 1}'}.items():
        (kept / name).write_text(text)
        with pytest.raises(UserError, match=r"out\.jsonl\.partial is in the way"):
            score_file(read_reward(RULES), source, target)
        assert (kept / name).read_text() == text
        (kept / name).unlink()
    score_file(read_reward(RULES), source, target)  # an empty folder holds nothing
    assert [r["score"] for r in lines(target)] == [1.0]
    kept.write_text("mine")
    with pytest.raises(UserError, match="is in the way"):
        score_file(read_reward(RULES), source, target)
    assert kept.read_text() == "mine"


def test_a_second_run_at_the_same_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "?", "completion": "1", "reference": "1"}])
    target = tmp_path / "out.jsonl"
    real = Rules.score

    def meanwhile(self: Rules, given: Any) -> Any:
        with pytest.raises(UserError, match=r"out\.jsonl: another run is at it"):
            score_file(read_reward(RULES), source, target)
        return real(self, given)

    monkeypatch.setattr(Rules, "score", meanwhile)
    assert score_file(read_reward(RULES), source, target).unscored == 0


def test_answers_that_come_one_by_one_are_compared_with_all_of_their_question(tmp_path: Path) -> None:
    """Whatever the size of a chunk, and wherever the rows of the question stand."""
    words = ["a", "b", "c", "d"]
    together = [{"prompt": f"Which {q}?", "candidates": words} for q in range(3)]
    apart = [{"prompt": f"Which {q}?", "completion": word} for q in range(3) for word in words]
    mixed = [apart[q * 4 + n] for n in range(4) for q in range(3)]

    def answer(asked: Asked) -> Answer:
        first, second = re.findall(r"Answer [AB]: (.*)", asked.text)
        return Answer("A" if first < second else "B")

    with chat_server(answer) as server:
        engine = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0}
        reward = read_reward({"reward": "judge", "mode": "pairwise", "engine": engine})
        for rows, order in (
            (together, range(12)),
            (apart, range(12)),
            (mixed, [q * 4 + n for n in range(4) for q in range(3)]),
        ):
            for chunk in (1, 5, 100):
                score_file(reward, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", chunk=chunk)
                found = [r["score"] for r in lines(tmp_path / "out.jsonl")]
                assert found == pytest.approx([[1, 2 / 3, 1 / 3, 0][n % 4] for n in order])


def call(*words: str) -> int:
    return module._exit_code(lambda: cli(list(words), standalone_mode=False))


def test_the_command_takes_files_and_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "?", "candidates": ["3", "4"], "reference": "3"}])
    reward = tmp_path / "r.yaml"
    reward.write_text("reward: rules\nrules: [{rule: exact}]\n")
    target = tmp_path / "out.jsonl"
    assert call("score", str(reward), str(source), str(target)) == 0
    assert f"{target}: 2 answers from 1 rows\n" in capsys.readouterr().out
    write(source, [*lines(source), {"prompt": "?"}])
    assert call("score", str(reward), str(source), str(target)) == 0
    assert "from 2 rows; 1 rows could not be read; the first reason: candidates (a" in capsys.readouterr().out
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for words, message in {
        (str(reward), str(source)): "three words are expected",
        (str(reward), str(source), str(source)): "is the input too",
        (str(reward), str(tmp_path / "none.jsonl"), str(target)): "no such file",
        (str(reward), str(source), str(tmp_path / "x.csv")): "ends in .jsonl or .parquet",
        (str(reward), str(source), str(tmp_path / "folder.jsonl")): "is a folder",
        (str(reward), str(source), str(tmp_path / "pipe.jsonl")): "is no regular file",
        (str(reward), str(source), str(tmp_path / "none" / "x.jsonl")): "no such folder",
        (str(tmp_path / "none.yaml"), str(source), str(target)): "no such file",
        ("reward=r.yaml", "--allow-urls"): "--allow-urls goes with a file",
        ("reward=none.yaml",): "vlm-align score: reward: no such file",
    }.items():
        assert call("score", *words) == 2
        assert message in capsys.readouterr().err


def test_a_file_without_any_score_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward, target = tmp_path / "r.yaml", tmp_path / "out.jsonl"
    reward.write_text("reward: rules\nrules: [{rule: exact}]\n")
    for row, message in {
        "no JSON": "no answer of its 1 rows has a score, the first: line 1 is no JSON: ",
        '{"prompt": "?", "candidates": ["3"]}': "no answer of its 1 rows has a score, the first: exact: no reference",
    }.items():
        (tmp_path / "in.jsonl").write_text(row)
        assert call("score", str(reward), str(tmp_path / "in.jsonl"), str(target)) == 1
        assert message in capsys.readouterr().err
        assert lines(target)[0]["score"] is None


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_holds_no_scores_is_not_overwritten(tmp_path: Path, suffix: str) -> None:
    asked = {"prompt": "?", "candidates": ["3"], "reference": "3"}
    source, mine = write(tmp_path / "in.jsonl", [asked]), tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([asked]), mine)
    else:
        write(mine, [asked])
    before = mine.read_bytes()
    with pytest.raises(UserError, match="holds no scores; nothing is overwritten"):
        score_file(read_reward(RULES), source, mine)
    assert mine.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", mine.name])
    for target in (tmp_path / f"out{suffix}", tmp_path / f"empty{suffix}"):
        (tmp_path / f"empty{suffix}").touch()
        assert score_file(read_reward(RULES), source, target) == Counts(1, 1)
        assert score_file(read_reward(RULES), source, target) == Counts(1, 1)  # its own it makes anew


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"text")
    with pytest.raises(UserError, match="no parquet file"):
        score_file(read_reward(RULES), tmp_path / "in.parquet", tmp_path / "out.jsonl")


def test_images_from_urls_cost_their_own_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(png(tmp_path / "a.png")).read_bytes()
    asked: list[str] = []

    async def web(url: str, most: int) -> bytes:
        asked.append(url)
        if "gone" in url:
            raise BadAsk("the image's URL answers 404")
        return b"no image" if "odd" in url else data

    monkeypatch.setattr(fetch, "fetch", web)
    places = ["http://a.example/x", "http://gone.example/x", "http://a.example/x", "http://odd.example/x", "a.png"]
    places += ["http://127.0.0.1/x", "http://a.example:99999/"]
    rows = [{"prompt": "?", "images": [place], "completion": "3", "reference": "3"} for place in places]
    rows.append({"prompt": "?", "images": ["http://never.example/"], "candidate": ["3"]})
    source = write(tmp_path / "in.jsonl", rows)
    score_file(read_reward(RULES), source, tmp_path / "out.jsonl", allow_urls=True)
    found = lines(tmp_path / "out.jsonl")
    assert [r["score"] for r in found] == [1.0, None, 1.0, None, 1.0, None, None, None]
    for n, reason in {
        1: "answers 404",
        3: "unreadable image",
        5: "not public",
        6: "not valid",
        7: "unknown key",
    }.items():
        assert reason in found[n]["reason"]
    assert sorted(asked) == sorted(set(places[:4]))
