"""What a person sees: one tidy line a stage on the terminal, everything else in a log file.

While a stage runs, file descriptors 1 and 2 point at its log, so that the chatter of engines, of their child
processes and of native code ends up there too; progress bars and the closing line go to the real terminal.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from align.progress import progress_to


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send stdout and stderr, child processes included, to the end of `log`; bars go to the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("a", buffering=1) as file, os.fdopen(os.dup(2), "w") as terminal, progress_to(terminal):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, before in zip((1, 2), saved, strict=True):
                os.dup2(before, descriptor)
                os.close(before)


def counts_text(counts: Mapping[str, Any]) -> str:
    """`540 in, 482 out, 58 dropped (length 12, duplicate 46)`; outputs by port where there are several."""
    out: Mapping[str, int] = counts["out"]
    dropped: Mapping[str, int] = counts["dropped"]
    parts = [f"{counts['in']} in"] if counts["in"] else []
    if len(out) == 1:
        parts += [f"{n} out" for n in out.values()]
    elif out:
        parts.append(" + ".join(f"{n} {port}" for port, n in out.items()) + " out")
    if dropped:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(dropped.items(), key=lambda d: -d[1]))
        parts.append(f"{sum(dropped.values())} dropped ({reasons})")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`3.2 s` or `2 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
