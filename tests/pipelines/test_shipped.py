import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from align.artifact import Store, rows
from align.config import shipped_root
from align.records import ImageRow
from pipelines.cli import cli
from pipelines.pipeline import load_pipeline, plan, single
from pipelines.runner import Runs, plan_lines, run
from tests.pipelines.test_runner import Lines

PIPELINES = sorted((shipped_root() / "pipelines").glob("*.yaml"))
STAGES = {"images", "generate", "filter", "sample", "score", "reject", "sft", "dpo", "evaluate"}

WHOLE = {"demo", "receipts", "llama3.2-11b-vision", "qwen2.5-vl-7b", "smolvlm"}
"""The pipelines that go through every stage."""


def cp(name: str, to: Path) -> Path:
    cli(["cp", name, str(to)], standalone_mode=False)
    return to


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


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_a_copy_of_a_shipped_pipeline_has_the_results_of_its_own_name(path: Path, tmp_path: Path) -> None:
    copied = cp(path.stem, tmp_path / "mine.yaml")
    assert load_pipeline(path, words(path, tmp_path)).name == path.stem
    assert load_pipeline(copied, words(path, tmp_path)).name == "mine"
    assert load_pipeline(copied, (*words(path, tmp_path), "name=other")).name == "other"


@pytest.mark.parametrize("name", ["llama3.2-11b-vision", "qwen2.5-vl-7b", "smolvlm"])
def test_made_questions_that_a_table_is_scored_on_have_one_right_answer_and_are_checked(name: str) -> None:
    path = shipped_root() / "pipelines" / f"{name}.yaml"
    stages = {s.name: s.stage for s in load_pipeline(path, ("images=x",)).steps}
    table = stages["table"].model_dump()
    clean = stages[table["input"]].model_dump()
    made = stages[clean["input"]].model_dump()
    checks = {f["filter"]: f for f in clean["filters"]}
    assert set(made["kinds"]) & set(checks["round_trip"]["skip_kinds"]) == set()
    assert made["split"] == "eval"
    prompts = [
        table["prompt"],
        *(
            f["prompt"]
            for s in ("clean", "heldout")
            for f in stages[s].model_dump()["filters"]
            if f["filter"] == "round_trip"
        ),
    ]
    assert prompts == ["configs/prompts/default/short.jinja"] * 3  # compared answers are asked for in one form


def test_a_student_of_ones_own_needs_no_models_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.pipeline.pin", lambda name, kind: "c" * 40)
    path, runs = shipped_root() / "pipelines" / "receipts.yaml", Runs(tmp_path / "runs")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"total": "1.00"}')
    given = words(path, tmp_path)
    lines = plan_lines(load_pipeline(path, given), runs)
    assert next(line for line in lines if line.startswith("models ")).split()[1:3] == ["will", "run:"]
    other = plan_lines(load_pipeline(path, (*given, "student=org/name")), runs)
    assert [line for line in other if "models" in line] == ["models      left out: no stage refers to it"]
    assert len(other) == len(lines)
    half = load_pipeline(path, (*given, "student=org/name", "table.models.base.model=models/student"))
    assert half.steps[0].name == "models"
    assert half.unused == ()


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


@pytest.mark.parametrize("root", ["runs", "."])
def test_images_where_the_runs_are_kept_too(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cd photos; vlm-align images source=.`: what the run writes there is none of the photos."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        Image.new("RGB", (20, 20), (50 * i, 0, 0)).save(f"{i}.png")
        Path(f"{i}.json").write_text(f'{{"total": "{i}"}}')
    pipeline = single("images", ("source=.", "fields=."))
    (made,) = run(pipeline, Runs(Path(root)), Lines()).values()
    assert made.manifest["counts"]["out"] == {"images": 3}
    assert made.manifest["counts"]["dropped"] == {"not an image": 3}
    assert sorted(row.text_form or "" for row in rows(made.path / "images", ImageRow)) == [
        f'{{"total": "{i}"}}' for i in range(3)
    ]
    assert plan_lines(pipeline, Runs(Path(root))) == ["images  hit"]
