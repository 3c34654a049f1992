"""The one progress bar: rate and time left, on the terminal even while a stage's own output goes to a log file.

A stage asks for `progress(total, label)`; where the bar goes is decided once by whoever runs the stage.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

_stream: TextIO | None = None


@contextmanager
def progress_to(stream: TextIO) -> Iterator[None]:
    """Send every bar opened inside to `stream` (the real terminal while stderr is redirected)."""
    global _stream
    before, _stream = _stream, stream
    try:
        yield
    finally:
        _stream = before


def progress(total: int, label: str, done: int = 0) -> "tqdm[Any]":
    """A bar of `total` units of which `done` are there already; silent where the stream is no terminal."""
    stream = _stream or sys.stderr
    return tqdm(
        total=total, initial=done, desc=f"  {label}", file=stream, leave=False, dynamic_ncols=True,
        disable=not stream.isatty(), mininterval=0.2, unit="",
    )  # fmt: skip
