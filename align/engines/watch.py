"""Ends the children that a killed process leaves behind.

vLLM's core does not notice that the process which spawned it was killed, and would keep its memory for ever. That
process starts this file with a pipe as stdin; the children that appear below it from then on are remembered, and
ended when the pipe closes without a goodbye. psutil tells a process from a later one of the same id.
"""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_S = 1.0


def main() -> None:
    """Watch the parent until it says goodbye or is gone."""
    import psutil  # type: ignore[import-untyped]

    parent = psutil.Process(os.getppid())
    known: set[psutil.Process] = set()
    before = set(parent.children(recursive=True))
    said = b""
    while True:
        ready, _, _ = select.select([0], [], [], EVERY_S)
        if ready:
            said = os.read(0, 1)
            break
        with contextlib.suppress(psutil.Error):
            known |= set(parent.children(recursive=True)) - before
    if said:
        return
    for process in known:
        with contextlib.suppress(psutil.Error):
            process.kill()


@contextmanager
def no_orphans() -> Iterator[None]:
    """Children that start inside the block do not outlive this process, even if it is killed there."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__))], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            watcher.communicate(b".")


if __name__ == "__main__":
    main()
