"""Stage `questions`: a file of questions with known answers, joined to the manifest.

In: JSONL or CSV with `image`, `question`, `answer` and perhaps `kind`, and the manifest. Out: one `QA` a question, on
the side (train, eval) of its image; a question that fits no image is set aside.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from align.artifact import Out, rows
from align.errors import UserError, is_text
from align.records import QA, Dropped, ImageRow, Message, Row, dropped, row_id
from align.stage import FileRef, Metrics, Ref, Stage, UnusedSeed

COLUMNS = ("image", "question", "answer")


class Asked(Row):
    """A line of the file as text; None is an absent value, and what is no text at all is kept in `odd`."""

    line: int
    image: str = ""
    question: str = ""
    answer: str = ""
    kind: str = ""
    odd: str = ""


class Questions(Stage):
    """Reads questions whose answers are known: the truth of an evaluation, or training data made elsewhere."""

    NAME = "questions"
    OUTPUTS = {"questions": QA}

    images: Annotated[str, Ref(ImageRow)]
    file: FileRef  # .jsonl (an object a line) or .csv (with a header)
    seed: UnusedSeed = 0

    def check(self) -> None:
        if Path(self.file).exists():  # else a stage above will make it
            for _ in read_questions(Path(self.file)):
                pass

    def run(self, out: Out) -> Metrics:
        names = Names(rows(self.images, ImageRow))
        aside: list[Dropped] = []
        kinds: Counter[str] = Counter()

        def kept() -> Iterator[QA]:
            seen: set[str] = set()
            for asked in read_questions(Path(self.file)):
                out.rows_in += 1
                try:
                    row = join(asked, names, seen)
                except Unfit as error:
                    aside.append(dropped(asked, error.reason, error.detail))
                else:
                    kinds[row.kind] += 1
                    yield row

        out.write("questions", QA, kept())
        out.drop(aside)
        return {"kinds": dict(kinds)}


class Unfit(Exception):
    """A question that gives no row: the reason that is counted, and a detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Names:
    """Finds an image by what a file calls it: two paths mean the same image where one ends with the other, with or
    without the suffix of the file's name."""

    def __init__(self, images: Iterable[ImageRow]) -> None:
        self._names: dict[str, ImageRow] = {}
        self._ends: dict[str, ImageRow | None] = {}  # of names and bare names; None: several images
        self._bare: dict[str, ImageRow | None] = {}
        for row in images:
            slim = row.model_copy(update={"text_form": None})
            bare = PurePosixPath(row.name).with_suffix("").as_posix()
            self._names[row.name] = slim
            _put(self._bare, bare, slim)
            for end in {*_ends(row.name), *_ends(bare)}:
                _put(self._ends, end, slim)

    def find(self, name: str) -> ImageRow:
        """The image. Raises Unfit where there is none, or more than one."""
        name = name.replace("\\", "/").removeprefix("./").strip("/")
        known = [*([self._ends[name]] if name in self._ends else []), *self._longer(name)]
        row = self._names.get(name) or next(iter(known), None)
        if row is None and known:
            raise Unfit("ambiguous image", f"several images are called {name!r}; give more of the path")
        if row is None:
            raise Unfit("unknown image", f"{name!r} is not in the manifest")
        return row

    def _longer(self, name: str) -> Iterator[ImageRow | None]:
        """Images whose whole name ends `name`: the file gives a longer path than the manifest."""
        for end in _ends(name):
            if end in self._names:
                yield self._names[end]
            elif end in self._bare:
                yield self._bare[end]


def join(asked: Asked, names: Names, seen: set[str]) -> QA:
    """The row of a question; `seen` holds the ids that came before. Raises Unfit."""
    if asked.odd:
        raise Unfit("not text", asked.odd)
    for key in COLUMNS:
        if not getattr(asked, key).strip():
            raise Unfit(f"empty {key}")
    image = names.find(asked.image.strip())
    question, answer = asked.question.strip(), asked.answer.strip()
    identity = row_id(image.id, question, answer)
    if identity in seen:
        raise Unfit("duplicate", "the same question and answer on the same image")
    seen.add(identity)
    return QA(
        id=identity,
        images=image.images,
        prompt=[Message(role="user", content=question)],
        completion=[Message(role="assistant", content=answer)],
        image_id=image.id,
        kind=asked.kind.strip() or "question",
        split=image.split,
        source=json.dumps({"file_line": asked.line}),
    )


def read_questions(path: Path) -> Iterator[Asked]:
    """Stream the lines of the file. Raises UserError naming the line that cannot be read."""
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv"):
        raise UserError(f"file: {path}: a .jsonl or .csv file is expected")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = _jsonl(path, file) if suffix == ".jsonl" else _csv(path, file)
            empty = True
            for asked in found:
                empty = False
                yield asked
    except OSError as error:
        raise UserError(f"file: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"file: {path}: not UTF-8 at byte {error.start}") from None
    if empty:
        raise UserError(f"file: {path}: holds no question")


def _jsonl(path: Path, file: Iterable[str]) -> Iterator[Asked]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"file: {path}:{number}: not valid JSON: {why}") from None
        if not isinstance(values, dict):
            raise UserError(f"file: {path}:{number}: an object is expected, not {type(values).__name__}")
        _require(path, number, list(values))
        yield _asked(number, values)


def _csv(path: Path, file: Iterable[str]) -> Iterator[Asked]:
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in file:
            taken += 1
            yield line

    reader = csv.DictReader(lines(), strict=True)
    try:
        _require(path, 1, [name.strip() for name in reader.fieldnames or []])
        for values in reader:
            if None in values:
                raise UserError(f"file: {path}:{taken}: more values than the header has names")
            yield _asked(taken, {name.strip(): value for name, value in values.items()})
    except csv.Error as error:
        raise UserError(f"file: {path}:{taken}: not valid CSV: {error}") from None


def _require(path: Path, number: int, names: list[str]) -> None:
    for key in COLUMNS:
        if key not in names:
            has = f"; there is {', '.join(map(repr, names))}" if names else ""
            raise UserError(f"file: {path}:{number}: {key!r} is required{has}")


def _asked(number: int, values: dict[str, Any]) -> Asked:
    texts: dict[str, str] = {}
    odd = ""
    for key in (*COLUMNS, "kind"):
        value = values.get(key)
        if isinstance(value, bool):
            texts[key] = "yes" if value else "no"
        elif value is None or isinstance(value, str | int | float):
            texts[key] = "" if value is None else str(value)
        else:
            odd = f"{key} is a {type(value).__name__}"
        if not is_text(texts.get(key, "")):
            texts[key], odd = "", f"{key} holds half a character"
    return Asked(id=row_id("line", number), line=number, odd=odd, **texts)


def _put(table: dict[str, ImageRow | None], key: str, row: ImageRow) -> None:
    if key in table and (known := table[key]) is not None and known.id != row.id:
        table[key] = None
    else:
        table.setdefault(key, row)


def _ends(name: str) -> list[str]:
    """`a/b/c`, `b/c`, `c`: the longest first."""
    parts = name.split("/")
    return ["/".join(parts[n:]) for n in range(len(parts))]
