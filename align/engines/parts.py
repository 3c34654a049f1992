"""The parts of a request that not every OpenAI-compatible server knows, told by the words it refuses one with.

In: how a request was sent and what came back. Out: what to leave out of it, and of those to come: what at least one
request was answered without and none was ever answered with. So one odd request never changes how others are asked.
"""

import re
from typing import Literal

from align.engine import Request

Part = Literal["n", "max_tokens", "json_schema"]

_REFUSED = r"(?s)(400|415|422|501): "
_NAMED: dict[Part, re.Pattern[str]] = {
    "json_schema": re.compile(_REFUSED + r".*(response_?format|schema|guided|grammar|structured)", re.IGNORECASE),
    # a prompt that is too long for its max_tokens is refused too, in other words
    "max_tokens": re.compile(
        _REFUSED + r"(?=.*max_tokens)(?=.*(max_completion_tokens|support|permitted|unknown|unrecogni|unexpected))",
        re.IGNORECASE,
    ),
    "n": re.compile(
        _REFUSED + r".*\b(n|best_of|candidates?|choices|samples)\b|the server sent \d+ choices", re.IGNORECASE
    ),
}
_UNNAMED = re.compile(r"(400|422|501): ")


class Parts:
    """What a server was seen to know, and what it was seen to lack."""

    def __init__(self) -> None:
        self._known: set[Part] = set()
        self._lacks: set[Part] = set()

    def lacks(self) -> set[Part]:
        """What to leave out from the start."""
        return set(self._lacks)

    def refused(self, request: Request, without: set[Part], error: str) -> Part | None:
        """The part that a request, sent `without` some, was refused for by name; not `n`, which `refused_n` tells."""
        return next((p for p in ("json_schema", "max_tokens") if self._sent(p, request, without, error)), None)

    def refused_n(self, request: Request, error: str) -> bool:
        """Whether a request for several answers may be answered one by one: its refusal names their number, or names
        nothing and no request for several was ever answered."""
        if request.n == 1:
            return False
        return bool(_NAMED["n"].match(error) or ("n" not in self._known and _UNNAMED.match(error)))

    def answered(self, request: Request, without: set[Part]) -> None:
        """A request, sent `without` some parts, was answered."""
        has: dict[Part, bool] = {"n": request.n > 1, "max_tokens": True, "json_schema": request.json_schema is not None}
        self._known |= {part for part, there in has.items() if there and part not in without}
        self._lacks = (self._lacks | without) - self._known

    def _sent(self, part: Part, request: Request, without: set[Part], error: str) -> bool:
        there = part not in without and (part != "json_schema" or request.json_schema is not None)
        return there and _NAMED[part].match(error) is not None
