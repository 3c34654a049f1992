"""The two benchmarks' files and accuracies against values worked by hand and against their authors' arithmetic."""

import base64
import csv
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from align.errors import UserError
from pipelines.cli import cli
from reward.bench import Judged, bench, estimate, judge, macro, report, table
from reward.load import read_reward
from reward.pairfiles import FORMS, BadPair, Pair, read_pairs
from tests.chat_server import Answer, Asked, chat_server
from tests.pipelines.test_cli import call
from tests.reward.candidates import png

SHORTER = {"reward": "rules", "rules": [{"rule": "length", "max": 5}]}  # 1 up to five characters, else 0
VL, MM = FORMS


def picture(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 6), (colour, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def vl(name: str, first: str, second: str, better: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "id": name, "query": "<image>\nWhat is it?", "response": [first, second],
        "human_ranking": [better, 1 - better], "image": {"bytes": picture(len(name)), "path": None},
        "models": ["a", "b"], "judge": "human", "query_source": "x", **more,
    }  # fmt: skip


def mm(name: str, category: str, first: str, second: str, better: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "ID": name, "Text": "What is it?", "Output1": first, "Output2": second, "Better": f"Output{better + 1}",
        "Category": category, "Image": "images/a.png", **more,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """As JSON, an image's bytes as base64."""
    image = row["image"]["bytes"] if isinstance(row.get("image"), dict) else None
    return json.dumps(row if image is None else {**row, "image": base64.b64encode(image).decode()}) + "\n"


def run(tmp_path: Path, rows: list[dict[str, Any]], kind: str, config: Any = SHORTER) -> dict[str, Any]:
    source, target = tmp_path / f"pairs.{kind}", tmp_path / "out.json"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif kind == "json":
        source.write_text(json.dumps(rows))
    elif kind == "jsonl":
        source.write_text("".join(line(row) for row in rows))
    else:
        with source.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    bench(read_reward(config), source, target)
    return json.loads(target.read_text())


def test_vl_rewardbench_by_hand(tmp_path: Path) -> None:
    rows = [
        vl("RLAIF-V-1", "cat", "a long answer"), vl("RLHF-V-2", "a long answer", "cat"),
        vl("hallucination_pair-3", "a long answer", "cat", better=1), vl("mmmu_pro_4", "cat", "dog"),
        vl("mathverse_5", "cat", "a long answer"), vl("wildvision-battle-6", "cat", "a long answer", better=1),
        vl("vlfeedback_7", "cat", "a long answer"), vl("8", "cat", "a long answer"),
    ]  # fmt: skip
    found = run(tmp_path, rows, "parquet")
    assert found["benchmark"] == "VL-RewardBench"
    assert {name: (g["right"], g["wrong"], g["tie"]) for name, g in found["groups"].items()} == {
        "general": (2, 1, 0), "hallucination": (2, 1, 0), "reasoning": (1, 0, 1),
    }  # fmt: skip
    assert found["micro"]["value"] == pytest.approx(5 / 7)  # the tie is left out
    assert found["macro"]["value"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["strict"]["value"] == pytest.approx(5 / 8)
    assert found["shorter wins"]["value"] == pytest.approx(5 / 7)  # cat and dog are as long
    assert found["longer wins"]["value"] == pytest.approx(2 / 7)
    assert (found["n"], found["tie"], found["unscored"], found["bad"]) == (8, 1, 0, [])
    assert [p["outcome"] for p in found["pairs"]].count("right") == 5
    assert found["pairs"][0]["scores"] == [1.0, 0.0]
    assert "left out" in found["accuracy"]
    assert not list(tmp_path.glob("*.work"))


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_multimodal_rewardbench_by_hand(tmp_path: Path, kind: str) -> None:
    png(tmp_path / "images" / "a.png")
    rows = [
        mm("nocaps_1", "correctness", "cat", "a long answer"), mm("mathvista_1", "reasoning", "cat", "dog"),
        mm("EMMA-Coding_1", "reasoning", "cat", "a long answer", better=1), mm("PAIRS_1", "safety", "cat", "longer"),
        mm("hateful_1", "safety", "a long answer", "cat"), mm("mathvista_2", "reasoning", "longer", "cat", better=1),
    ]  # fmt: skip
    found = run(tmp_path, rows, kind)
    assert found["benchmark"] == "Multimodal RewardBench"
    accuracy = {name: group["accuracy"]["value"] for name, group in found["groups"].items()}
    assert accuracy == pytest.approx(
        {
            "correctness": 1, "reasoning": 0.5, "reasoning/math": 0.75, "reasoning/coding": 0,
            "safety": 0.5, "safety/bias": 1, "safety/toxicity": 0,
        }
    )  # fmt: skip
    assert found["micro"]["value"] == pytest.approx(3.5 / 6)
    assert found["macro"]["value"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["strict"]["value"] == pytest.approx(0.5)


def test_the_authors_arithmetic() -> None:
    """VL-RewardBench's cal.py: agree over agree and reject by group, the mean of the three, and over all."""
    random.seed(4)
    names = ("general", "hallucination", "reasoning")
    judged = [
        Judged(str(i), (random.choice(names),), f"image {i % 90}", 0, (1.0, 0.0),
               random.choices(["right", "wrong", "tie", "unscored"], [6, 3, 1, 1])[0])
        for i in range(300)
    ]  # fmt: skip
    agree = {n: sum(j.outcome == "right" for j in judged if j.groups == (n,)) for n in names}
    total = {n: sum(j.outcome in ("right", "wrong") for j in judged if j.groups == (n,)) for n in names}
    found = report(VL, judged)
    assert found["micro"]["value"] == pytest.approx(sum(agree.values()) / sum(total.values()))
    assert found["macro"]["value"] == pytest.approx(sum(agree[n] / total[n] for n in names) / 3)
    coin = [{"right": 1.0, "wrong": 0.0}.get(j.outcome, 0.5) for j in judged]
    assert report(MM, judged)["micro"]["value"] == pytest.approx(sum(coin) / 300)
    for form in FORMS:
        result = report(form, judged)
        for name in ("micro", "macro", "strict"):
            assert result[name]["low"] < result[name]["value"] < result[name]["high"]


def test_the_macro_interval_is_wide_where_a_group_is_small() -> None:
    def pairs(group: str, count: int) -> list[Judged]:
        return [Judged(str(i), (group,), str(i), 0, (1.0, 0.0), "right" if i % 2 else "wrong") for i in range(count)]

    wide, narrow = macro([pairs("a", 4), pairs("b", 400)], 0.5), macro([pairs("a", 400), pairs("b", 400)], 0.5)
    assert wide is not None
    assert narrow is not None
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    # the standard error of a mean of two independent shares of 400, each sqrt(.25 / 400)
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * (2 * 0.25 / 400) ** 0.5 / 2, rel=0.1)
    assert macro([pairs("a", 4), []], 0.5) is None


def test_two_right_pairs_of_one_image_are_not_certain() -> None:
    found = estimate([Judged(str(i), ("a",), "one image", 0, (1.0, 0.0), "right") for i in range(2)], None)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(1 / (1 + 1.959964**2)), 1.0)  # Wilson's, n / (n + z^2)


def test_the_macro_accuracy_of_one_image_a_group_is_not_certain() -> None:
    """Wilson's interval in each group, n / (n + z^2) below a share of 1 for one image, over three equal groups."""
    group = [Judged(str(i), ("a",), "one image", 0, (1.0, 0.0), "right") for i in range(4)]
    found = macro([group] * 3, None)
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - (1 - 1 / (1 + 1.959964**2)) / 3**0.5)
    mixed = macro([[*group[:1], replace(group[1], outcome="wrong")], group], None)
    assert mixed is not None
    assert mixed.low < 0.5 < mixed.value == 0.75 < mixed.high


def test_outcomes() -> None:
    def outcome(first: float | None, second: float | None, better: int) -> str:
        pair = Pair("p", "q", "i", ("a", "b"), better, ("g",))
        records = {n: {"score": s, "reason": ""} for n, s in enumerate((first, second))}
        return judge(pair, records).outcome

    assert [outcome(0.2, 0.1, 0), outcome(0.2, 0.1, 1), outcome(-3.0, 5.0, 1)] == ["right", "wrong", "right"]
    assert [outcome(0.1, 0.1, 0), outcome(0.1, 0.1 + 1e-13, 1)] == ["tie", "tie"]
    assert [outcome(None, 1.0, 1), outcome(1.0, None, 0), outcome(None, None, 0)] == ["unscored"] * 3
    assert judge(Pair("p", "q", "i", ("a", "b"), 0, ("g",)), {None: {"score": None, "reason": "bad"}}).reason == "bad"


def test_images_by_path_base64_and_bytes_reach_the_judge(tmp_path: Path) -> None:
    data = picture(90)
    (tmp_path / "a.png").write_bytes(data)
    encoded = base64.b64encode(data).decode()
    images = ["a.png", encoded, f"data:image/png;base64,{encoded}", "gone.png", "", None]
    rows = [vl(f"RLHF-{n}", "good", "bad", image=image) for n, image in enumerate(images)]

    def rate(asked: Asked) -> Answer:
        assert len(asked.images) == 1
        return Answer("5" if "rate: good" in asked.text else "1")

    with chat_server(rate) as server:
        engine = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0}
        found = run(tmp_path, rows, "jsonl", {"reward": "judge", "engine": engine})
        assert len({a.images[0] for a in server.asked}) == 1
    outcomes = [p["outcome"] for p in found["pairs"]]
    assert outcomes[:3] == ["right"] * 3
    assert outcomes[3] == "unscored"
    assert "gone.png" in found["pairs"][3]["reason"]
    assert [b["row"] for b in found["bad"]] == [4, 5]
    assert all("the image is missing" in b["reason"] for b in found["bad"])


def test_a_pairwise_judge(tmp_path: Path) -> None:
    rows = [vl(f"RLHF-{n}", "good", "bad", better=n % 2) for n in range(6)]

    def compare(asked: Asked) -> Answer:
        return Answer("A" if "A: good" in asked.text else "B")

    with chat_server(compare) as server:
        engine = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0}
        found = run(tmp_path, rows, "jsonl", {"reward": "judge", "mode": "pairwise", "engine": engine})
        assert len(server.asked) == 12
    assert (found["right"], found["wrong"]) == (3, 3)
    assert found["pairs"][0]["scores"] == [1.0, 0.0]


def test_an_outage_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from align.engine import EngineDied
    from reward import bench as module

    source, target = tmp_path / "p.jsonl", tmp_path / "o.json"
    source.write_text("".join(line(vl(f"RLHF-{n}", "cat", "a long answer")) for n in range(3)))
    whole = bench(read_reward(SHORTER), source, tmp_path / "w.json")
    real = module.score_file

    def dies(*_: Any) -> None:
        raise EngineDied("gone")

    monkeypatch.setattr(module, "score_file", dies)
    with pytest.raises(EngineDied):
        bench(read_reward(SHORTER), source, target)
    assert (tmp_path / "o.json.work" / "asks.jsonl").is_file()
    assert not target.exists()
    monkeypatch.setattr(module, "score_file", real)
    assert bench(read_reward(SHORTER), source, target) == whole


BAD_ROWS = [
    vl("RLHF-1", "a", "b", response=["a"]), vl("RLHF-2", "a", "b", human_ranking=[0, 0]),
    vl("RLHF-3", "a", "b", query=None), vl("RLHF-4", "a", "b", response=["a", 5]),
    vl("RLHF-5", "a", "b", human_ranking="01"),
]  # fmt: skip


def test_bad_rows_are_named_and_the_rest_is_scored(tmp_path: Path) -> None:
    source = tmp_path / "p.jsonl"
    good = vl("RLHF-0", "cat", "a long answer")
    lines = [line(row).encode() for row in (good, *BAD_ROWS)]
    lines += [b"{", b"[1]", b'{"id": "\xff"}', line({**good, "query": "\ud800"}).encode()]
    source.write_bytes(b"\n".join(lines))
    found = bench(read_reward(SHORTER), source, tmp_path / "o.json")
    assert [b["row"] for b in found["bad"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [p["outcome"] for p in found["pairs"]] == ["right", "unscored"]
    assert "surrogate" in found["pairs"][-1]["reason"]
    assert "8 rows are no pairs" in table(found)


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_a_byte_order_mark_and_a_bad_beginning_cost_no_pair(tmp_path: Path, kind: str) -> None:
    png(tmp_path / "images" / "a.png")
    rows: list[Any] = [mm("a", "vqa", "cat", "a long answer"), mm("b", "vqa", "a long answer", "cat")]
    if kind == "csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text, bad = stream.getvalue(), 0
    elif kind == "json":
        text, bad = json.dumps(["no pair", {"ID": "c"}, *rows]), 2
    else:
        text, bad = "no JSON\n" + "".join(json.dumps(row) + "\n" for row in ({"ID": "c"}, *rows)), 2
    source = tmp_path / f"p.{kind}"
    source.write_text("\ufeff" + text, encoding="utf-8", newline="")
    found = bench(read_reward(SHORTER), source, tmp_path / "o.json")
    assert [p["outcome"] for p in found["pairs"]] == ["right", "wrong"]
    assert [b["row"] for b in found["bad"]] == list(range(bad))


def test_what_lies_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line(vl("RLHF-1", "cat", "a long answer")))
    (tmp_path / "o.json.work").mkdir()
    (tmp_path / "o.json.work" / "notes.txt").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    for name, message in {"o.json": r"o\.json\.work is in the way", "folder.json": "is a folder"}.items():
        with pytest.raises(UserError, match=message):
            bench(read_reward(SHORTER), tmp_path / "p.jsonl", tmp_path / name)
    assert (tmp_path / "o.json.work" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"a": 1}\n', "the columns a are of no known form: VL-RewardBench has human_ranking, id"),
        ("p.jsonl", "", "the file has no rows"), ("p.json", "{}", "a list of objects is expected, not dict"),
        ("p.json", "[", "no JSON"), ("p.parquet", "x", "no parquet file"), ("p.txt", "", "ends in .parquet, .jsonl"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        bench(read_reward(SHORTER), tmp_path / name, tmp_path / "o.json")


def test_a_file_is_recognised_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**mm("a", "vqa", "x", "y"), "more": 1}))
    form, pairs = read_pairs(path)
    (pair,) = pairs
    assert form is MM
    assert not isinstance(pair, BadPair)
    assert (pair.image, pair.better) == (str(tmp_path / "images/a.png"), 0)


def test_the_command(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png")
    (tmp_path / "p.json").write_text(json.dumps([mm("a", "vqa", "cat", "a long answer")]))
    (tmp_path / "r.yaml").write_text(json.dumps(SHORTER))
    words = [str(tmp_path / name) for name in ("r.yaml", "p.json", "o.json")]
    done = CliRunner().invoke(cli, ["bench-reward", *words], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Multimodal RewardBench" in done.output
    assert "micro" in done.output
    assert json.loads((tmp_path / "o.json").read_text())["micro"]["value"] == 1.0
    again = CliRunner().invoke(cli, ["bench-reward", *words], catch_exceptions=False)
    assert again.exit_code == 0
    for text, code in {'[{"ID": "a"}]': 2, '{"my": "notes"}': 2, "notes": 2, "": 0}.items():
        (tmp_path / "o.json").write_text(text)
        assert call("bench-reward", *words) == code
        assert ((tmp_path / "o.json").read_text() == text) == (code == 2)


def test_a_benchmark_without_a_scored_pair_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.json").write_text(json.dumps([mm("a", "vqa", "cat", "a long answer", Image="gone.png")]))
    (tmp_path / "r.yaml").write_text(json.dumps(SHORTER))
    assert call("bench-reward", *(str(tmp_path / name) for name in ("r.yaml", "p.json", "o.json"))) == 1
    assert "no pair has two scores, the first: no image at " in capsys.readouterr().err
