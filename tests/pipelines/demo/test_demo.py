"""The demo's pipeline as it ships, with fewer charts and models trained for less: through every stage, then a hit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "import sys; from pipelines.cli import main; main()"
SMALL = ("charts.train=40", "charts.evaluation=6", "models.effort=0.15")


@pytest.mark.slow
@pytest.mark.vllm
def test_the_demo_goes_through_every_stage_and_a_change_rebuilds_what_follows(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = vlm_align("run", "demo", *SMALL, "--runs", str(runs))
    for step in ("sft", "dpo"):
        proof = json.loads((runs / "demo" / step / "proof.json").read_text())
        found = [*proof["language_tensors"].values(), proof["text_logits"]]
        assert len(found) > 40
        assert all(one["before"] == one["after"] for one in found)
    steps = [line.split()[0] for line in first if f"{runs}/demo/" in line and not line.startswith("logs")]

    again = vlm_align("run", "demo", *SMALL, "--runs", str(runs))
    assert [line.split()[0] for line in again if "  hit  " in line] == steps
    table = again[len(steps) :]
    assert table[0].startswith("42 questions on 6 held-out images")
    assert first[-len(table) :] == table

    changed = vlm_align("plan", "demo", *SMALL, "scored.reward.answer_after=So", "--runs", str(runs))
    assert [line.split()[0] for line in changed if line.endswith("  hit")] == steps[: steps.index("scored")]
    assert "answer_after" in next(line for line in changed if line.startswith("scored "))


def vlm_align(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "-P", "-c", RUN, *words], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
