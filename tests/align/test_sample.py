import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align.artifact import Artifact, Store, begin, commit, rows
from align.config import Source, build
from align.engine import EngineDied, Reply, Request
from align.errors import UserError
from align.records import QA, Candidate, Message, text_of
from align.sample import Sample, Sampler, drawn, references, requests_of
from tests.fake_server import Fake
from tests.tiny import tiny_mllama


def question(number: int, text: str = "", images: Sequence[str] = (), answer: str = "four") -> QA:
    return QA(
        id=f"q{number}",
        images=list(images),
        prompt=[Message(role="user", content=text or f"how many {number}")],
        completion=[Message(role="assistant", content=answer)] if answer else [],
        image_id=f"i{number % 3}",
        kind="count",
        split="train",
    )


def sampler(**more: Any) -> Sampler:
    engine = {"engine": "server", "model": "m", "base_url": "http://127.0.0.1:1", "retries": 0}
    return Sampler.model_validate({"name": "teacher", "engine": engine, "n": 3, **more})


class Echo:
    """An engine that answers with what it was asked, or fails as the question says."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [self.reply(r) for r in requests[::-1]]  # the order of replies must not matter

    def reply(self, request: Request) -> Reply:
        asked = text_of(request.messages)
        if "fail" in asked and request.seed % 2:
            return Reply(request.id, error="400: no")
        blank = "empty" in asked and request.sampling.temperature > 0.5
        texts = ["  " if blank else f" {asked} {request.seed + i}\n" for i in range(request.n)]
        return Reply(request.id, texts, ["length" if "long" in asked else "stop"] * request.n)


def test_every_pair_of_temperature_and_system_prompt_comes_up() -> None:
    for temperatures, systems in (([0.1, 0.9], ["", "a"]), ([0.1, 0.5, 0.9], ["a", "b"]), ([1.0], ["a", "b", "c"])):
        count = len(temperatures) * len(systems)
        pairs = sampler(n=count, temperatures=temperatures, systems=systems).draws()
        assert len(set(pairs)) == count
        assert sampler(n=count - 1, temperatures=temperatures, systems=systems).draws() == pairs[:-1]


def test_candidates_that_differ_by_their_seed_alone_are_one_request() -> None:
    two = sampler(n=5, temperatures=[0.2, 1.0], systems=["", "Be brief."])
    assert two.groups() == {(0.2, ""): [0, 4], (1.0, "Be brief."): [1], (0.2, "Be brief."): [2], (1.0, ""): [3]}
    requests = requests_of(two, 0, question(1))
    assert [(r.n, r.sampling.temperature, len(r.messages)) for r in requests] == [
        (2, 0.2, 1), (1, 1.0, 2), (1, 0.2, 2), (1, 1.0, 1)
    ]  # fmt: skip
    found, _ = drawn(two, 0, [question(1)], Echo())
    assert [(c.temperature, c.system) for c in found] == two.draws()
    assert [text_of(c.completion) for c in found] == [f"how many 1 {c.seed}" for c in found]


def test_seeds_differ_by_question_sampler_and_index_and_stay_when_n_grows() -> None:
    def seeds(one: Sampler, seed: int, number: int) -> dict[str, int]:
        return {c.id: c.seed for c in drawn(one, seed, [question(number)], Echo())[0]}

    hot = [0.5, 1.0]
    few, more = sampler(n=3, temperatures=hot), sampler(n=6, temperatures=hot)
    by_few = seeds(few, 0, 1)
    assert by_few.items() <= seeds(more, 0, 1).items()
    others = [seeds(few, 0, 2), seeds(sampler(name="b", temperatures=hot), 0, 1), seeds(few, 1, 1)]
    found = [seed for one in (by_few, *others) for seed in one.values()]
    assert len(set(found)) == len(found) == 12


def test_the_model_is_told_what_the_row_does_not_keep(tmp_path: Path) -> None:
    template = tmp_path / "ask.jinja"
    template.write_text("Look closely. {{ question }}")
    told = sampler(n=2, systems=["", "Be brief."], prompt=str(template))
    first, second = requests_of(told, 0, question(1, "how many?"))
    assert [(m.role, m.content) for m in first.messages] == [("user", "Look closely. how many?")]
    assert (second.messages[0].role, second.messages[0].content) == ("system", "Be brief.")
    found, _ = drawn(told, 0, [question(1, "how many?")], Echo())
    assert [(text_of(c.prompt), len(c.prompt), c.system) for c in found] == [
        ("how many?", 1, ""),
        ("how many?", 1, "Be brief."),
    ]


def test_failed_questions_and_empty_answers_are_set_aside() -> None:
    asked = [question(1, "fail"), question(2, "empty"), question(3, "long")]
    found, aside = drawn(sampler(temperatures=[0.2, 0.8, 0.4]), 0, asked, Echo())
    assert Counter(c.question_id for c in found) == {"q2": 2, "q3": 3}
    assert [(d.id, d.reason) for d in aside if d.reason == "no answer"] == [("q1", "no answer")]
    assert [d.reason for d in aside].count("empty") == 1
    assert "teacher: 400: no" in aside[0].detail
    long = [c for c in found if c.question_id == "q3"]
    assert all(c.finish == "length" for c in long)
    assert [text_of(c.completion) for c in long] == [f"long {c.seed}" for c in long]  # each its own seed's, stripped
    assert [c.temperature for c in long] == [0.2, 0.8, 0.4]


def test_a_question_the_engine_forgets_is_set_aside() -> None:
    class Forgetful(Echo):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            return super().generate(requests[1:])

    found, aside = drawn(sampler(), 0, [question(1), question(2)], Forgetful())
    assert {c.question_id for c in found} == {"q2"}
    assert [d.id for d in aside] == ["q1"]


def test_the_questions_own_answer_as_a_candidate() -> None:
    found, aside = references([question(1), question(2, answer="")])
    assert [(c.sampler, text_of(c.completion), c.reference) for c in found] == [("reference", "four", "four")]
    assert [d.reason for d in aside] == ["empty"]


# Whole runs


def questions(store: Store, count: int) -> Path:
    images = []
    for i in range(3):
        path = store.root / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (80 * i, 10, 200)).save(path)
        images.append(str(store.add_blob(path.read_bytes(), ".png")))
    with begin(store, "questions", "k") as out:
        out.write("kept", QA, [question(i, images=[images[i % 3]]) for i in range(count)])
        return commit(out, {}, {}).path / "kept"


def run(stage: Sample, store: Store, key: str) -> Artifact:
    with begin(store, "sample", key) as out:
        metrics = stage.run(out)
        return commit(out, {}, metrics)


def stage_of(port: Path, samplers: list[dict[str, Any]], **more: Any) -> Sample:
    return build(Sample, {"input": str(port), "samplers": samplers, "shard": 4, **more}, Source("test"))


def found_in(artifact: Artifact) -> list[Candidate]:
    return list(rows(artifact.path / "candidates", Candidate))


def remote(fake: Fake, name: str, n: int = 2) -> dict[str, Any]:
    return {"name": name, "n": n, "engine": {"engine": "server", "model": "m", "base_url": fake.url, "retries": 0}}


def test_mllama_draws_the_same_candidates_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    port = questions(store, 10)
    model = str(tiny_mllama(tmp_path / "model"))
    engine = {"engine": "transformers", "model": model, "batch_size": 7}
    student = {"name": "student", "engine": engine, "n": 3, "temperatures": [0.7, 1.0], "max_tokens": 6}
    stage = stage_of(port, [student], keep_reference=True)
    whole = found_in(run(stage, store, "whole"))
    assert Counter(c.sampler for c in whole) == {"reference": 10, "student": 30}
    assert len({c.id for c in whole}) == 40
    assert len({text_of(c.completion) for c in whole if c.sampler == "student"}) > 20

    calls = 0
    real = "align.engines.transformers.TransformersEngine.generate"
    from align.engines.transformers import TransformersEngine

    genuine = TransformersEngine.generate

    def dying(self: TransformersEngine, requests: Sequence[Request]) -> list[Reply]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise EngineDied("gone")
        return genuine(self, requests)

    monkeypatch.setattr(real, dying)
    with pytest.raises(EngineDied):
        run(stage, store, "stopped")
    resumed = run(stage.model_copy(update={"shard": 5}), store, "stopped")  # the shard's size may have changed
    assert found_in(resumed) == whole
    assert resumed.manifest["counts"] == {"in": 10, "out": {"candidates": 40}, "dropped": {}}
    assert resumed.metrics["student"]["candidates"] == 30


def test_samplers_come_up_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import contextmanager

    up: list[str] = []
    most = 0

    @contextmanager
    def opened(config: Any) -> Any:
        nonlocal most
        up.append(config.model)
        most = max(most, len(up))
        yield Echo()
        up.remove(config.model)

    monkeypatch.setattr("align.sample.open_engine", opened)
    store = Store(tmp_path)
    samplers = [{"name": n, "n": 2, "engine": {"engine": "server", "model": n, "base_url": "http://h"}} for n in "abc"]
    artifact = run(stage_of(questions(store, 6), samplers), store, "k")
    assert (most, up) == (1, [])
    assert Counter(c.sampler for c in found_in(artifact)) == dict.fromkeys("abc", 12)


def test_a_dead_server_keeps_what_was_done_and_the_next_run_asks_for_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    port = questions(store, 12)
    with Fake() as fake:
        whole = found_in(run(stage_of(port, [remote(fake, "teacher")]), store, "whole"))
        number = fake.server_port
    with Fake(number) as fake:
        stage = stage_of(port, [remote(fake, "teacher")])
        fake.dies_after = 7
        with pytest.raises(EngineDied, match="nothing listens"):
            run(stage, store, "k")
    with Fake(number) as fake:
        assert found_in(run(stage, store, "k")) == whole
        assert 0 < sum(fake.attempts.values()) < 12


SCRIPT = """
import sys
from pathlib import Path
from align.artifact import Store, begin, commit
from align.sample import Sample
store = Store(Path(sys.argv[1]))
stage = Sample.model_validate_json(sys.argv[2])
with begin(store, "sample", "k") as out:
    commit(out, {}, stage.run(out))
"""


def test_killed_in_the_middle_the_same_command_continues(tmp_path: Path) -> None:
    store = Store(tmp_path)
    port = questions(store, 20)
    with Fake() as fake:
        samplers = [remote(fake, "a"), remote(fake, "b")]
        stage = stage_of(port, samplers)
        whole = found_in(run(stage, store, "whole"))
        fake.attempts.clear()
        fake.delay = 0.05
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), stage.model_dump_json()]
        first = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
        while sum(fake.attempts.values()) < 25 and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        before = sum(fake.attempts.values())
        assert len(list((store.artifact("sample", "k").with_suffix(".partial") / "candidates").glob("part-*"))) >= 5
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
        assert found_in(Artifact(store.artifact("sample", "k"))) == whole
        assert sum(fake.attempts.values()) - before < 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"samplers": []}, "at least one"),
        ({"samplers": ["a", "a"]}, "'a' is taken twice"),
        ({"samplers": ["reference"]}, "'reference' is taken"),
    ],
)
def test_mistakes_are_found_before_the_run(change: dict[str, Any], says: str) -> None:
    engine = {"engine": "server", "model": "m", "base_url": "http://h"}
    named = [{"name": name, "n": 1, "engine": engine} for name in change["samplers"]]
    with pytest.raises(UserError, match=says):
        stage_of(Path("in"), named).check()


@pytest.mark.parametrize("text", ["Answer.", "{{ queston }}", "{% if %}"])
def test_a_template_must_show_the_question(tmp_path: Path, text: str) -> None:
    template = tmp_path / "ask.jinja"
    template.write_text(text)
    engine = {"engine": "server", "model": "m", "base_url": "http://h"}
    stage = stage_of(Path("in"), [{"name": "a", "n": 1, "engine": engine, "prompt": str(template)}])
    with pytest.raises(UserError, match=r"ask\.jinja"):
        stage.check()


@pytest.mark.parametrize(
    ("key", "value"), [("n", 0), ("temperatures", []), ("temperatures", [-1]), ("top_p", 0), ("systems", [])]
)
def test_impossible_numbers_are_named(key: str, value: Any) -> None:
    engine = {"engine": "server", "model": "m", "base_url": "http://h"}
    with pytest.raises(UserError, match=rf"samplers\[0\]\.{key}"):
        stage_of(Path("in"), [{"name": "a", "n": 1, "engine": engine, key: value}])


def test_a_missing_key_is_found_before_any_model_comes_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    engine = {"engine": "server", "model": "m", "base_url": "http://h", "api_key_env": "NO_SUCH_KEY"}
    late = {"name": "b", "n": 1, "engine": engine}
    missing = {"name": "a", "n": 1, "engine": {"engine": "transformers", "model": "/nowhere"}}
    with pytest.raises(UserError, match=r"samplers\[1\]: .*NO_SUCH_KEY is not set"):
        stage_of(questions(store, 1), [missing, late]).check()
