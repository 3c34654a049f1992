import json
from pathlib import Path

import pytest

from align.adapter import Preset
from align.models import load
from pipelines import cli as module
from pipelines.cli import cli
from pipelines.commands_merge import model_folder
from tests.align.test_export import adapter
from tests.tiny import tiny_idefics3


def call(*words: str) -> int:
    return module._exit_code(lambda: cli(list(words), standalone_mode=False))


def test_merge_by_folder_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_idefics3(tmp_path / "base")
    names = [adapter(base, tmp_path / f"a{n}", Preset(rank=4), seed=n) for n in range(2)]
    assert call("merge", *names, "out=merged", "weights=[0.5,0.5]") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("merged: idefics3, float32\nlanguage model equal to the base's: True\n")
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert report["models"] == names
    assert not (tmp_path / "merged.partial").exists()
    assert call("merge", names[0], "out=merged") == 2
    assert capsys.readouterr().err == "error: merged: is there already; nothing was overwritten\n"

    # as a stage: its model is found by RUN/stage from then on, by this command too
    assert call("merge", f"models=[{names[0]}]") == 0
    folder = model_folder("single/merge", tmp_path / "runs")
    assert load(str(folder))[0].config.model_type == "idefics3"
    assert call("merge", "single/merge", "out=again") == 2
    assert "so there is no adapter to merge" in capsys.readouterr().err
    assert not (tmp_path / "again.partial").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out=x"], "nowhere: no such run in runs"),
        (["nowhere"], "out=FOLDER is required: where the merged model is to be written"),
        (["out=x"], "out= goes with the models before it: vlm-align merge MODEL... out=FOLDER"),
        (["{base}", "out=x"], "{base}: no adapter_config.json, so there is no adapter to merge"),
        (["{a}", "out=x", "weigths=[1]"], "vlm-align merge: weigths: unknown key; did you mean 'weights'?"),
        (["{a}", "{a}", "out=x", "weights=[1]"], "weights: 1 for 2 models; give one each"),
        (["models=[{a}]", "weights=[2.0]"], "vlm-align merge: weights: shares above 0 with sum 1 are expected, not 2"),
        (
            ["models=[nowhere]"],
            "vlm-align merge: models[0]: no stage above, folder or hub id (org/name) is called 'nowhere'",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_loads(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tiny_idefics3(tmp_path / "base")
    names = {"base": str(base), "a": adapter(base, tmp_path / "a", Preset(rank=4), seed=0)}
    capsys.readouterr()
    assert call("merge", *(word.format(**names) for word in words)) == 2
    assert capsys.readouterr().err == f"error: {message.format(**names)}\n"
