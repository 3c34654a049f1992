"""Runs a command for as long as the process that asked for it lives.

The asker starts this file with a pipe as stdin. When the pipe closes, because the asker is done or because it was
killed in any way, the command's whole process group is stopped: politely, then by force. Standard library alone.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 15.0


def main(command: list[str]) -> int:
    """Run `command` until it ends or stdin closes; returns its exit code, 128 + n where signal n ended it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # what the asker handed over beside stdin, stdout and stderr is the command's
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=False)
    try:
        while child.poll() is None:
            ready, _, _ = select.select([0], [], [], 0.2)
            if ready and not os.read(0, 1):
                break
    finally:
        stop(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def stop(child: "subprocess.Popen[bytes]") -> None:
    """End the child and all processes of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
