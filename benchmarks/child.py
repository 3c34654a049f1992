"""What runs in a process of its own: one workload in one way. Imported ahead, so that each process begins as a copy of
one that has the libraries and has done nothing."""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.workloads import measure


def measured(pipe: Any, *given: Any) -> None:
    """Send what `measure(*given)` returns, or the traceback of its failure as text."""
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            given[3].mkdir()
            pipe.send(measure(*given))
        except Exception:
            pipe.send(traceback.format_exc())
