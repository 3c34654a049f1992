"""A reward that checks an answer claim by claim: RLAIF-V's divide and conquer (arXiv 2405.17220, section 3.2).

In: candidates with images. An engine splits each answer into atomic claims; each claim is asked back of the image as a
yes/no question, of the same engine or of another. Out, 0..1: as `share`, the mean over claims of the probability that
the claim holds; as `rejected`, 1 / (1 + the number of claims that do not hold), which orders answers as the paper's
score, minus that number, does. An answer without a claim, or one that could not be taken apart, has no score.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from pydantic import Field

from align.claims import read_claims, verdict
from align.config import Config, shipped
from align.engine import Engine, EngineConfig, Reply, Request, check_engine, open_engine
from align.records import Candidate, Message, Sampling, text_of
from align.stage import FileRef
from align.templates import check_shows, render
from reward.asking import EMPTY, NO_IMAGE, TOP_LOGPROBS, ask, is_empty, mass, plain, seed_of, shown
from reward.base import Reward, Score

YES_NO = {"yes": 1.0, "no": 0.0}
NO_CLAIM = "the answer makes no claim about the image"


class Claims(Config):
    """A model that takes answers apart, and one that looks."""

    reward: Literal["claims"]
    engine: EngineConfig
    checker: EngineConfig | None = None  # who is asked about the image; the same engine if not given
    value: Literal["share", "rejected"] = "share"
    split: FileRef = "configs/prompts/claims/split.jinja"
    ask: FileRef = "configs/prompts/claims/ask.jinja"
    max_tokens: int = Field(1024, ge=1)  # of the list of claims
    temperature: float = Field(0.0, ge=0.0)

    def check(self) -> None:
        """The templates are there, show what they must and know their variables; the engines lack nothing."""
        check_shows(self.split, "answer", question="q")
        check_shows(self.ask, "claim", question="q")
        for engine in (self.engine, self.checker):
            if engine is not None:
                check_engine(engine)

    @contextmanager
    def opened(self, seed: int = 0) -> Iterator[Reward]:
        """Bring the engines up, and down again."""
        with ExitStack() as stack:
            splitter = stack.enter_context(open_engine(self.engine))
            checker = splitter if self.checker is None else stack.enter_context(open_engine(self.checker))
            yield Checking(self, splitter, checker, seed)


class Checking:
    """Claims with the engines up."""

    def __init__(self, config: Claims, splitter: Engine, checker: Engine, seed: int = 0) -> None:
        self.config = config
        self.splitter = splitter
        self.checker = checker
        self.seed = seed

    def score(self, rows: Sequence[Candidate]) -> list[Score]:
        """One score a row; None where the answer is empty, has no claim or could not be taken apart, where there is no
        image, and where a claim got no verdict: an answer is not judged by a part of its claims."""
        found: dict[int, list[str] | str] = {}
        splits = {}
        for i, row in enumerate(rows):
            if is_empty(row):
                found[i] = EMPTY
            elif not row.images:
                found[i] = NO_IMAGE
            else:
                splits[i] = self._split(row)
        for i, reply in ask(self.splitter, splits).items():
            error = f"the splitter did not answer: {reply.error}"
            found[i] = error if reply.error else read_claims(reply) or NO_CLAIM
        checks = {
            (i, n): self._check(rows[i], claim, n)
            for i, claims in found.items()
            if isinstance(claims, list)
            for n, claim in enumerate(claims)
        }
        replies = ask(self.checker, checks)
        scores = []
        for i in range(len(rows)):
            claims = found[i]
            if isinstance(claims, str):
                scores.append(Score(None, reason=claims))
            else:
                scores.append(score_of(claims, [replies[i, n] for n in range(len(claims))], self.config.value))
        return scores

    def _split(self, row: Candidate) -> Request:
        """Text alone: what the answer says, not what the splitter sees."""
        variables = shown(row)
        del variables["reference"]
        text = render(shipped(self.config.split), **variables)
        sampling = Sampling(temperature=self.config.temperature, max_tokens=self.config.max_tokens)
        seed = seed_of(self.seed, row, "split")
        return Request(id="", messages=[Message(role="user", content=text)], sampling=sampling, seed=seed)

    def _check(self, row: Candidate, claim: str, number: int) -> Request:
        text = render(shipped(self.config.ask), claim=plain(claim), question=plain(text_of(row.prompt)))
        return Request(
            id="",
            messages=[Message(role="user", content=text)],
            images=row.images,
            sampling=Sampling(temperature=0.0, max_tokens=4),
            seed=seed_of(self.seed, row, "claim", number),
            top_logprobs=TOP_LOGPROBS,
        )


def holds(reply: Reply) -> float | None:
    """The probability that a claim holds by the tokens `yes` and `no`, else 1 or 0 by the written word."""
    shares = mass(reply.first_logprobs[0], YES_NO) if reply.first_logprobs else None
    if shares is not None:
        return shares[1.0]
    said = verdict(reply.texts[0]) if reply.texts else None
    return None if said is None else float(said)


def score_of(claims: Sequence[str], replies: Sequence[Reply], value: Literal["share", "rejected"]) -> Score:
    """A score from the verdicts on claims, in their order. Parts: each claim, as `claim 1: its text`, with the
    probability that it holds; `claims` and `rejected` (less than even) count them."""
    parts: dict[str, float | None] = {}
    reason = ""
    for n, (claim, reply) in enumerate(zip(claims, replies, strict=True), 1):
        found = None if reply.error else holds(reply)
        parts[f"claim {n}: {claim}"] = found
        if found is None and not reason:
            said = repr(reply.texts[0][:80] if reply.texts else "")
            reason = f"claim {n} got neither yes nor no: {said}"
            if reply.error:
                reason = f"the checker did not answer: {reply.error}"
    if reason:
        return Score(None, parts, reason)
    values = [p for p in parts.values() if p is not None]
    rejected = sum(p < 0.5 for p in values)
    share = sum(values) / len(values)
    parts.update({"claims": float(len(values)), "rejected": float(rejected)})
    return Score(share if value == "share" else 1 / (1 + rejected), parts)
