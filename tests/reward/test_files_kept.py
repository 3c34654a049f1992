"""What is kept of a file that is being scored: chunk by chunk, told truly, and gone where another reward is asked."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from reward import files
from reward.files import score_file, state_of
from reward.load import read_reward
from reward.rules import Rules
from tests.chat_server import Answer, chat_server
from tests.reward.test_files import RULES, call, lines, write


def test_a_reward_that_stops_at_once_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Rules, given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rules, "score", stopped)
    source = write(tmp_path / "in.jsonl", [{"prompt": "?", "completion": "1", "reference": "1"}])
    with pytest.raises(KeyboardInterrupt):
        score_file(read_reward(RULES), source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_stopped_file_continues_and_another_reward_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": str(i), "prompt": "?", "completion": str(i), "reference": str(i)} for i in range(10)]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    asked: list[str] = []
    real = Rules.score

    def counted(self: Rules, given: Any) -> Any:
        asked.extend(row.reference for row in given)
        if len(asked) > stop:
            raise KeyboardInterrupt
        return real(self, given)

    monkeypatch.setattr(Rules, "score", counted)
    stop = 7
    with pytest.raises(KeyboardInterrupt):
        score_file(read_reward(RULES), source, target, chunk=2)
    assert not target.exists()
    stop = 100
    score_file(read_reward(RULES), source, target, chunk=2)
    assert asked == [*map(str, range(10)), "6", "7", "8", "9"]  # chunks of 2, 4 and 8
    assert [r["score"] for r in lines(target)] == [1.0] * 10
    asked.clear()
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        score_file(read_reward(RULES), source, target, chunk=2)
    stop = 100
    other = read_reward({"reward": "rules", "rules": [{"rule": "length", "min": 2}]})
    assert not caplog.messages
    score_file(other, source, target, chunk=2)
    assert caplog.messages == [f"{target}: what was kept is of other files or another reward; begun anew"]
    assert [r["score"] for r in lines(target)] == [0.0] * 10


def test_what_is_kept_is_told_and_not_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An outage after 300 answers, many to a row, costs those of the third chunk."""
    rows = [{"prompt": f"Is it {n}?", "candidates": ["a", "b", "c", "d"]} for n in range(100)]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    most = 300
    with chat_server(lambda _: Answer("4", status=200 if len(server.asked) <= most else 503)) as server:
        engine = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0, "concurrency": 4}
        reward = tmp_path / "r.yaml"
        reward.write_text(json.dumps({"reward": "judge", "engine": engine}))
        words = ("score", str(reward), str(source), str(target))
        assert call(*words) == 1
        assert (
            capsys.readouterr().err.strip().endswith("; 48 of 100 rows are done and kept, the same command continues")
        )
        server.asked.clear()
        most = 1000
        assert call(*words) == 0
        assert len(server.asked) == 400 - 48 * 4
        target.unlink()
        server.asked.clear()
        most = 3
        assert call(*words) == 1
        assert capsys.readouterr().err.strip().endswith("; no row was done")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "r.yaml"]


def test_an_interruption_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: Rules, given: Any) -> Any:
        if len(given) != 64:
            raise KeyboardInterrupt
        return real(self, given)

    real = Rules.score
    monkeypatch.setattr(Rules, "score", stopped)
    row = {"prompt": "?", "candidates": ["1"] * 16, "reference": "1"}
    for n, told in {3: "no row was done", 9: "4 of 9 rows are done and kept, the same command continues"}.items():
        source = write(tmp_path / "in.jsonl", [row] * n)
        assert call("score", "rules", str(source), str(tmp_path / "out.jsonl")) == 130
        assert capsys.readouterr().err.splitlines()[-1] == f"interrupted; {told}"


def test_an_interruption_of_a_continued_run_keeps_what_the_first_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the rows are counted, and while the first of them are passed over."""
    rows = [{"prompt": "?", "completion": str(i), "reference": str(i)} for i in range(10)]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    asked: list[str] = []
    real, chunks = Rules.score, files._chunks

    def scored(self: Rules, given: Any) -> Any:
        asked.extend(row.reference for row in given)
        if len(asked) > 7:
            raise KeyboardInterrupt
        return real(self, given)

    def stopped(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rules, "score", scored)
    for at, by, told in (
        ("_chunks", chunks, "6 of 10 rows are done and kept, the same command continues"),
        ("count_rows", stopped, "6 rows are done and kept, the same command continues"),
        ("_chunks", stopped, "6 of 10 rows are done and kept, the same command continues"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(files, at, by)
            with pytest.raises(KeyboardInterrupt, match=f"^{told}$"):
                score_file(read_reward(RULES), source, target, chunk=2)
    asked.clear()
    score_file(read_reward(RULES), source, target, chunk=2)
    assert asked == ["6", "7", "8", "9"]
    assert [r["score"] for r in lines(target)] == [1.0] * 10
    monkeypatch.setattr(files, "count_rows", stopped)
    with pytest.raises(KeyboardInterrupt, match="no row was done"):
        score_file(read_reward(RULES), source, tmp_path / "other.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("size", [1, 4, 10, 1000])
def test_a_chunk_is_some_answers_and_leaves_an_image_whole(tmp_path: Path, size: int) -> None:
    """In both forms of images; none, or one that never changes, makes no chunk longer than two."""

    def asks(image: str | None, answers: int, form: int) -> dict[str, Any]:
        found: dict[str, Any] = {"candidates": ["x"] * answers}
        if form:
            parts = [] if image is None else [{"type": "image_url", "image_url": {"url": image}}]
            return {**found, "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]}
        return {**found, "prompt": "?", **({} if image is None else {"images": [image]})}

    draw = random.Random(size)
    rows: list[Any] = []
    for n in range(60):
        image = draw.choice([None, f"{n}.png", f"{n}.png"])
        rows += [asks(image, draw.randint(1, 6), n % 2) for _ in range(draw.randint(1, 5))]
    rows += [asks("same.png", 2, 0)] * 100 + [
        5,
        None,
        [],
        {"candidates": 5, "messages": 5, "images": 5},
        {"images": {}},
    ]
    chunks = list(files._chunks(write(tmp_path / "in.jsonl", rows), size, False))
    assert [row for chunk in chunks for row in chunk] == rows
    most = 8 * size
    for chunk, after in zip(chunks, [*chunks[1:], None], strict=True):
        count = [files._answers_of(row) for row in chunk]
        assert sum(count[:-1]) < 2 * size
        if after is not None:
            assert sum(count) >= size
            new = files._images_of(after[0])
            assert sum(count) >= 2 * size or not new or new != files._images_of(chunk[-1])
        ends = [n for n in range(len(chunk)) if sum(count[:n]) >= size]  # none of these rows had to be taken
        assert all(files._images_of(chunk[n]) == files._images_of(chunk[n - 1]) != [] for n in ends)
        size = min(2 * size, most)


def test_what_is_done_stays_where_scores_do_and_goes_where_a_rubric_is_rewritten(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.jinja"
    rubric.write_text("{{ answer }} strictly")

    def state(**more: Any) -> Any:
        engine = {"engine": "server", "model": "m", "base_url": "http://127.0.0.1:1", **more}
        return state_of(read_reward({"reward": "judge", "rubric": str(rubric), "engine": engine}))

    first = state()
    assert state(concurrency=2, timeout_s=3, base_url="http://127.0.0.1:2") == first
    assert state(model="other") != first
    rubric.write_text("{{ answer }} leniently")
    assert state() != first
