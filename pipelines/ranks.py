"""One program in the processes of a launcher: rank 0 runs it, the others help where a stage wants all of them.

In between they ask a store for their next task: no collective operation waits, and so none runs into its time limit
while rank 0 samples for hours. A task is a stage with its references resolved, the folder that it fills, or the end.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import ranks
from align.artifact import Out, Store
from align.errors import UserError
from align.progress import progress_to
from align.stage import Stage
from pipelines.catalog import stage_class
from pipelines.console import output_to

if TYPE_CHECKING:
    from torch.distributed import Store as Common

PAUSE_S = 0.1
"""Seconds between two looks for a task."""
GRACE_S = 60.0
"""How long a rank that failed waits for rank 0 to say that it has ended too, with the same words as a rule."""
LEAVE_S = 10.0
"""How long rank 0 waits for the others to end as it does, before the launcher ends them."""
_common: "Common | None" = None
_posted = 0


def in_all(program: Callable[[], int]) -> int:
    """The exit code of `program`, which rank 0 runs; it is that of all ranks."""
    ranks.leave_launcher()
    if ranks.world() == 1:
        return program()
    if ranks.rank() > 0:
        return _follow()
    code = 1
    try:
        code = program()
    except _Failed as failed:
        code = failed.code
    finally:
        _end(code)
    return code


class _Failed(BaseException):
    """Another rank has failed and said why; what this one sees of it is no news."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def called(stage: Stage, out: Out, log: Path) -> Iterator[None]:
    """Inside, `stage` runs in all ranks if it wants them. `log` is rank 0's; the others have theirs beside it."""
    if ranks.world() == 1 or not stage.ALL_RANKS:
        yield
        _free_gpu()
        return
    task = {"stage": stage.NAME, "config": stage.model_dump(mode="json"), "out": str(out.path.resolve())}
    store = _store()
    _post(store, {**task, "root": str(out.store.root), "log": str(log.resolve())})
    with ranks.together(store):
        try:
            yield
        except Exception:
            if store.check(["failed"]):
                raise _Failed(int(store.get("failed"))) from None
            raise
    _free_gpu()


def _store() -> "Common":
    """What all ranks can read and write, on the launcher's side or, where it has none, in rank 0."""
    global _common
    if _common is None:
        from torch.distributed import rendezvous

        with ranks.told():
            _common, _, _ = next(rendezvous("env://", ranks.rank(), ranks.world(), timeout=ranks.PATIENCE))
    return _common


def _post(store: "Common", task: dict[str, Any]) -> None:
    global _posted
    store.set(f"task {_posted}", json.dumps(task))
    _posted += 1


def _end(code: int) -> None:
    """Have the others end with this code too."""
    with suppress(RuntimeError, KeyboardInterrupt):  # the launcher has ended, or ends this rank for another one's sake
        store = _store()
        _post(store, {"end": code})
        until = time.monotonic() + (0 if code == 130 else LEAVE_S)  # interrupted, as are the others
        gone = [f"gone {rank}" for rank in range(1, ranks.world())]
        while not store.check(gone) and time.monotonic() < until:
            time.sleep(PAUSE_S)
    _leave(code)


def _leave(code: int) -> None:
    """Nothing changes this process's exit code any more."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    from torch import distributed

    if code == 0 and distributed.is_initialized():  # else a rank may be waiting for another in it
        gc.collect()  # what still holds the group: gloo's threads must not outlive the interpreter, which aborts then
        distributed.destroy_process_group()


def _free_gpu() -> None:
    """Give back what a stage's models have left in this process: the next one's engine may be a process of its own, on
    the same GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _follow() -> int:
    """Do what rank 0 wants until it ends. Returns the exit code."""
    code = 1
    with suppress(RuntimeError):  # the store is gone, and rank 0 or the launcher with it
        store = _store()
        try:
            code = _tasks(store)
        except KeyboardInterrupt:
            code = 130
        store.set(f"gone {ranks.rank()}", "")
    _leave(code)
    return code


def _tasks(store: "Common") -> int:
    number = 0
    while True:
        while not store.check([f"task {number}"]):
            time.sleep(PAUSE_S)
        task = json.loads(store.get(f"task {number}"))
        number += 1
        code = task["end"] if "end" in task else _help(store, task, f"task {number}")
        if code is not None:
            return int(code)


def _help(store: "Common", task: dict[str, Any], following: str) -> int | None:
    """Do a task; the exit code where it fails. What rank 0 says about it too is not said twice."""
    log = Path(task["log"])
    log = log.with_name(f"{log.stem}.rank{ranks.rank()}{log.suffix}")
    try:
        stage = stage_class(task["stage"]).model_validate(task["config"])
        out = Out(Path(task["out"]), Store(Path(task["root"])))
        with output_to(log), Path(os.devnull).open("w") as nowhere, progress_to(nowhere), ranks.together(store):
            stage.run(out)
        _free_gpu()
        return None
    except Exception as error:
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exc(file=file)
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        text = f"{kind}{(str(error).strip().splitlines() or [''])[0]}"
        code = 2 if isinstance(error, UserError) else 1
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until:
        if store.check([following]):
            return int(json.loads(store.get(following))["end"])
        time.sleep(PAUSE_S)
    store.set("failed", str(code))
    print(f"error: {Path(task['log']).stem}: rank {ranks.rank()}: {text}; log: {log}", file=sys.stderr, flush=True)
    return code
