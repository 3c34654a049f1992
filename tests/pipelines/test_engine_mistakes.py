"""What a user can get wrong about an engine is said in one line, with exit code 2, before any model is loaded."""

import re
from pathlib import Path

import pytest

from align.artifact import Store, begin, commit
from align.config import Source, build
from align.engine import Server
from align.errors import UserError
from align.records import QA, Candidate, ImageRow
from pipelines.cli import _exit_code, cli

ENGINES = {
    "{engine: vlm, model: x/y}": ".engine: 'vlm' is not known here; did you mean 'vllm'?",
    "{engine: vllm, model: /nowhere}": ".model: no stage above, folder or hub id (org/name) is called '/nowhere'",
    "{engine: transformers, model: HERE}": "HERE: no config.json or adapter_config.json",
    "{engine: transformers}": ".model: this key is required",
    "{engine: vllm, modle: x/y}": ".modle: unknown key; did you mean 'model'?",
    "{engine: server, model: m, base_url: 'localhost:9'}": ".base_url: a URL like http://127.0.0.1:8000/v1",
    "{engine: server, model: m, base_url: 'http://127.0.0.1:9', api_key_env: NOPE_KEY}": "variable NOPE_KEY is not set",
}
STAGES = {
    "generate": "images={rows} mode=image teacher={engine}",
    "sample": "input={rows} samplers=[{{name:•a,•n:•1,•engine:•{engine}}}]",
    "filter": "input={rows} filters=[{{filter:•blind,•engine:•{engine}}}]",
    "score": "input={rows} reward={{reward:•judge,•engine:•{engine}}}",
    "evaluate": "input={rows} models={{base:•{engine}}}",
}
ROWS = {"generate": ("images", "images", ImageRow), "score": ("sample", "candidates", Candidate)}
URL = "base_url: a URL like http://127.0.0.1:8000/v1 is expected, not"
QUESTIONS = ("generate", "questions", QA)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_mistake_about_an_engine_is_one_line(
    stage: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("align.models.load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr("align.engines.vllm.VLLMEngine.__init__", lambda *_: pytest.fail("vLLM was started"))
    store = Store(tmp_path / "runs" / "store")
    made_by, port, row_type = ROWS.get(stage, QUESTIONS)
    with begin(store, made_by, "0" * 64) as out:
        out.write(port, row_type, [])
        rows = commit(out, {"stage": made_by, "key": "0" * 64}, {}).path / port
    given = STAGES[stage].format(rows=rows, engine=engine.replace("HERE", str(tmp_path)))
    words = [word.replace("•", " ") for word in given.replace(": ", ":•").replace(", ", ",•").split(" ")]
    code = _exit_code(lambda: cli([stage, *words, "--runs", str(tmp_path / "runs")], standalone_mode=False))
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("error: ")
    assert ENGINES[engine].replace("HERE", str(tmp_path)) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000", "ftp://h", "http://", "http://h:99999", "http://h:abc", "http://h:0/v1", "http://h:-1",
        "http://[::1", "http://my host/v1", "http://h/v1 ", "http://h/openai?api-version=1", "http://h/v1#x",
    ],
)  # fmt: skip
def test_a_url_that_no_request_can_go_to_is_one_line_before_anything_runs(url: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{URL} {url!r}")) as raised:
        build(Server, {"engine": "server", "model": "m", "base_url": url}, Source("f.yaml"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://h", "http://[::1]:8000", "https://u:p@h.org:65535/a/b/"]
)
def test_a_url_is_taken_as_it_is(url: str) -> None:
    assert build(Server, {"engine": "server", "model": "m", "base_url": url}, Source("f.yaml")).base_url == url
