"""What a reward is: a scorer of candidate answers that depends on each row alone.

In: candidates. Out: one `Score` a row, in the order of the rows. The configs of the kinds of reward (`reward/rules.py`,
`judge.py`, `combine.py`) are what a user writes; `opened` turns one into something that scores.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from align.records import Candidate


@dataclass(frozen=True)
class Score:
    """The worth of one candidate: higher is better, 0..1 for every kind of reward here.

    `value` is None where the row could not be scored, never 0, and `reason` says why. `parts` is what the value was
    made of.
    """

    value: float | None
    parts: dict[str, float | None] = field(default_factory=dict)
    reason: str = ""


class Reward(Protocol):
    """Scores candidates. Order of rows and size of batches never change a score."""

    def score(self, rows: Sequence[Candidate]) -> list[Score]:
        """One score a row, in their order. Raises EngineDied where a model behind it is gone for good."""
        ...


class RewardKind(Protocol):
    """A reward as configured: what each member of the union in `reward/load.py` provides."""

    def check(self) -> None:
        """Find the user's mistakes that types cannot say. Raises UserError."""
        ...

    def opened(self) -> AbstractContextManager[Reward]:
        """Bring up what scoring needs, and down again however the block ends."""
        ...
