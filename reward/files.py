"""Scoring a file with a reward, outside of any pipeline: JSON lines or parquet in, the same out.

In: rows of a question, one answer or several, images. Out: one row for every answer in the order of the input, with
the row's number (`row`, from 1) and `id` (null where it has none), `candidate`, `score`, `parts` and `reason`. Work is
kept chunk by chunk beside the output, so a stopped command continues; the output appears whole or not at all. A chunk
is some answers, not some rows, so that little is lost however many answers a row has. A row
that cannot be read is a row out without a score, with the reason. A reward that compares answers compares those of one
row, or, where rows have one each, those of all rows with the same prompt and images.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.artifact import write_json
from align.config import KeyPath, shipped
from align.digests import times
from align.engine import EngineDied
from align.errors import UserError, is_text, whole_text
from align.progress import progress
from align.records import Candidate, row_id
from align.stage import key_tree, map_leaves
from reward.asks import MAX_CANDIDATES, MAX_TEXT, Asked, BadAsk, Images, check_ask, whole
from reward.base import Reward, Score
from reward.load import Kind, is_relative, open_reward
from reward.reading import BadRow, count_rows, read_rows

log = logging.getLogger(__name__)
SUFFIXES = (".jsonl", ".parquet")
CHUNK = 64
"""Answers of the first chunk; each has twice as many as the one before, up to `LARGEST` times `CHUNK`: a stop early on
costs little, and an engine that answers many at a time seldom waits for a chunk's last ones."""
LARGEST = 8
COLUMNS = {"row", "id", "candidate", "score", "parts", "reason"}
FORM = 2
"""Of the rows out, as the kept ones have to be."""


@dataclass
class Counts:
    """What came of a file."""

    rows: int = 0
    answers: int = 0
    unscored: int = 0  # answers
    unreadable: int = 0  # rows
    reason: str = ""  # of the first that has no score


def check_files(source: Path, target: Path) -> None:
    """Both have a form that is known, the source is there. Raises UserError."""
    for path in (source, target):
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path}: a file that ends in {' or '.join(SUFFIXES)} is expected")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if source.resolve() == target.resolve():
        raise UserError(f"{target}: is the input too; nothing is overwritten")
    check_target(target, "scores", _holds_scores)


def check_target(target: Path, what: str, holds: Callable[[Path], bool]) -> None:
    """A file can be written there, in whose place `holds` says that there is none but one of `what`. Raises
    UserError."""
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise UserError(f"{target}: is {kind}; the name of a file is expected")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target}: no such folder to write into")
    if target.exists() and not holds(target):
        raise UserError(f"{target}: is there already and holds no {what}; nothing is overwritten, name another file")


def _holds_scores(path: Path) -> bool:
    """Whether a file is one of this command's, which may be made anew; an empty one is anybody's."""
    try:
        first = next(read_rows(path), None)
    except UserError:
        return path.stat().st_size == 0
    return first is None or (isinstance(first, Mapping) and set(first) == COLUMNS)


def score_file(config: Kind, source: Path, target: Path, *, allow_urls: bool = False, chunk: int = CHUNK) -> Counts:
    """Score every answer of `source` into `target`. Raises UserError, and EngineDied where a model is gone; that and
    KeyboardInterrupt say how much is kept, with which the same call continues."""
    check_files(source, target)
    config.check()
    with work_folder(target, ".partial", [state_of(config), *state_of_file(source), chunk, allow_urls, FORM]) as work:
        return _score_in(work, config, source, target, allow_urls, chunk)


def _score_in(work: Path, config: Kind, source: Path, target: Path, allow_urls: bool, chunk: int) -> Counts:
    counts = Counts()
    compared = is_relative(config)
    total = 0
    try:
        total = count_rows(source)
        with _Lazy(config) as reward, progress(total, "rows") as bar:
            for part, rows in enumerate(_chunks(source, chunk, compared)):
                done = work / f"part-{part:06d}.jsonl"
                if not done.exists():
                    with Images(source.absolute().parent, work / "images", urls=allow_urls) as images:
                        _write_lines(done, _score_rows(rows, reward, images, counts.rows, compared))
                bar.update(len(rows))
                counts.rows += len(rows)
    except BaseException as stop:
        done_rows = _rows_done(work)
        if not done_rows:  # there is nothing to continue from
            shutil.rmtree(work)
        if isinstance(stop, EngineDied | KeyboardInterrupt):
            share = f"{done_rows} of {total}" if total else str(done_rows)  # it may have been stopped while counting
            kept = f"{share} rows are done and kept, the same command continues" if done_rows else "no row was done"
            raise type(stop)(f"{stop}; {kept}" if str(stop) else kept) from stop
        raise
    for record in _parts(work):
        if record["candidate"] is None:
            counts.unreadable += 1
        else:
            counts.answers += 1
            counts.unscored += record["score"] is None
        counts.reason = counts.reason or record["reason"]
    _publish(work, target)
    return counts


class _Lazy:
    """A reward that is opened when it is first asked: a command that only has to finish loads no model."""

    def __init__(self, config: Kind) -> None:
        self._config = config
        self._opened: Any = None
        self._reward: Reward | None = None

    def __enter__(self) -> "_Lazy":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._opened is not None:
            self._opened.__exit__(*error)

    def score(self, rows: Sequence[Candidate]) -> list[Score]:
        if self._reward is None:
            self._opened = open_reward(self._config)
            self._reward = self._opened.__enter__()
        return self._reward.score(rows)


@contextmanager
def work_folder(target: Path, suffix: str, state: object) -> Iterator[Path]:
    """The folder beside `target` of what is done already, locked; emptied of what another state left there. Raises
    UserError where another run works in it, and where it is somebody else's."""
    work = target.with_name(target.name + suffix)
    foreign = UserError(f"{work} is in the way: what is done is kept there, and it holds something else; move it away")
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise foreign
    with _locked(work, target):
        mark = work / "state.json"
        key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
        kept = _state_in(mark)
        if kept is None and any(path.name != mark.with_suffix(".tmp").name for path in work.iterdir()):
            raise foreign
        if kept != key:
            if _rows_done(work):
                log.warning("%s: what was kept is of other files or another reward; begun anew", target)
            for path in work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            write_json(mark, key)
        yield work


@contextmanager
def _locked(work: Path, target: Path) -> Iterator[None]:
    """The folder itself carries the lock, which goes with the process."""
    while True:
        work.mkdir(exist_ok=True)
        held = os.open(work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{target}: another run is at it") from None
            if not (work.is_dir() and os.path.samestat(os.fstat(held), work.stat())):
                continue  # the run that had it has just finished and taken it away
            yield
            return
        finally:
            os.close(held)


def _state_in(mark: Path) -> str | None:
    """What `work_folder` has written there; None for anything else."""
    try:
        found = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) and len(found) == 64 else None


def state_of_file(source: Path) -> list[object]:
    """A file by its path, size and time."""
    stat = source.stat()
    return [str(source.resolve()), stat.st_size, stat.st_mtime_ns]


def state_of(config: Kind) -> dict[str, Any]:
    """What scores depend on: the config without its runtime fields, files and folders by size and times as well."""

    def visit(path: KeyPath, found: tuple[object, ...], value: str) -> str:
        place = shipped(Path(value).expanduser())
        return f"{value} {times(place)}" if place.exists() else value

    return key_tree(map_leaves(config, visit))


def _chunks(source: Path, size: int, compared: bool) -> Iterator[list[Any]]:
    """Rows, of so many answers, then twice as many and so on; up to twice as many again where the rows that follow have
    the same images, which are one tree for a trained reward; and where they are compared, until every question among
    them has all its rows."""
    last = {_question_of(row): n for n, row in enumerate(read_rows(source))} if compared else {}
    chunk: list[Any] = []
    answers, until, before = 0, -1, None
    largest = LARGEST * size
    for n, row in enumerate(read_rows(source)):
        images = _images_of(row)
        along = bool(images) and images == before and answers < 2 * size
        if answers >= size and n > until and not along:
            yield chunk
            chunk, answers, size = [], 0, min(2 * size, largest)
        chunk.append(row)
        answers += _answers_of(row)
        before = images
        if compared:
            question = _question_of(row)
            until = max(until, last[question] if question else n)
    if chunk:
        yield chunk


def _answers_of(row: Any) -> int:
    """How many answers a row has to be scored, as far as can be seen before it is checked; at least 1."""
    found = row.get("candidates") if isinstance(row, Mapping) else None
    return max(1, len(found)) if isinstance(found, list) and len(found) <= MAX_CANDIDATES else 1


def _images_of(row: Any) -> list[Any]:
    """A row's images in either form, as they are written; empty where none can be seen."""
    if not isinstance(row, Mapping):
        return []
    images, turns = row.get("images"), row.get("messages")
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content]
    found = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "image_url"]
    return [*images, *found] if isinstance(images, list) else found


def _question_of(row: Any) -> str:
    """A name of what a row with one answer asks, alike for all that ask it; empty for any other row."""
    if not isinstance(row, Mapping) or row.get("completion") is None:
        return ""
    asked = repr([row.get(key) for key in ("prompt", "messages", "images")])
    return hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()


def _score_rows(rows: Sequence[Any], reward: _Lazy, images: Images, first: int, compared: bool) -> list[dict[str, Any]]:
    asks = _read_asks(rows, images, first)
    candidates: list[Candidate] = []
    for row, asked in zip(rows, asks, strict=True):
        if isinstance(asked, Asked):
            question = _question_of(row) if compared else ""
            candidates += [c.model_copy(update={"question_id": question or c.question_id}) for c in asked.candidates]
    scores = iter(reward.score(candidates) if candidates else [])
    records: list[dict[str, Any]] = []
    for number, (row, asked) in enumerate(zip(rows, asks, strict=True), first + 1):
        own = row.get("id") if isinstance(row, Mapping) else None
        name = own if _is_name(own) else None
        if isinstance(asked, BadAsk):
            records.append(_record(number, name, None, Score(None, reason=str(asked))))
        else:
            records += [_record(number, name, n, next(scores)) for n in range(len(asked.answers))]
    return records


def _is_name(own: Any) -> bool:
    """Whether it can be an id. A number is one as it is, which `True` is not."""
    if isinstance(own, str):
        return len(own) <= MAX_TEXT and is_text(own)
    return isinstance(own, int) and not isinstance(own, bool)


def _read_asks(rows: Sequence[Any], images: Images, first: int) -> list[Asked | BadAsk]:
    """Every row checked, then the images behind the URLs of all of them."""
    found: list[Asked | BadAsk] = []
    for n, row in enumerate(rows, first):
        try:
            found.append(_check_row(row, images, row_id("file", n)))
        except BadAsk as problem:
            found.append(problem)
    urls = [url for asked in found if isinstance(asked, Asked) for url in asked.urls]
    fetched = images.fetch(urls) if urls else {}
    for n, asked in enumerate(found):
        if isinstance(asked, Asked) and asked.urls:
            try:
                found[n] = asked.with_images(whole({url: fetched[url] for url in asked.urls}))
            except BadAsk as problem:
                found[n] = problem
    return found


def _check_row(row: Any, images: Images, name: str) -> Asked:
    if isinstance(row, BadRow):
        raise BadAsk(str(row))
    own = row.get("id") if isinstance(row, Mapping) else None
    if not (own is None or isinstance(own, str) or _is_name(own)):
        raise BadAsk(f"id: a text or a whole number is expected, not {type(own).__name__}")
    return check_ask(row, images, name)


def _record(row: int, name: str | int | None, candidate: int | None, score: Score) -> dict[str, Any]:
    return {
        "row": row,
        "id": name,
        "candidate": candidate,
        "score": score.value,
        "parts": score.parts,
        "reason": whole_text(score.reason),
    }


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    partial.replace(path)


def _parts(work: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(work.glob("part-*.jsonl")):
        with path.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def _rows_done(work: Path) -> int:
    """How many rows the parts hold, those of an earlier run too: every row has a record, in their order."""
    last = max(work.glob("part-*.jsonl"), default=None)
    return 0 if last is None else int(json.loads(last.read_text(encoding="utf-8").splitlines()[-1])["row"])


def _publish(work: Path, target: Path) -> None:
    """All parts as one file by one rename, then the folder goes."""
    whole = work / "whole"
    if target.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [
                ("row", pa.int64()),
                ("id", pa.string()),
                ("candidate", pa.int64()),
                ("score", pa.float64()),
                ("parts", pa.map_(pa.string(), pa.float64())),
                ("reason", pa.string()),
            ]
        )
        with pq.ParquetWriter(whole, schema) as writer:
            batch: list[dict[str, Any]] = []
            for record in _parts(work):
                name = None if record["id"] is None else str(record["id"])
                batch.append({**record, "id": name, "parts": list(record["parts"].items())})
                if len(batch) == 4096:
                    writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                    batch = []
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    else:
        with whole.open("wb") as out:
            for path in sorted(work.glob("part-*.jsonl")):
                out.write(path.read_bytes())
    whole.replace(target)
    shutil.rmtree(work)
