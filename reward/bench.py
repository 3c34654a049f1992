"""How often a reward prefers the answer that people prefer, on the preference files of two published benchmarks.

In: a reward and a file (`reward/pairfiles.py`). Out: accuracy by the benchmark's own definition, micro (over all pairs)
and macro (over its categories), each with a 95 % interval over images; beside it the strict one, where an undecided
pair is wrong, and those of liking short or long answers; a table by category; every pair's two scores. Scoring is that
of `reward/files.py`, so a stopped run continues.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.artifact import write_json
from align.errors import UserError
from align.metrics import Estimate, rate
from reward.files import FORM, check_target, score_file, state_of, state_of_file, work_folder
from reward.load import Kind
from reward.pairfiles import SUFFIXES, BadPair, Form, Pair, read_pairs

EQUAL = 1e-12
"""Scores nearer than this are a tie: sums of equal terms in another order."""


@dataclass(frozen=True)
class Judged:
    """A pair with what the reward made of it. `outcome` is right, wrong, tie, or unscored where one answer or both
    have no score; `reason` says why. `cluster` is the image, `lengths` are the answers' in characters."""

    id: str
    groups: tuple[str, ...]
    cluster: str
    better: int
    scores: tuple[float | None, float | None]
    outcome: str
    reason: str = ""
    lengths: tuple[int, int] = (0, 0)


def check_bench(source: Path, target: Path) -> None:
    """The files can be read and written. Raises UserError."""
    if source.suffix not in SUFFIXES:
        raise UserError(f"{source}: a file that ends in {', '.join(SUFFIXES)} is expected")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.suffix != ".json":
        raise UserError(f"{target}: a file that ends in .json is expected")
    if source.resolve() == target.resolve():
        raise UserError(f"{target}: is the input too; nothing is overwritten")
    check_target(target, "result", _holds_result)


def _holds_result(path: Path) -> bool:
    """Whether a file is one of this command's, which may be made anew; an empty one is anybody's."""
    text = path.read_bytes()
    try:
        found = json.loads(text)
    except ValueError:
        return not text
    return isinstance(found, dict) and {"reward", "file", "pairs"} <= set(found)


def bench(config: Kind, source: Path, target: Path) -> dict[str, Any]:
    """Score both answers of every pair and write the result. Raises UserError, and EngineDied where a model is gone
    for good; the same call then continues."""
    check_bench(source, target)
    config.check()
    form, _ = read_pairs(source)
    with work_folder(target, ".work", [*state_of_file(source), state_of(config), FORM]) as work:
        return _bench_in(work, config, form, source, target)


def _bench_in(work: Path, config: Kind, form: Form, source: Path, target: Path) -> dict[str, Any]:
    asks, scores = work / "asks.jsonl", work / "scores.jsonl"
    if not asks.exists():
        _write_asks(read_pairs(source)[1], asks)
    if not scores.exists():
        score_file(config, asks, scores)
    judged, bad = _judged(read_pairs(source)[1], scores)
    result = {"reward": config.model_dump(mode="json"), "file": str(source), **report(form, judged), "bad": bad}
    shown = ("id", "groups", "better", "scores", "outcome", "reason")
    result["pairs"] = [{name: getattr(pair, name) for name in shown} for pair in judged]
    write_json(target, result)
    shutil.rmtree(work)
    return result


def _write_asks(pairs: Iterable[Pair | BadPair], path: Path) -> None:
    """Pairs as rows that `vlm-align score` reads; the row's number is its id, since benchmarks' ids come twice."""
    partial = path.with_suffix(".tmp")
    with partial.open("w", encoding="utf-8") as out:
        for number, pair in enumerate(pairs):
            if isinstance(pair, Pair):
                ask = {"prompt": pair.question, "images": [pair.image], "candidates": list(pair.answers)}
                out.write(json.dumps({"id": str(number), **ask}) + "\n")
    partial.replace(path)


def _judged(pairs: Iterable[Pair | BadPair], scores: Path) -> tuple[list[Judged], list[dict[str, Any]]]:
    found: dict[str, dict[int | None, dict[str, Any]]] = {}
    with scores.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            found.setdefault(record["id"], {})[record["candidate"]] = record
    judged, bad = [], []
    for number, pair in enumerate(pairs):
        if isinstance(pair, BadPair):
            bad.append({"row": number, "reason": str(pair)})
        else:
            judged.append(judge(pair, found.get(str(number), {})))
    return judged, bad


def judge(pair: Pair, records: Mapping[int | None, Mapping[str, Any]]) -> Judged:
    """A pair's outcome from its two scores, by number of the answer."""
    values = [records[n]["score"] if n in records else None for n in (0, 1)]
    reason = next((r["reason"] for r in records.values() if r["reason"]), "")
    cluster = hashlib.sha256(pair.image.encode()).hexdigest()
    outcome = outcome_of(values[0], values[1], pair.better)
    lengths = (len(pair.answers[0]), len(pair.answers[1]))
    return Judged(pair.id, pair.groups, cluster, pair.better, (values[0], values[1]), outcome, reason, lengths)


def outcome_of(first: float | None, second: float | None, better: int) -> str:
    """What two scores make of a pair: the higher one is the choice."""
    if first is None or second is None:
        return "unscored"
    if abs(first - second) <= EQUAL:
        return "tie"
    return "right" if (first > second) == (better == 0) else "wrong"


def by_length(judged: Sequence[Judged], sign: int) -> list[Judged]:
    """What a reward would make of the same pairs that likes long answers (1) or short ones (-1)."""
    return [
        replace(pair, outcome=outcome_of(sign * pair.lengths[0], sign * pair.lengths[1], pair.better))
        for pair in judged
    ]


def report(form: Form, judged: Sequence[Judged]) -> dict[str, Any]:
    """Counts and accuracies, of all pairs and of each group in the order of its name."""
    groups: dict[str, list[Judged]] = {}
    for pair in judged:
        for group in pair.groups:
            groups.setdefault(group, []).append(pair)
    tops = sorted({pair.groups[0] for pair in judged})
    return {
        "benchmark": form.name,
        "accuracy": form.definition,
        "micro": _shown(estimate(judged, form.undecided)),
        "macro": _shown(macro([groups[top] for top in tops], form.undecided)),
        "strict": _shown(estimate(judged, 0.0)),
        "shorter wins": _shown(estimate(by_length(judged, -1), form.undecided)),
        "longer wins": _shown(estimate(by_length(judged, 1), form.undecided)),
        **counts(judged),
        "groups": {
            name: {"accuracy": _shown(estimate(groups[name], form.undecided)), **counts(groups[name])}
            for name in sorted(groups)
        },
    }


def counts(judged: Sequence[Judged]) -> dict[str, int]:
    """How many pairs, and how many of each outcome."""
    outcomes = [pair.outcome for pair in judged]
    return {"n": len(judged), **{name: outcomes.count(name) for name in ("right", "wrong", "tie", "unscored")}}


def values_of(judged: Sequence[Judged], undecided: float | None) -> tuple[list[float], list[str]]:
    """What each pair that counts is worth, and its image."""
    worth = {"right": 1.0, "wrong": 0.0}
    kept = [(worth.get(pair.outcome, undecided), pair.cluster) for pair in judged]
    counted = [(value, cluster) for value, cluster in kept if value is not None]
    return [value for value, _ in counted], [cluster for _, cluster in counted]


def estimate(judged: Sequence[Judged], undecided: float | None) -> Estimate | None:
    """The accuracy with its interval, images resampled; None where no pair counts."""
    values, clusters = values_of(judged, undecided)
    return rate(values, clusters) if values else None


def macro(groups: Sequence[Sequence[Judged]], undecided: float | None) -> Estimate | None:
    """The mean of the groups' accuracies. Its 95 % interval is made of the groups' own, taken for independent: the
    distances to their ends add as squares (MOVER; Zou and Donner 2008). None where a group has no pair that counts: the
    mean of the others would be another number."""
    found = [each for group in groups if (each := estimate(group, undecided)) is not None]
    if not found or len(found) < len(groups):
        return None
    mean = math.fsum(each.value for each in found) / len(found)
    below = math.hypot(*(each.value - each.low for each in found)) / len(found)
    above = math.hypot(*(each.high - each.value for each in found)) / len(found)
    return Estimate(mean, max(0.0, mean - below), min(1.0, mean + above))


def _shown(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else found.as_dict()


def table(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""

    def line(name: str, accuracy: Mapping[str, float] | None, of: Mapping[str, int] | None) -> str:
        share = "-" if accuracy is None else f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
        tail = "" if of is None else "".join(f"{of[key]:>9}" for key in ("n", "right", "wrong", "tie", "unscored"))
        return f"{name:<28}{share:>24}{tail}"

    heads = "".join(f"{key:>9}" for key in ("n", "right", "wrong", "tie", "unscored"))
    lines = [f"{result['benchmark']:<28}{'accuracy [95 %]':>24}{heads}"]
    lines += [line(name, group["accuracy"], group) for name, group in result["groups"].items()]
    lines += [line("micro", result["micro"], result), line("macro", result["macro"], None)]
    lines += [line("strict (undecided is wrong)", result["strict"], None)]
    lines += [line(f"micro, if the {name}", result[name], None) for name in ("shorter wins", "longer wins")]
    lines.append(f"accuracy: {result['accuracy']}")
    if result["bad"]:
        lines.append(f"{len(result['bad'])} rows are no pairs and count nowhere: {result['bad'][0]['reason']}")
    return "\n".join(lines)
