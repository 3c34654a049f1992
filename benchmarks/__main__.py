"""`python -m benchmarks`: every workload in every way in turn, equality first, then a table in docs/benchmarks.md.

`python -m benchmarks W1 tree` measures one of them and prints JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, get_args

WAYS = ("trl", "tuned", "tree")
TOLERANCE = 1e-5
TABLE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workload", nargs="?", help="W1 to W5b; all of them if left out")
    parser.add_argument("way", nargs="?", choices=WAYS, help="all of them in turn if left out")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps; the first is not counted")
    told = parser.parse_args()
    if told.way:
        from benchmarks.workloads import Way, measure

        assert told.way in get_args(Way)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(told.workload, told.way, told.steps, Path(folder))))
        return
    from benchmarks.workloads import WORKLOADS

    rows = []
    for name in [told.workload] if told.workload else WORKLOADS:
        found = {way: _run(name, way, told.steps) for way in WAYS}
        _demand_equality(name, found)
        rows.append(_row(name, WORKLOADS[name], found))
        print(rows[-1], flush=True)
    if not told.workload:
        _write(rows, told.steps)


def _run(name: str, way: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", name, way, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {way} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _demand_equality(name: str, found: dict[str, dict[str, Any]]) -> None:
    """The first loss and gradient norm, or every reward, are the same in all ways to 1e-5."""
    expected = found["tree"]["equal"]
    for way in WAYS:
        for key, value in found[way]["equal"].items():
            if abs(value - expected[key]) > TOLERANCE * max(1.0, abs(value)):
                raise SystemExit(f"{name}: {key} is {value} in {way} and {expected[key]} over trees")


def _row(name: str, work: Any, found: dict[str, dict[str, Any]]) -> str:
    step = {way: median(found[way]["seconds"][1:]) for way in WAYS}
    reached = [step[way] / step["tree"] for way in ("trl", "tuned")]
    peak = " / ".join(f"{found[way]['peak']:.0f}" for way in WAYS)
    cells = [
        name, work.about, *(f"{step[way]:.3f}" for way in WAYS), " / ".join(f"{r:.1f}x" for r in reached),
        " / ".join(f"{t:g}x" for t in work.target), f"{found['tree']['preparation']:.1f}", peak,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _write(rows: list[str], steps: int) -> None:
    import torch
    import transformers
    import trl

    cores = len(os.sched_getaffinity(0))
    text = f"""# Benchmarks

Made by `make bench` (`benchmarks/`): small random models, fp32, {torch.get_num_threads()} threads on {cores} cores
({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}. Every
way runs in a process of its own, one after the other; first loss and gradient norm (W5: every reward) are equal to 1e-5
in all three, or there is no table. Seconds are the median of {steps - 1} steps after the first. *TRL* is TRL as it
comes (Mllama with a collator that works), *tuned* has checkpointing off, each image processed once and only labelled
positions at the head; W5 has batched transformers in both places. Preparation (over trees: encoding, the tower once an
image, the reference) is apart. Peak is MiB of memory above the loaded model.

| | workload | TRL, s | tuned, s | trees, s | reached | target | preparation, s | peak TRL / tuned / trees |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
    TABLE.write_text(text + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
