"""Rejection sampling: of many scored answers to a question the best ones to imitate, and pairs to prefer by.

In: scored candidates. Out: `best`, prompt-completion rows for SFT; `pairs`, chosen and rejected rows for DPO, and
`held_out`, those of images kept from training; `unsolved`, the questions that want more candidates. The unit is the
question: questions in = questions that gave a best answer or a pair + questions set aside with a reason. Ties are
broken by id, so the order of the rows changes nothing.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from align.artifact import Out, count_rows, rows
from align.errors import UserError, did_you_mean
from align.pairs import EQUAL, Drawn, Picked, Question, cap_pairs, distinct, is_held_out, make_pairs, pair_rows, words
from align.progress import progress
from align.records import QA, Dropped, Message, Pair, Scored, text_of
from align.stage import Metrics, PortType, Ref, Stage


class Reject(Stage):
    """Keep the best answers, and pairs of a better and a worse one."""

    NAME: ClassVar[str] = "reject"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"best": QA, "pairs": Pair, "held_out": Pair, "unsolved": QA}

    input: Annotated[str, Ref(Scored)]
    also: list[Annotated[str, Ref(Scored)]] = []  # more scored answers to the same questions, such as the policy's
    keep: int = Field(1, ge=1)  # best answers of different text a question
    min_score: float = 0.5  # an answer below it is never kept and never chosen
    prefer: Literal["any", "shortest", "median"] = "any"  # length, among answers within `tie` of the best score
    tie: float = Field(0.0, ge=0)
    margin: float = Field(0.0, ge=0)  # by which chosen must beat rejected; equal scores never make a pair
    levels: int | None = Field(None, ge=2)  # of a rating 0..1: `margin` is then in steps of it
    max_length_ratio: float | None = Field(None, gt=1)  # a pair's longer answer has at most this many times the words
    max_pairs: int = Field(1, ge=0)  # a question
    max_pairs_per_image: int | None = Field(None, ge=1)
    chosen_from: list[str] | None = None  # samplers whose answers may be chosen in a pair
    rejected_from: list[str] | None = None  # samplers whose answers may be rejected ones: the policy's, to be on-policy
    pass_score: float = 0.5  # an answer is right from here on, for the two shares below
    min_pass: float = Field(0.0, ge=0, le=1)  # questions with a smaller share of right answers are set aside
    max_pass: float = Field(1.0, ge=0, le=1)  # and those with a larger one
    held_out: float = Field(0.0, ge=0, lt=1)  # share of the images, by hash, that give nothing but `held_out` pairs

    @model_validator(mode="after")
    def _ordered(self) -> "Reject":
        if self.max_pass < self.min_pass:
            raise ValueError(f"max_pass ({self.max_pass}) is less than min_pass ({self.min_pass})")
        return self

    def run(self, out: Out) -> Metrics:
        """Pick for every question, then write all of it."""
        sources = [self.input, *self.also]
        candidates = sum(map(count_rows, sources))
        with progress(candidates, "candidates") as bar:
            questions = gather(_ticking((row for source in sources for row in rows(source, Scored)), bar.update))
        known = {d.sampler for q in questions for d in q.drawn}
        for key, names in (("chosen_from", self.chosen_from), ("rejected_from", self.rejected_from)):
            for name in names or []:
                if known and name not in known:
                    raise UserError(f"{key}: no candidate is from {name!r}{did_you_mean(name, known)}")
        out.rows_in = len(questions)
        picked = {q.id: pick(q, self) for q in questions}
        cap_pairs(questions, picked, self.max_pairs_per_image)
        kept = [q for q in questions if not is_held_out(q.image_id, self.held_out)]
        away = [q for q in questions if is_held_out(q.image_id, self.held_out)]
        out.write("best", QA, (row for q in kept for row in best_rows(q, picked[q.id])))
        out.write("pairs", Pair, (row for q in kept for row in pair_rows(q, picked[q.id])))
        out.write("held_out", Pair, (row for q in away for row in pair_rows(q, picked[q.id])))
        out.write("unsolved", QA, (unsolved_row(q) for q in kept if self._wants_more(q)))
        out.drop(set_aside(q, picked[q.id]) for q in questions if not _used(picked[q.id]))
        return summary(questions, picked, candidates, self.pass_score)

    def _wants_more(self, question: Question) -> bool:
        """Fewer right answers than are to be kept: worth another wave of candidates."""
        good = (d for d in question.drawn if d.score >= self.min_score - EQUAL and d.finish != "length")
        return question.split == "train" and len(distinct(good)) < self.keep


def _ticking(found: Iterable[Scored], tick: Callable[[], object]) -> Iterator[Scored]:
    for row in found:
        yield row
        tick()


def gather(scored: Iterable[Scored]) -> list[Question]:
    """Questions by id, each with its answers by score, then id. The answers of a question need not stand together;
    one without a score is passed over."""
    questions: dict[str, Question] = {}
    for row in scored:
        question = questions.get(row.question_id)
        if question is None:
            question = Question(
                row.question_id, row.images, row.prompt, row.image_id, row.kind, row.split, row.reference
            )
            questions[row.question_id] = question
        if row.score is not None:
            text = text_of(row.completion)
            question.drawn.append(Drawn(row.id, text, row.score, row.sampler, row.temperature, row.finish))
    for question in questions.values():
        question.drawn.sort(key=lambda d: (-d.score, d.id))
    return [questions[i] for i in sorted(questions)]


def pick(question: Question, config: Reject) -> Picked:
    """The best answers and the pairs of one question."""
    reason = _unfit(question, config)
    if reason:
        return Picked(no_best=reason, no_pair=reason)
    score = {text: d.score for text, d in distinct(question.drawn).items()}  # a text is worth its best copy
    # An answer that was cut off is no example of how to answer; it may be rejected.
    whole = [d for d in question.drawn if d.finish != "length"]
    if config.chosen_from is not None:  # of equal texts, the one that may be chosen stands for both
        first = set(config.chosen_from)
        whole.sort(key=lambda d: (-d.score, d.sampler not in first, d.id))
    good = [d for d in distinct(whole).values() if d.score >= config.min_score - EQUAL]
    if not good:
        return Picked(no_best="no good answer", no_pair="no good answer")
    better = [d for d in good if config.chosen_from is None or d.sampler in config.chosen_from]
    allowed = (d for d in question.drawn if config.rejected_from is None or d.sampler in config.rejected_from)
    worse = [replace(d, score=score[text]) for text, d in distinct(allowed).items()]
    pairs = make_pairs(better, worse, config) if better else []
    return Picked(by_length(good, config)[: config.keep], pairs, no_pair="" if pairs else "no pair")


def by_length(good: list[Drawn], config: Reject) -> list[Drawn]:
    """Good answers, best first; those within `tie` of the best by length where one is preferred: a reward that gives
    many answers the same score would otherwise leave length to chance, or to its own liking for long ones."""
    if config.prefer == "any":
        return good
    near = [d for d in good if good[0].score - d.score <= config.tie + EQUAL]
    lengths = sorted(words(d.text) for d in near)
    wanted = 0 if config.prefer == "shortest" else lengths[(len(lengths) - 1) // 2]
    return sorted(near, key=lambda d: (abs(words(d.text) - wanted), -d.score, d.id)) + good[len(near) :]


def _unfit(question: Question, config: Reject) -> str:
    if question.split != "train":
        return "eval split"  # never trained on
    if not question.drawn:
        return "no score"
    share = pass_share(question, config.pass_score)
    if share < config.min_pass - EQUAL:
        return "too seldom right"
    return "too often right" if share > config.max_pass + EQUAL else ""


def pass_share(question: Question, pass_score: float) -> float:
    """The share of a question's answers that are right."""
    return sum(d.score >= pass_score - EQUAL for d in question.drawn) / len(question.drawn)


def best_rows(question: Question, picked: Picked) -> Iterator[QA]:
    """A question's best answers as SFT rows, under the question's own prompt."""
    for drawn in picked.best:
        yield QA(
            id=drawn.id,
            images=question.images,
            prompt=question.prompt,
            completion=[Message(role="assistant", content=drawn.text)],
            image_id=question.image_id,
            kind=question.kind,
            split=question.split,
            source=f"best of {len(question.drawn)}: {drawn.sampler}, temperature {drawn.temperature:g}",
        )


def unsolved_row(question: Question) -> QA:
    """The question as it was asked."""
    answer = [] if question.reference is None else [Message(role="assistant", content=question.reference)]
    return QA(
        id=question.id,
        images=question.images,
        prompt=question.prompt,
        completion=answer,
        image_id=question.image_id,
        kind=question.kind,
        split=question.split,
        source="unsolved",
    )


def _used(picked: Picked) -> bool:
    return bool(picked.best or picked.pairs)


def set_aside(question: Question, picked: Picked) -> Dropped:
    """A question that gave nothing, with its best answers for whoever looks why."""
    best = question.drawn[0] if question.drawn else None
    detail = f"best of {len(question.drawn)} has {best.score:.4g}" if best else "no candidate has a score"
    if best and picked.no_best == "no good answer" and any(d.finish == "length" for d in question.drawn):
        detail += f"; {sum(d.finish == 'length' for d in question.drawn)} were cut off at max_tokens"
    row = {
        "question": text_of(question.prompt),
        "images": question.images,
        "kind": question.kind,
        "answers": [asdict(d) for d in question.drawn[:4]],
    }
    return Dropped(id=question.id, reason=picked.no_best, detail=detail, row=json.dumps(row, ensure_ascii=False))


def summary(questions: list[Question], picked: dict[str, Picked], candidates: int, pass_score: float) -> Metrics:
    """How many questions gave what and why not, what picking won, and whether it merely picked by length."""
    rated = [q for q in questions if q.drawn]
    pairs = [pair for found in picked.values() for pair in found.pairs]
    best = [d for found in picked.values() for d in found.best]
    return {
        "unit": "questions",
        "questions": len(questions),
        "candidates": candidates,
        "with_best": sum(bool(found.best) for found in picked.values()),
        "with_pairs": sum(bool(found.pairs) for found in picked.values()),
        "no_best": dict(Counter(found.no_best for found in picked.values() if found.no_best)),
        "no_pair": dict(Counter(found.no_pair for found in picked.values() if found.no_pair)),
        "pass_rate": _mean(pass_share(q, pass_score) for q in rated),
        "pass_at_n": _mean(float(pass_share(q, pass_score) > 0) for q in rated),
        "mean_score": _mean(d.score for q in rated for d in q.drawn),
        "best_score": _mean(d.score for d in best),
        "mean_margin": _mean(c.score - r.score for c, r in pairs),
        "chosen_words": _mean(words(c.text) for c, _ in pairs),
        "rejected_words": _mean(words(r.text) for _, r in pairs),
        "chosen_longer": _mean(float(words(c.text) > words(r.text)) for c, r in pairs),
        "chosen_shorter": _mean(float(words(c.text) < words(r.text)) for c, r in pairs),
        "best_from": dict(Counter(d.sampler for d in best)),
        "chosen_from": dict(Counter(c.sampler for c, _ in pairs)),
        "rejected_from": dict(Counter(r.sampler for _, r in pairs)),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
