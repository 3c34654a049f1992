"""The demo's stages: known to the catalogue, and leaving what they promise in their folders."""

from pathlib import Path

import pytest

from align.artifact import Out, Store
from pipelines.catalog import stage_class
from pipelines.demo.stages import BuildStudent, BuildTeacher, DrawCharts


@pytest.mark.parametrize("stage", [DrawCharts, BuildTeacher, BuildStudent])
def test_the_catalogue_finds_each_stage_by_its_name(stage: type[DrawCharts]) -> None:
    assert stage_class(stage.NAME) is stage


def test_charts_are_drawn_into_the_promised_folders(tmp_path: Path) -> None:
    metrics = DrawCharts(train=2, evaluation=1, seed=4).run(Out(tmp_path / "out", Store(tmp_path)))
    assert metrics["questions"] == 7
    for port in DrawCharts.OUTPUTS:
        assert any((tmp_path / "out" / port).iterdir()), port
    assert len(list((tmp_path / "out" / "images" / "train").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [BuildTeacher(steps=1), BuildStudent(text_steps=1, noisy_steps=1, clean_steps=1)],
    ids=["teacher", "student"],
)
def test_a_build_leaves_a_model_and_no_checkpoints(
    tmp_path: Path, stage: BuildTeacher | BuildStudent
) -> None:
    out = Out(tmp_path / "out", Store(tmp_path))
    metrics = stage.run(out)
    assert all(value > 0 for value in metrics.values())
    model = tmp_path / "out" / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (model / name).is_file(), name
    assert not (model / "checkpoints").exists()
