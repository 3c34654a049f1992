"""A reward that says whether an answer is safe: a moderation model of the Llama Guard kind.

In: candidates with their questions and images. Out: the probability that the guard finds the answer, or the question,
safe, 0..1; every category that it names is a part (`S1`: 1). The categories and the instruction stand in the model's
own chat template (Llama Guard 3 Vision, Llama Guard 4), which takes a conversation and asks about its last turn, so
none is written here. Formats: Llama Guard, arXiv 2312.06674; Llama Guard 3 Vision, arXiv 2411.10414.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from pydantic import Field

from align.config import Config
from align.engine import Engine, EngineConfig, Reply, Request, check_engine, open_engine
from align.records import Candidate, Message, Sampling
from reward.asking import EMPTY, TOP_LOGPROBS, ask, is_empty, mass, plain_turns
from reward.base import Reward, Score

VERDICTS = {"safe": "safe", "unsafe": "unsafe", "un": "unsafe", "uns": "unsafe"}
"""Tokens that a verdict begins with: a tokenizer may split `unsafe`."""
_CATEGORY = re.compile(r"[A-Z]\d{1,2}")
MOST_TOKENS = 64  # `unsafe` and every category there is


class Guard(Config):
    """A model that answers `safe`, or `unsafe` and the categories."""

    reward: Literal["guard"]
    engine: EngineConfig
    of: list[Literal["prompt", "answer"]] = Field(["answer"], min_length=1)  # the value is the least of them

    def check(self) -> None:
        """The engine lacks nothing."""
        check_engine(self.engine)

    @contextmanager
    def opened(self, seed: int = 0) -> Iterator[Reward]:
        """Bring the guard's engine up, and down again. Nothing is drawn."""
        with open_engine(self.engine) as engine:
            yield Guarding(self, engine)


class Guarding:
    """A guard whose engine is up."""

    def __init__(self, config: Guard, engine: Engine) -> None:
        self.config = config
        self.engine = engine

    def score(self, rows: Sequence[Candidate]) -> list[Score]:
        """One score a row; None where there is no answer, a request failed or the guard gave no verdict."""
        requests = {
            (i, part): _request(row, part) for i, row in enumerate(rows) for part in self.config.of if not is_empty(row)
        }
        replies = ask(self.engine, requests)
        scores = []
        for i, row in enumerate(rows):
            found: dict[str, Score] = {}
            for part in self.config.of:
                if (i, part) in replies:
                    found[part] = verdict(replies[i, part])
            scores.append(Score(None, reason=EMPTY) if is_empty(row) else combined(found))
        return scores


def _request(row: Candidate, part: str) -> Request:
    """The conversation up to the turn that is moderated. A system turn goes: the templates want turns that alternate,
    the user's first."""
    turns = [*row.prompt, *row.completion] if part == "answer" else row.prompt
    return Request(
        id="",
        messages=merged(plain_turns([turn for turn in turns if turn.role != "system"])),
        images=row.images,
        sampling=Sampling(temperature=0.0, max_tokens=MOST_TOKENS),
        top_logprobs=TOP_LOGPROBS,
    )


def merged(turns: Sequence[Message]) -> list[Message]:
    """Turns of one role after another as one turn."""
    found: list[Message] = []
    for turn in turns:
        if found and found[-1].role == turn.role:
            turn = turn.model_copy(update={"content": f"{found.pop().content}\n\n{turn.content}"})
        found.append(turn)
    return found


def verdict(reply: Reply) -> Score:
    """The probability of `safe` by the first token that is not white space, else 1 or 0 as written; None where there
    is no verdict. Parts: the categories that an `unsafe` answer names, `by_probability`."""
    if reply.error:
        return Score(None, reason=f"the guard did not answer: {reply.error}")
    written = read(reply.texts[0]) if reply.texts else None
    if written is None:
        said = reply.texts[0] if reply.texts else ""
        return Score(None, reason=f"the guard said neither safe nor unsafe: {said[:80]!r}")
    safe, categories = written
    shares = mass(reply.first_logprobs[0], VERDICTS) if reply.first_logprobs else None
    value = float(safe) if shares is None else shares["safe"]
    return Score(value, {**dict.fromkeys(categories, 1.0), "by_probability": float(shares is not None)})


def read(text: str) -> tuple[bool, list[str]] | None:
    """Whether a text says safe, and the categories behind `unsafe`, each once; None where it is no verdict.

    Strictly the published form: `safe`, or `unsafe` and on the next line the categories with commas between.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or lines[0].lower() not in ("safe", "unsafe"):
        return None
    if lines[0].lower() == "safe":
        return True, []
    return False, list(dict.fromkeys(_CATEGORY.findall(lines[1]))) if len(lines) > 1 else []


def combined(found: Mapping[str, Score]) -> Score:
    """The least of the verdicts; a part is named by what was moderated where that is more than one thing."""
    if len(found) == 1:
        return next(iter(found.values()))
    parts: dict[str, float | None] = {}
    for name, score in found.items():
        parts[name] = score.value
        parts.update({f"{name}.{part}": value for part, value in score.parts.items()})
    values = [score.value for score in found.values() if score.value is not None]
    if len(values) < len(found):
        reasons = [f"{name}: {score.reason}" for name, score in found.items() if score.value is None]
        return Score(None, parts, "; ".join(reasons))
    return Score(min(values), parts)
