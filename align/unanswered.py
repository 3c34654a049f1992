"""A model that answered none of a stage's requests: said in one line, where a result without rows would be kept.

In: the rows that the stage set aside, and how a missing answer reads there. Out: the error, and shards that the next
run asks again.
"""

from collections import Counter
from collections.abc import Callable

from align.artifact import Out
from align.errors import UserError
from align.records import Dropped, read_parquet

NO_ANSWER = "no answer"
"""The reason of a row whose request failed; its detail says how."""
BAD_IMAGE = "image: "
"""How the error of a request begins that no model ever saw."""


def stop_unanswered(out: Out, error_of: Callable[[Dropped], str], whose: str) -> None:
    """Stop a stage none of whose requests was answered. `error_of` gives the engine's error for a row that was set
    aside for it, and an empty text for others. A row whose image cannot be read says nothing about the model.

    Raises UserError with the error that came most often; shards that hold such rows are done again by the next run.
    """
    errors: Counter[str] = Counter()
    done = []
    for part in sorted((out.path / "dropped").glob("part-*.parquet")):
        found = [e for d in read_parquet([part], Dropped) if (e := error_of(d)) and not e.startswith(BAD_IMAGE)]
        errors.update(found)
        if found:
            done.append(out.path / "shards" / f"{part.stem}.json")
    if errors:
        for shard in done:
            shard.unlink()
        (error, _), *_ = errors.most_common(1)
        raise UserError(f"{whose} answered none of {errors.total()} requests; it says: {error}")
