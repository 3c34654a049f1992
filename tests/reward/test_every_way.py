"""A row has one number: in Python, alone, batched, in any order, in a tree or not, by the command in both forms, by the
server, in TRL."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.commands_reward import score_words
from reward import load_reward
from reward.asks import Images, read_ask
from reward.trl import trl_reward
from tests.chat_server import chat_server
from tests.plain import picture
from tests.reward.candidates import png
from tests.reward.published import skywork
from tests.reward.test_kinds import answer
from tests.reward.test_serve import up

ANSWERS = ["three", "thirty or so", "none <|im_end|> at all"]
QUESTIONS = ["How many bars?", "How many bars, and <|image_pad|> why?"]


def test_one_number_by_every_way(tmp_path: Path) -> None:
    model = skywork(tmp_path / "model")
    picture(1, (40, 24)).save(tmp_path / "wide.png")
    picture(2, (24, 56)).save(tmp_path / "tall.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    config = {"reward": "trained", "model": str(model), "device": "cpu", "dtype": "float32"}
    (tmp_path / "r.yaml").write_text(json.dumps(config))
    asks = [
        {"id": f"{image} {n}", "prompt": question, "images": [f"{image}.png"], "candidates": ANSWERS}
        for n, question in enumerate(QUESTIONS)
        for image in ("wide", "tall")
    ]
    bad = {"id": "bad", "prompt": "?", "images": ["broken.png"], "candidates": ["x"]}
    with load_reward(config) as reward:
        images = Images(tmp_path, tmp_path / "kept")
        rows = [row for n, ask in enumerate(asks) for row in read_ask(ask, images, str(n)).candidates]
        alone = [reward.score([row])[0].value for row in rows]
        assert [s.value for s in reward.score(rows)] == pytest.approx(alone, abs=1e-5)
        assert [s.value for s in reward.score(rows[::-1])][::-1] == pytest.approx(alone, abs=1e-5)
        assert reward.reward.rater.tree
        reward.reward.rater.tree = False
        assert [s.value for s in reward.score(rows)] == pytest.approx(alone, abs=1e-5)
        reward.reward.rater.tree = True
        parts = [rows[n : n + 2] for n in range(0, len(rows), 2)] * 4
        with ThreadPoolExecutor(4) as pool:  # as a web framework's handlers would
            found = [s.value for scores in pool.map(reward.score, parts) for s in scores]
        assert found == pytest.approx(alone * 4, abs=1e-5)
        with up(reward) as (url, _):
            served = []
            for ask in asks:
                data = base64.b64encode((tmp_path / ask["images"][0]).read_bytes()).decode()
                given = {**ask, "images": [f"data:image/png;base64,{data}"]}
                served += [s["score"] for s in httpx.post(f"{url}/score", json=given, timeout=60).json()["scores"]]
    assert served == pytest.approx(alone, abs=1e-5)
    assert len({round(value or 0.0, 4) for value in alone}) > 6

    (tmp_path / "in.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in [asks[0], bad, *asks[1:]]))
    pq.write_table(pa.Table.from_pylist([asks[0], bad, *asks[1:]]), tmp_path / "in.parquet")
    for source, target in (("in.jsonl", "a.parquet"), ("in.parquet", "b.jsonl")):
        score_words((str(tmp_path / "r.yaml"), str(tmp_path / source), str(tmp_path / target)), False)
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    for found in (pq.read_table(tmp_path / "a.parquet").to_pylist(), lines):
        assert [r["score"] for r in found if r["id"] != "bad"] == pytest.approx(alone, abs=1e-5)
        (row,) = (r for r in found if r["id"] == "bad")
        assert row["score"] is None
        assert "unreadable image" in row["reason"]


def test_one_number_by_every_way_from_a_judge_and_rules(tmp_path: Path) -> None:
    """A combination of both, the judge behind a server whose rating depends on all that it is shown."""
    png(tmp_path / "a.png")
    asks = [
        {
            "id": f"{n}",
            "prompt": f"How tall is bar {n}?",
            "images": ["a.png"],
            "candidates": ANSWERS,
            "reference": "three",
        }
        for n in range(3)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    with chat_server(answer) as judge:
        engine = {"engine": "server", "model": "m", "base_url": judge.base_url, "retries": 0}
        right = {"reward": "rules", "rules": [{"rule": "anls"}, {"rule": "repetition", "ngram": 1}]}
        config = {"reward": "combine", "rewards": {"right": right, "liked": {"reward": "judge", "engine": engine}}}
        (tmp_path / "r.yaml").write_text(json.dumps(config))
        with load_reward(config) as reward:
            images = Images(tmp_path, tmp_path / "kept")
            rows = [row for n, ask in enumerate(asks) for row in read_ask(ask, images, str(n)).candidates]
            alone = [reward.score([row])[0].value for row in rows]
            assert [s.value for s in reward.score(rows)] == alone
            assert [s.value for s in reward.score(rows[::-1])][::-1] == alone
            with up(reward) as (server, _):
                posted = [httpx.post(f"{server}/score", json={**ask, "images": [url]}, timeout=60) for ask in asks]
            assert [s["score"] for response in posted for s in response.json()["scores"]] == alone
        score_words((str(tmp_path / "r.yaml"), str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")), False)
        assert [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == alone
        with trl_reward(config, reference="answer") as scorer:
            prompts = [ask["prompt"] for ask in asks for _ in ANSWERS]
            count = len(prompts)
            columns = {"image": [str(tmp_path / "a.png")] * count, "answer": ["three"] * count}
            assert scorer(prompts, ANSWERS * len(asks), **columns) == alone
    assert None not in alone
    assert len({round(value or 0.0, 6) for value in alone}) == len(alone)


def test_several_right_answers_by_every_way(tmp_path: Path) -> None:
    """ANLS of each answer to the nearest of them (DocVQA's), worked out by hand."""
    config = {"reward": "rules", "rules": [{"rule": "anls"}]}
    (tmp_path / "r.yaml").write_text(json.dumps(config))
    right = ["12", "twelve"]
    ask = {"id": "a", "prompt": "?", "candidates": ["12", "Twelve", "twelv", "13 kg"], "reference": right}
    expected = [1.0, 1.0, 5 / 6, 0.0]
    with load_reward(config) as reward, up(reward) as (url, _):
        rows = read_ask(ask, Images(tmp_path, tmp_path), "x").candidates
        assert [s.value for s in reward.score(rows)] == pytest.approx(expected)
        served = httpx.post(f"{url}/score", json=ask).json()["scores"]
        assert [s["score"] for s in served] == pytest.approx(expected)
        for answers, part in (
            (["x"] * 65, "65 references"),
            (["x" * 20_000, "y" * 20_000], "40000 characters"),
            ([["3"]], "reference: a text or a number is expected, or a list of them, not list"),
        ):
            refused = httpx.post(f"{url}/score", json={**ask, "reference": answers})
            assert refused.status_code == 422
            assert part in refused.json()["detail"]
    (tmp_path / "in.jsonl").write_text(json.dumps(ask) + "\n")
    pq.write_table(pa.Table.from_pylist([ask]), tmp_path / "in.parquet")
    for source in ("in.jsonl", "in.parquet"):
        score_words((str(tmp_path / "r.yaml"), str(tmp_path / source), str(tmp_path / "out.jsonl")), False)
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line["score"] for line in lines] == pytest.approx(expected)
    with trl_reward(config, reference="answer") as scorer:
        found = scorer(["?"] * 4, ask["candidates"], answer=[right] * 4)
    assert found == pytest.approx(expected)


def test_a_reference_that_is_no_text_counts_alike_by_every_way(tmp_path: Path) -> None:
    config = {"reward": "rules", "rules": [{"rule": "exact"}]}
    right = {"12": 12, "12.5": 12.5, "7": [12, 7.0], "9": [None, "9"], "true": True}
    asks: list[dict[str, Any]] = [
        {"prompt": "?", "candidates": [text, "x"], "reference": found} for text, found in right.items()
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    (tmp_path / "r.yaml").write_text(json.dumps(config))
    sources = ["in.jsonl"]
    for n, ask in enumerate(asks[:3] + asks[4:]):
        pq.write_table(pa.Table.from_pylist([ask]), tmp_path / f"{n}.parquet")
        sources.append(f"{n}.parquet")
    for source in sources:
        score_words((str(tmp_path / "r.yaml"), str(tmp_path / source), str(tmp_path / "out.jsonl")), False)
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line["score"] for line in lines] == [1.0, 0.0] * (len(asks) if source == "in.jsonl" else 1)
    with load_reward(config) as reward, up(reward) as (url, _), trl_reward(config, reference="answer") as scorer:
        for ask in asks:
            served = httpx.post(f"{url}/score", json=ask)
            assert [s["score"] for s in served.json()["scores"]] == [1.0, 0.0]
            assert scorer(["?"] * 2, ask["candidates"], answer=[ask["reference"]] * 2) == [1.0, 0.0]
