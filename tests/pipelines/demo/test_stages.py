import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.artifact import Out, Store, begin, commit
from align.config import shipped
from align.errors import UserError
from pipelines.demo.build import build_all
from pipelines.demo.prompts import FOLDER
from pipelines.demo.stages import BuildLanguageReward, BuildModels, DrawCharts
from pipelines.pipeline import plan, single


def test_the_charts_lie_in_the_ports_that_the_stage_names(tmp_path: Path) -> None:
    out = Out(tmp_path / "charts", Store(tmp_path / "store"))
    out.path.mkdir()
    stage = DrawCharts(train=3, evaluation=2)
    assert stage.run(out)["questions"] == len((out.path / "questions.jsonl").read_text().splitlines())
    for port in ("images", "tables"):
        assert len(list((out.path / port).glob("*/*"))) == 5
    assert out.counts()["out"] == {"images": 5}


def test_the_prompts_of_the_models_are_in_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def key(*words: str) -> str:
        (step,) = plan(single("build-models", words), Store(tmp_path / "store"))
        return step.key

    before = key()
    folder = shutil.copytree(shipped(FOLDER), tmp_path / FOLDER)
    assert key() == before
    (folder / "judge.jinja").write_text("How good is {{ answer }} to {{ question }}?")
    assert key() != before  # a copy in the working folder wins
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "judge.jinja").write_text("{{ asnwer }}")
    with pytest.raises(UserError, match=r"build-models: prompts: .*judge\.jinja: 'asnwer' is undefined"):
        key("prompts=other")


@pytest.mark.slow
def test_both_models_are_built_and_no_checkpoints_stay(tmp_path: Path) -> None:
    with begin(Store(tmp_path / "store"), "build-models", "k") as out:
        metrics = BuildModels(effort=0.001).run(out)
        for model in ("teacher", "student"):  # a kill here trains nothing again
            assert list((out.path / model / "checkpoints").glob("*.pt"))
        made = commit(out, {}, metrics).path
    assert set(metrics) == {"teacher", "student"}
    for model in ("teacher", "student"):
        config = json.loads((made / model / "config.json").read_text())
        assert config["model_type"] == {"teacher": "idefics3", "student": "mllama"}[model]
        assert (made / model / "model.safetensors").is_file()
        assert not (made / model / "checkpoints").exists()


def test_a_language_reward_is_built_from_an_mllama_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="is no whole Mllama model"):
        BuildLanguageReward(student=str(tmp_path)).check()
    (tmp_path / "config.json").write_text('{"model_type": "mllama"}')
    BuildLanguageReward(student=str(tmp_path)).check()


def test_a_build_that_fails_says_which_and_stops_the_other(tmp_path: Path) -> None:
    (tmp_path / "teacher").write_text("a file where the folder should be")
    folders = {name: tmp_path / name for name in ("teacher", "student")}
    with pytest.raises(RuntimeError, match="building the teacher failed, exit code 1"):
        build_all(folders, 0, 1.0, lambda done: None)
    assert not _alive(str(tmp_path / "student"))


@pytest.mark.slow
def test_the_builders_end_with_the_one_who_asked(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from pipelines.demo.build import build_all\n"
        f"build_all({{'student': Path({str(tmp_path / 'student')!r})}}, 0, 1.0, lambda done: print('step', flush=True))"
    )
    asker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert asker.stdout is not None
    assert asker.stdout.readline() == "step\n"
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    deadline = time.monotonic() + 60
    while _alive(str(tmp_path / "student")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(str(tmp_path / "student"))


def _alive(word: str) -> bool:
    def command(process: Path) -> str:
        try:
            return (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return ""

    return any("pipelines.demo.build" in c and word in c for c in map(command, Path("/proc").glob("[0-9]*")))
