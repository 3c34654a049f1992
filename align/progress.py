"""The one progress bar: rate and time left, on the terminal even while a stage's own output goes to a log file.

A stage asks for `progress(total, label)`; where the bar goes is decided once by whoever runs the stage. Where that is
no terminal (a log of continuous integration, a pipe), a plain line comes now and then instead.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

EVERY_S = 30.0
"""Seconds between two plain lines; work that takes less has none."""
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
    """A bar of `total` units (0: nobody knows how many) of which `done` are there already; plain lines where the stream
    is no terminal."""
    stream = _stream or sys.stderr
    if not stream.isatty():
        return _Lines(
            total=total, initial=done, desc=label, file=stream, mininterval=EVERY_S, miniters=1, delay=EVERY_S
        )
    return tqdm(
        total=total, initial=done, desc=f"  {label}", file=stream, leave=False, dynamic_ncols=True, mininterval=0.2,
        unit="",
    )  # fmt: skip


class _Lines(tqdm):  # type: ignore[type-arg]  # generic in the stubs alone
    """`  questions: 1200 of 2800, 41.2/s, 00:39 left`."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line; `msg` and `pos` are for bars."""
        about = self.format_dict
        done, total = about["n"], about["total"]
        line = f"  {self.desc}: {done} of {total}" if total else f"  {self.desc}: {done}"
        rate = (done - about["initial"]) / max(about["elapsed"], 1e-9)
        if rate > 0 and done - about["initial"] >= min(10, total or 10):  # too few say nothing about the rest
            line += f", {rate:.3g}/s"
            line += f", {self.format_interval((total - done) / rate)} left" if total > done else ""
        self.fp.write(line + "\n")
        self.fp.flush()

    def close(self) -> None:
        """Nothing is left to wipe."""
        self.disable = True
