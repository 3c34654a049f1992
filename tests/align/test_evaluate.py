"""Evaluation against servers whose answers are known: what is asked, what counts as right, and the table."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from align import evaluate
from align.artifact import Out, Store, begin, count_rows, rows
from align.config import Source, build
from align.engine import Engine, EngineDied, open_engine
from align.errors import UserError
from align.evaluate import Evaluate, table
from align.metrics import paired
from align.records import QA, Dropped, Message, Prediction
from tests.chat_server import Answer, Asked, chat_server


def qa(number: int, **more: Any) -> QA:
    values: dict[str, Any] = {
        "id": f"q{number:02}",
        "images": [],
        "prompt": [Message(role="user", content=f"Question {number}?")],
        "completion": [Message(role="assistant", content=str(number))],
        "image_id": f"i{number // 2}",
        "kind": "read" if number % 3 else "count",
        "split": "eval",
    }
    return QA(**{**values, **more})


def right_below(limit: int, form: str = "{}") -> Callable[[Asked], Answer]:
    """A model that knows the questions whose number is below a limit, and answers no other rightly."""

    def reply(asked: Asked) -> Answer:
        found = re.search(r"Question (\d+)", asked.text)
        assert found
        return Answer(form.format(found[1] if int(found[1]) < limit else "no idea"))

    return reply


class Bench:
    """Questions in a store, models on servers of their own."""

    def __init__(self, tmp_path: Path, found: list[QA], models: dict[str, Callable[[Asked], Answer]]) -> None:
        self.store = Store(tmp_path / "store")
        with begin(self.store, "questions", "0" * 64) as out:
            out.write("questions", QA, found)
        self.source = out.path / "questions"
        self.models = models

    def stage(self, urls: dict[str, str], **more: Any) -> Evaluate:
        models = {
            name: {"engine": "server", "model": f"{name}-model", "base_url": url, "retries": 0}
            for name, url in urls.items()
        }
        return build(Evaluate, {"input": str(self.source), "models": models, **more}, Source("x"))

    def run(self, key: str = "1", **more: Any) -> tuple[Out, Any, list[Asked]]:
        with ExitStack() as stack:
            servers = {name: stack.enter_context(chat_server(reply)) for name, reply in self.models.items()}
            config = self.stage({name: s.base_url for name, s in servers.items()}, **more)
            config.check()
            with begin(self.store, "evaluate", key * 64) as out:
                metrics = config.run(out)
        return out, metrics, [a for s in servers.values() for a in s.asked]


def test_three_models(tmp_path: Path) -> None:
    models = {"base": right_below(4), "sft": right_below(16), "dpo": right_below(18)}
    found = [*(qa(i) for i in range(20)), qa(20, split="train"), qa(21, completion=[])]
    out, metrics, asked = Bench(tmp_path, found, models).run(shard=7, metrics=["exact", "anls"])
    assert [a.model for a in asked] == ["base-model"] * 20 + ["sft-model"] * 20 + ["dpo-model"] * 20
    assert (metrics["metric"], metrics["questions"], metrics["images"]) == ("exact", 20, 10)
    assert [m["exact"]["value"] for m in metrics["models"].values()] == [0.2, 0.8, 0.9]
    counts = [(k, v["questions"]) for k, v in metrics["models"]["sft"]["kinds"].items()]
    assert counts == [("count", 7), ("read", 13)]
    assert metrics["models"]["base"]["kinds"]["count"]["exact"]["value"] == pytest.approx(2 / 7)  # 0 and 3
    exact = {(d["model"], d["against"]): d for d in metrics["differences"] if d["metric"] == "exact"}
    assert set(exact) == {("sft", "base"), ("dpo", "base"), ("dpo", "sft")}
    images = [f"i{i // 2}" for i in range(20)]
    by_hand = paired([float(i < 18) for i in range(20)], [float(i < 16) for i in range(20)], images)
    assert exact["dpo", "sft"] == {"model": "dpo", "against": "sft", "metric": "exact", **by_hand.as_dict()}
    assert exact["sft", "base"]["p"] == pytest.approx(2 / 2**6)  # six images changed, all for the better
    aside = {d.id: d.reason for d in rows(out.path / "dropped", Dropped)}
    assert aside == {"q20": "train split", "q21": "no question or no answer"}
    assert out.counts()["in"] == 62
    assert out.counts()["out"] == {"predictions": 60}
    predictions = list(rows(out.path / "predictions", Prediction))
    assert len({p.id for p in predictions}) == 60
    assert [p.prediction for p in predictions if (p.model, p.question_id) == ("base", "q03")] == ["3"]


def test_all_right_on_a_few_images_is_no_certainty(tmp_path: Path) -> None:
    models = {"base": right_below(0), "sft": right_below(6)}
    _, metrics, _ = Bench(tmp_path, [qa(i) for i in range(6)], models).run()
    base, sft = (metrics["models"][name]["exact"] for name in models)
    # Wilson for 0 and 3 of 3 images: z^2 / (3 + z^2)
    assert base == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.56150, abs=1e-5)}
    assert sft == {"value": 1.0, "low": pytest.approx(1 - 0.56150, abs=1e-5), "high": 1.0}
    assert "0.0 [0.0, 56.1]" in Evaluate.summary_of(metrics)


def test_what_is_asked(tmp_path: Path) -> None:
    prompt = tmp_path / "p.jinja"
    prompt.write_text("{{ question }} Describe, then answer.\n")
    found = [qa(1, prompt=[Message(role="system", content="old"), Message(role="user", content="Question 1?")]), qa(2)]
    bench = Bench(tmp_path, found, {"base": right_below(9)})
    _, _, plain = bench.run(max_tokens=17)
    assert [(a.system, a.text) for a in sorted(plain, key=lambda a: a.text)] == [
        ("old", "Question 1?"),
        ("", "Question 2?"),
    ]
    assert all(a.body["temperature"] == 0 and a.body["max_tokens"] == 17 for a in plain)
    _, _, dressed = bench.run("2", prompt=str(prompt), system="new")
    assert {(a.system, a.text) for a in dressed} == {("new", f"Question {i}? Describe, then answer.") for i in (1, 2)}


def test_final_answers(tmp_path: Path) -> None:
    found = [qa(1, completion=[Message(role="assistant", content="red 3. Answer: 1")]), qa(2), qa(8)]
    models = {"marked": right_below(5, "Answer: 9. Answer: {}."), "bare": right_below(9)}
    _, metrics, _ = Bench(tmp_path, found, models).run(answer_after="Answer:")
    assert metrics["models"]["marked"]["exact"]["value"] == pytest.approx(2 / 3)
    assert metrics["models"]["marked"]["unmarked"] == 0
    assert metrics["models"]["bare"]["exact"]["value"] == 0
    assert metrics["models"]["bare"]["unmarked"] == 3


def test_refused_requests_are_wrong_and_counted(tmp_path: Path) -> None:
    def moody(asked: Asked) -> Answer:
        return Answer("too long", status=400) if "1?" in asked.text else right_below(9)(asked)

    out, metrics, _ = Bench(tmp_path, [qa(i) for i in range(4)], {"base": moody}).run()
    assert metrics["models"]["base"]["exact"]["value"] == 0.75
    assert metrics["models"]["base"]["unanswered"] == 1
    (failed,) = [p for p in rows(out.path / "predictions", Prediction) if not p.metrics["answered"]]
    assert (failed.question_id, failed.prediction, failed.metrics["exact"]) == ("q01", "", 0.0)
    assert "unanswered" in table(metrics)


def test_a_model_that_refuses_everything_stops_the_stage_until_it_answers(tmp_path: Path) -> None:
    def refuses(asked: Asked) -> Answer:
        return Answer("takes no images", status=400)

    found = [qa(i) for i in range(5)]
    bench = Bench(tmp_path, found, {"base": right_below(2), "sft": refuses})
    for _ in range(2):
        said = "^models.sft: 'sft-model' answered none of 5 requests; it says: 400: takes no images"
        with pytest.raises(UserError, match=said):
            bench.run(shard=2)
    bench.models = {"base": right_below(0), "sft": right_below(9)}
    _, metrics, asked = bench.run(shard=2)
    assert [metrics["models"][name]["exact"]["value"] for name in bench.models] == [0.4, 1.0]
    assert sorted(a.model for a in asked) == ["base-model", *["sft-model"] * 5]  # one of base's in a shard with sft's


def test_images_that_are_gone_are_no_wrong_answers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [qa(i, images=[str(tmp_path / "gone.png")]) for i in range(2)], {"base": right_below(2)})
    with pytest.raises(UserError, match=r"models\.base: none of the 2 questions' images can be read; image: missing"):
        bench.run()


def test_an_outage_is_no_wrong_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [qa(i) for i in range(4)], {"base": right_below(9)})

    said = pytest.raises(EngineDied, match="4 of 4 requests were not answered, the last: 503")
    with (
        chat_server(lambda asked: Answer("overloaded", status=503)) as base,
        begin(bench.store, "evaluate", "1" * 64) as out,
        said,
    ):
        bench.stage({"base": base.base_url}).run(out)
    assert count_rows(out.path / "predictions") == 0
    _, metrics, _ = bench.run("1")
    assert metrics["models"]["base"]["exact"]["value"] == 1


def test_a_missing_key_is_found_before_any_model_comes_up(tmp_path: Path) -> None:
    stage = Bench(tmp_path, [qa(1)], {}).stage({"base": "http://127.0.0.1:9"})
    server = stage.models["base"].model_copy(update={"api_key_env": "NO_SUCH_KEY"})
    with pytest.raises(UserError, match=r"models\.sft: .*NO_SUCH_KEY is not set"):
        stage.model_copy(update={"models": {**stage.models, "sft": server}}).check()


def test_a_shard_has_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard"):
        Bench(tmp_path, [qa(1)], {}).stage({"base": "http://127.0.0.1:9"}, shard=0)


def test_a_stop_between_models_is_continued_without_the_first(tmp_path: Path) -> None:
    found = [qa(i) for i in range(10)]
    bench = Bench(tmp_path, found, {"base": right_below(3), "sft": right_below(8)})
    whole, expected, _ = bench.run("1", shard=4)
    with chat_server(bench.models["base"]) as base, begin(bench.store, "evaluate", "2" * 64) as out:
        config = bench.stage({"base": base.base_url, "sft": "http://127.0.0.1:9/v1"}, shard=4)
        with pytest.raises(UserError, match="no server listens there"):
            config.run(out)
    assert count_rows(out.path / "predictions") == 8  # the shard that held both models is not kept
    continued, metrics, asked = bench.run("2", shard=4)
    assert [a.model for a in asked].count("base-model") == 2
    assert metrics == expected
    assert list(rows(continued.path / "predictions", Prediction)) == list(rows(whole.path / "predictions", Prediction))


def test_one_model_is_up_at_a_time_and_none_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large models do not fit beside each other."""
    up: list[str] = []
    most: list[int] = []
    bring_up = open_engine

    @contextmanager
    def noting(config: Any) -> Iterator[Engine]:
        with bring_up(config) as engine:
            up.append(config.model)
            most.append(len(up))
            yield engine
            up.remove(config.model)

    monkeypatch.setattr(evaluate, "open_engine", noting)
    bench = Bench(tmp_path, [qa(i) for i in range(5)], {name: right_below(3) for name in ("base", "sft", "dpo")})
    bench.run(shard=3)
    assert (most, up) == ([1, 1, 1], [])


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question of the evaluation split"):
        Bench(tmp_path, [qa(1, split="train")], {"base": right_below(1)}).run()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metrics": ["exact", "exact"]}, "metrics: a metric stands here twice"),
        ({"metrics": ["extract"]}, "metrics\\[0\\]: .*'exact'"),
        ({"models": {}}, "models: .*at least 1"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_mistakes(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    data = {"input": "x", "models": {"base": {"engine": "vllm", "model": "m"}}, **more}
    with pytest.raises(UserError, match=message):
        build(Evaluate, data, Source("x"))


def test_a_template_without_the_question_is_refused(tmp_path: Path) -> None:
    prompt = tmp_path / "p.jinja"
    prompt.write_text("Describe.")
    data = {"input": "x", "models": {"base": {"engine": "vllm", "model": "m"}}, "prompt": str(prompt)}
    with pytest.raises(UserError, match="never shows"):
        build(Evaluate, data, Source("x")).check()


def estimate(value: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **more}


def test_the_table() -> None:
    def model(value: float, unanswered: int = 0) -> dict[str, Any]:
        kinds = {"count": {"questions": 2, "relaxed": estimate(value)}}
        return {
            "relaxed": estimate(value), "exact": estimate(0.2), "unanswered": unanswered, "unmarked": 0, "kinds": kinds
        }  # fmt: skip

    difference = {"metric": "relaxed", **estimate(0.25, p=0.0002)}
    metrics = {
        "metric": "relaxed",
        "questions": 2,
        "images": 1,
        "models": {"base": model(0.25), "sft": model(0.5, 3), "dpo": model(0.75)},
        "differences": [
            {"model": "sft", "against": "base", **difference},
            {"model": "dpo", "against": "base", **difference, "p": 0.04},
            {"model": "dpo", "against": "sft", **difference, "value": -0.05},
        ],
    }
    assert table(metrics).splitlines() == [
        "2 questions on 1 held-out images, in %, 95 % intervals over images",
        "      relaxed accuracy   exact match        unanswered",
        "base  25.0 [15.0, 35.0]  20.0 [10.0, 30.0]  0",
        "sft   50.0 [40.0, 60.0]  20.0 [10.0, 30.0]  3",
        "dpo   75.0 [65.0, 85.0]  20.0 [10.0, 30.0]  0",
        "",
        "sft - base  +25.0 [+15.0, +35.0]  p < 0.001",
        "dpo - base  +25.0 [+15.0, +35.0]  p = 0.040",
        "dpo - sft   -5.0 [+15.0, +35.0]   p < 0.001",
        "",
        "by kind  questions  base  sft   dpo",
        "count    2          25.0  50.0  75.0",
    ]
    alone = {**metrics, "models": {"base": model(0.25)}, "differences": []}
    assert "p =" not in table(alone)
    assert "once" not in table(alone)
    nothing = {**model(0.0), "exact": estimate(0.0)}
    assert "no model is right once; what each said: " in table({**alone, "models": {"base": nothing}})
    assert "once" not in table({**alone, "models": {"base": nothing, "sft": model(0.0)}})  # exact is 0.2
