"""kill -9 in the middle of stages, then the same command: the rows and weights of a run that nobody interrupted."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tiny import tiny_mllama

PIPELINE = """
name: tiny
stages:
  images: {{stage: images, source: {images}, fields: {fields}, split: 0.4}}
  questions: {{stage: generate, mode: fields, images: images, kinds: [read, yesno, unanswerable], shard: 4}}
  candidates:
    stage: sample
    input: questions
    shard: 3
    samplers:
      - {{name: m, engine: {{engine: transformers, model: {model}}}, n: 3, temperatures: [0.7, 1.3], max_tokens: 8}}
  sft: {{stage: sft, input: questions, model: {model}, batch_size: 2, epochs: 2, save_steps: 2}}
  heldout: {{stage: generate, mode: fields, images: images, kinds: [read, yesno, unanswerable], split: eval}}
  table:
    stage: evaluate
    input: heldout
    max_tokens: 8
    shard: 4
    models:
      base: {{engine: transformers, model: {model}}}
      sft: {{engine: transformers, model: sft}}
"""
STEPS = ("images", "questions", "candidates", "sft", "heldout", "table")


@pytest.mark.slow
def test_killed_in_the_middle_of_its_stages_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(pipeline, whole).wait() == 0

    for in_the_middle in (
        lambda: len(found(killed, "sample-*.partial/shards/part-*.json")) >= 2,
        lambda: bool(found(killed, "sft-*.partial/checkpoints/*/complete.json")),
        lambda: len(found(killed, "evaluate-*.partial/shards/part-*.json")) >= 3,
    ):
        kill_when(in_the_middle, start(pipeline, killed))
        assert found(killed, "*.partial")  # it was not done
    assert start(pipeline, killed).wait() == 0

    for step in STEPS:
        assert content(killed / "tiny" / step) == content(whole / "tiny" / step), step
    assert content(whole / "tiny" / "table")["predictions"]
    loaded = json.loads((whole / "tiny" / "table" / "artifact.json").read_text())["models"]
    assert [(Path(m["model"]).name, m["dtype"], m["device"]) for m in loaded] == 2 * [("model", "float32", "cpu")]


def write_pipeline(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "fields").mkdir()
    for i in range(10):
        Image.new("RGB", (32, 32), (25 * i, 255 - 20 * i, 40)).save(folder / "images" / f"{i}.png")
        fields = {"company": f"Shop {i}", "total": f"{i + 1}.50", "date": f"2020-01-{i + 10}"}
        (folder / "fields" / f"{i}.json").write_text(json.dumps(fields))
    places = {name: folder / name for name in ("images", "fields")}
    path = folder / "tiny.yaml"
    path.write_text(PIPELINE.format(**places, model=tiny_mllama(folder / "model")))
    return path


def start(pipeline: Path, runs: Path) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-c",
        "from pipelines.cli import main; main()",
        "run",
        str(pipeline),
        "--runs",
        str(runs),
    ]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"})


def kill_when(reached: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    while not reached():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()


def found(runs: Path, pattern: str) -> list[Path]:
    return list((runs / "store" / "artifacts").glob(pattern))


def content(artifact: Path) -> dict[str, Any]:
    """Every row by port, every other file by its bytes; of JSON what is no matter of time."""
    ports: dict[str, Any] = {}
    for path in sorted(p for p in artifact.resolve().rglob("*") if p.is_file()):
        name = str(path.relative_to(artifact.resolve()))
        if path.suffix == ".parquet":
            ports.setdefault(path.parent.name, []).extend(pq.read_table(path).to_pylist())
        elif name == "artifact.json":
            ports[name] = json.loads(path.read_text())["counts"]
        elif name == "metrics.json":
            ports[name] = untimed(json.loads(path.read_text()))
        else:
            ports[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return ports


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        # what is said about the cache of features names times and the free disk
        return {key: untimed(inner) for key, inner in value.items() if "second" not in key and key != "vision"}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value
