"""The image column of a data set, on the hub or in a folder of its files, as bytes that may be images.

In: a data set's name and column. Out: one `Found` a row, with the bytes as stored in it, or with what is wrong.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from align.errors import UserError, did_you_mean
from align.records import Row, row_id


class Found(Row):
    """Bytes that may be an image; `id` is their sha256. They are in `data`, or still in the file at `path`."""

    name: str
    path: str | None = None
    first: str | None = None  # the name under which the same bytes came before
    problem: str | None = None  # why they could not be read
    data: bytes | None = Field(default=None, exclude=True, repr=False)


def from_dataset(
    name: str, commit: str | None, column: str, split: str, limit: int | None
) -> tuple[Iterator[Found], int]:
    """Stream a data set from the hub, or from a folder of its files, with the images' bytes as stored in it."""
    import datasets

    try:
        stream = datasets.load_dataset(name, split=split, streaming=True, revision=commit)
    except Exception as error:  # every builder of `datasets` has errors of its own
        key = "source" if commit is None else "dataset"
        raise UserError(f"{key}: {name}: {(str(error).splitlines() or [''])[0]}") from None
    columns = list(stream.column_names or next(iter(stream), {}))
    if column not in columns:
        raise UserError(f"column: {name} has no column {column!r}{did_you_mean(column, columns)}")
    if isinstance((stream.features or {}).get(column), datasets.Image):
        stream = stream.cast_column(column, datasets.Image(decode=False))
    known = stream.info.splits[split].num_examples if split in (stream.info.splits or {}) else None
    total = min(limit or known, known) if known else limit or 0
    rows = islice(stream.select_columns([column]), limit)
    return (from_value(f"{index:08d}", row[column], name) for index, row in enumerate(rows)), total


def from_value(name: str, value: Any, source: str) -> Found:
    """One cell of an image column: bytes, a path, or a dict of both. Only files of the data set `source` itself (a
    folder, where paths begin, or a hub id) are opened: a path in a row is a stranger's."""
    cell = value if isinstance(value, dict) else {"path": value} if isinstance(value, str) else {"bytes": value}
    data, path = cell.get("bytes"), cell.get("path")
    try:
        if path and Path(source).is_dir() and "://" not in str(path):
            path = str(Path(source) / str(path))
        if data is None and path and not _within(str(path), source):
            return Found(id=row_id(name), name=name, problem=f"unreadable: {path} is no file of the data set")
        if data is None and path:
            import fsspec  # type: ignore[import-untyped]

            with fsspec.open(path, "rb") as file:
                data = file.read()
    except Exception as error:  # every file system of fsspec has errors of its own
        return Found(id=row_id(name), name=name, problem=f"unreadable: {error}")
    if not isinstance(data, bytes):
        what = "an empty cell" if data is None else f"a {type(data).__name__} instead of an image"
        return Found(id=row_id(name), name=name, problem=f"unreadable: {what}")
    return Found(id=hashlib.sha256(data).hexdigest(), name=name, data=data)


def _within(path: str, source: str) -> bool:
    if Path(source).is_dir():
        return "://" not in path and Path(path).resolve().is_relative_to(Path(source).resolve())
    inside = path.startswith((f"hf://datasets/{source}@", f"hf://datasets/{source}/"))
    return inside and "::" not in path and ".." not in path.split("/")
