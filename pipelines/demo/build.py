"""Builds one of the demo's models in a process of its own, on one thread: two such processes use two cores fully,
where one process with two threads does not.

In: on the command line, which model, the folder, the seed, the effort (a share of the default steps) and what it is
built from: the prompts, or for the language reward model the student. Out: the model's folder; on stdout `done total`
after every step and the metrics as JSON at the end. A builder whose asker is gone cannot write there and ends.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from align.engines.child import python_module
from pipelines.demo.prompts import FOLDER

MODELS = ("teacher", "student")


def main(model: str, out: str, seed: str, effort: str, source: str) -> None:
    """Build `model` ("teacher", "student" or "language-reward") from `source`."""
    Path(out).mkdir(parents=True, exist_ok=True)  # what cannot be written is found before it is trained
    import torch

    from pipelines.demo.language_reward import RewardPlan, build_language_reward
    from pipelines.demo.prompts import Prompts
    from pipelines.demo.student import StudentPlan, build_student
    from pipelines.demo.teacher import TeacherPlan, build_teacher

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    steps, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no progress

    def report(done: int, total: int) -> None:
        print(done, total, file=steps, flush=True)

    share = float(effort)
    if model == "teacher":
        plan = TeacherPlan().scaled(share)
        metrics = build_teacher(Path(out), int(seed), plan, progress=report, prompts=Prompts(source))
    elif model == "student":
        metrics = build_student(
            Path(out), int(seed), StudentPlan().scaled(share), progress=report, prompts=Prompts(source)
        )
    else:
        metrics = build_language_reward(source, Path(out), int(seed), RewardPlan().scaled(share), report)
    print(json.dumps(metrics), file=steps, flush=True)


def build_all(
    folders: dict[str, Path], seed: int, effort: float, moved: Callable[[float], None], source: str = FOLDER
) -> dict[str, dict[str, float]]:
    """Build the models from `source`, side by side; `moved` hears the share done, 0 to 1. Raises RuntimeError where one
    fails; the other one is stopped and continues from its checkpoint the next time. `checkpoints` stays in each model's
    folder: as long as the result is not visible, a model that is finished is not trained again."""
    shares = dict.fromkeys(folders, 0.0)
    metrics: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    processes: dict[str, subprocess.Popen[str]] = {}
    lock = threading.Lock()

    def listen(name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                metrics[name] = json.loads(line)
                continue
            done, total = map(int, line.split())
            with lock:
                shares[name] = done / total
                moved(sum(shares.values()) / len(shares))
        code = process.wait()
        if code != 0:
            with lock:
                failed.append(f"building the {name} failed, {_end(code)}")
            for other in processes.values():
                other.kill()

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        for name, folder in folders.items():
            command = python_module("pipelines.demo.build", name, str(folder), str(seed), str(effort), source)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            processes[name] = stack.enter_context(process)
            stack.callback(process.kill)
        listeners = [threading.Thread(target=listen, args=item) for item in processes.items()]
        for listener in listeners:
            listener.start()
        for listener in listeners:
            listener.join()
    if failed:
        raise RuntimeError(failed[0])
    return metrics


def _end(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"


if __name__ == "__main__":
    main(*sys.argv[1:])
