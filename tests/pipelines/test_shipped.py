import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from align.artifact import Store
from align.config import shipped_root
from pipelines.pipeline import load_pipeline, plan
from pipelines.runner import Runs, run
from tests.pipelines.test_runner import Lines

PIPELINES = sorted((shipped_root() / "pipelines").glob("*.yaml"))
STAGES = {"images", "generate", "filter", "sample", "score", "reject", "sft", "dpo", "evaluate"}

WHOLE = {"demo", "receipts", "llama3.2-11b-vision", "qwen2.5-vl-7b", "smolvlm"}
"""The pipelines that go through every stage."""


def words(path: Path, folder: Path) -> tuple[str, ...]:
    """Values for the parameters that a shipped pipeline leaves to the user."""
    text = path.read_text()
    return tuple(f"{name}={folder}" for name in ("images", "fields") if f"  {name}: null" in text)


def test_the_pipelines_that_the_docs_name_are_there() -> None:
    assert {p.stem for p in PIPELINES} >= WHOLE


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_shipped_pipeline_plans_through_every_stage(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.pipeline.pin", lambda name, kind: "c" * 40)
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (20, 20)).save(data / "a.png")
    (data / "a.json").write_text('{"total": "1.00"}')
    pipeline = load_pipeline(path, words(path, data))
    if path.stem in WHOLE:
        assert {type(s.stage).NAME for s in pipeline.steps} >= STAGES
    steps = plan(pipeline, Store(tmp_path / "store"))
    assert len({s.key for s in steps}) == len(steps)
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# vlm-align run {path.stem}")


@pytest.mark.slow
def test_documents_go_through_every_stage_and_the_second_time_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "fields"):
        Path(folder).mkdir()
    for i in range(8):
        image = Image.new("RGB", (200, 300), "white")
        total = f"{10 + i}.{i}0"
        ImageDraw.Draw(image).text((20 + 9 * i, 30 * (i + 1)), f"SHOP {i}\nTOTAL {total}", fill="black")
        image.save(f"photos/{i}.png")
        fields = {"company": f"Shop number {i}", "date": f"0{i + 1}/02/2024", "total": total}
        Path(f"fields/{i}.json").write_text(json.dumps(fields))
    path = shipped_root() / "pipelines" / "receipts.yaml"
    given = ("images=photos", "fields=fields", "models.effort=0.002", "images.split=0.4", "per_kind=1", "max_tokens=6")
    runs, said = Runs(Path("runs")), Lines()
    made = run(load_pipeline(path, given), runs, said)
    for stage in ("sft", "dpo"):
        assert made[stage].metrics["proof"]["equal"] is True
        assert made[stage].metrics["proof"]["text_logits_equal"] is True
    counts = made["clean"].manifest["counts"]
    assert counts["in"] == counts["out"]["kept"] + sum(counts["dropped"].values())
    table = [line.split()[0] for line in said[-1].splitlines() if line]
    assert [name for name in table if name in ("base", "sft", "dpo")][:3] == ["base", "sft", "dpo"]
    again = Lines()
    run(load_pipeline(path, given), runs, again)
    assert [line.split()[:2] for line in again[: len(made)]] == [[name, "hit"] for name in made]
