"""A reward that asks a vision-language model how good an answer is.

In: candidates and a rubric (a Jinja file with the variables question, answer and reference, which asks for a rating
from 1 to 5). Out: the expected rating by the probabilities of the rating tokens (G-Eval, Liu et al., arXiv 2303.16634),
moved to 0..1; where the engine gives none, the rating that the judge wrote. `parts` says which it was.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from pydantic import Field

from align.config import Config, shipped
from align.engine import Engine, EngineConfig, Reply, Request, check_engine, open_engine
from align.records import Candidate, Message, Sampling, row_seed, text_of
from align.stage import FileRef
from align.templates import check_shows, render
from reward.base import Reward, Score

RATINGS = ("1", "2", "3", "4", "5")
TOP_LOGPROBS = 20  # the most that OpenAI's API gives
_ENOUGH = 0.5  # of the probability must lie on ratings for the first token to be one
_OUT_OF = re.compile(r"(?:/|\bout of|\bof)\s*5\b", re.IGNORECASE)
_DIGIT = re.compile(r"(?<![\d.,-])[1-5](?![\d%]|[.,]\d)")


class Judge(Config):
    """A model as judge; higher ratings are better answers."""

    reward: Literal["judge"]
    engine: EngineConfig
    rubric: FileRef = "configs/prompts/judge/rubric.jinja"
    system: str = ""
    max_tokens: int = Field(8, ge=1)  # room for a rating with a word before it, where there are no probabilities
    samples: int = Field(1, ge=1)  # answers to average; the probabilities of the first token need only one
    temperature: float = Field(0.0, ge=0.0)

    def check(self) -> None:
        """The rubric is there, is a template, shows the answer and knows its variables; the engine lacks nothing."""
        check_shows(self.rubric, "answer", question="q", reference="r")
        check_engine(self.engine)

    @contextmanager
    def opened(self) -> Iterator[Reward]:
        """Bring the judge's engine up, and down again."""
        with open_engine(self.engine) as engine:
            yield Judging(self, engine)


class Judging:
    """A judge whose engine is up."""

    def __init__(self, config: Judge, engine: Engine) -> None:
        self.config = config
        self.engine = engine

    def score(self, rows: Sequence[Candidate]) -> list[Score]:
        """One score a row; None where the request failed or the judge gave no rating."""
        requests = {row.id: self._request(row) for row in rows}
        replies = {reply.id: reply for reply in self.engine.generate(list(requests.values()))}
        refused = [i for i, reply in replies.items() if "logprob" in reply.error.lower()]
        if refused:  # a server without log-probabilities: the written rating will do
            again = self.engine.generate([replace(requests[i], top_logprobs=0) for i in refused])
            replies.update({reply.id: reply for reply in again})
        return [score_of(replies.get(row.id)) for row in rows]

    def _request(self, row: Candidate) -> Request:
        config = self.config
        text = render(
            shipped(config.rubric),
            question=text_of(row.prompt),
            answer=text_of(row.completion),
            reference=row.reference,
        )
        system = [Message(role="system", content=config.system)] if config.system else []
        return Request(
            id=row.id,
            messages=[*system, Message(role="user", content=text)],
            images=row.images,
            n=config.samples,
            sampling=Sampling(temperature=config.temperature, max_tokens=config.max_tokens),
            seed=row_seed(0, row.id, "judge"),
            top_logprobs=TOP_LOGPROBS,
        )


def score_of(reply: Reply | None) -> Score:
    """The mean over a reply's answers of (rating - 1) / 4; None where there is no answer or none has a rating.

    Parts: `rating` (1..5, expected), `by_probability` (the share of the answers whose rating came from probabilities
    rather than from the written digit).
    """
    if reply is None or reply.error:
        return Score(None, reason=f"the judge did not answer: {reply.error if reply else 'no reply'}")
    ratings, expected = [], 0
    for i, text in enumerate(reply.texts):
        rating = expected_rating(reply.first_logprobs[i]) if i < len(reply.first_logprobs) else None
        expected += rating is not None
        if rating is None:
            rating = written_rating(text)
        if rating is not None:
            ratings.append(rating)
    if not ratings:
        said = reply.texts[0] if reply.texts else ""
        return Score(None, reason=f"the judge gave no rating from 1 to 5: {said[:80]!r}")
    mean = sum(ratings) / len(ratings)
    return Score((mean - 1) / 4, {"rating": mean, "by_probability": expected / len(ratings)})


def expected_rating(logprobs: Mapping[str, float]) -> float | None:
    """The mean rating under the probabilities (from natural logs) of the tokens that are a rating, white space around
    it allowed; None where these hold less than half of the probability, so that the token is no rating at all."""
    mass = dict.fromkeys(RATINGS, 0.0)
    for token, logprob in logprobs.items():
        if token.strip() in mass and not math.isnan(logprob):
            mass[token.strip()] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if total < _ENOUGH:
        return None
    return sum(int(rating) * p for rating, p in mass.items()) / total


def written_rating(text: str) -> float | None:
    """The one rating that a text names (`4`, `Rating: 4.`, `4/5`, `4 out of 5`); None where it names none or two."""
    found = set(_DIGIT.findall(_OUT_OF.sub(" ", text)))
    return float(found.pop()) if len(found) == 1 else None
