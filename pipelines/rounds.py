"""A block of stages written once and run several times, each round from the one before it.

In: the mapping of `stages`, in which an entry with `rounds: N` holds stages of its own. Out: ordinary entries in order,
round 1's as `<block>1.<stage>` and so on, each with what a reference means in it. Nothing after this knows of rounds:
plan, cache, show and report see stages.

```yaml
round:
  rounds: 3
  first: {dpo: sft}              # what `previous.dpo` is in round 1; `stage/output` says it of one output
  stages:
    own: {stage: sample, input: clean, samplers: [{engine: {model: previous.dpo, ...}, ...}]}
    dpo: {stage: dpo, input: own, model: previous.dpo}
```
Inside the block a stage's plain name is this round's, `previous.<stage>` the round's before, `${round}` the number of
the round; below it `<block>.<stage>` is the last round's, `<block>2.<stage>` the second's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from align.config import KeyPath, Source, interpolate
from align.errors import UserError, did_you_mean

KEYS = ("rounds", "first", "stages")
PREVIOUS = "previous."


@dataclass(frozen=True)
class Entry:
    """One stage's name and keys, where they stand in the file, and what is peculiar to its place."""

    name: str
    config: Any
    at: KeyPath
    params: Mapping[str, Any] = field(default_factory=dict)  # beside the pipeline's
    names: Mapping[str, str] = field(default_factory=dict)  # a reference's first word -> what it means here
    round: int = 0

    def meaning(self, value: str) -> str:
        """What the reference `value`, with or without a port, means in this place. Raises UserError."""
        if value in self.names:
            return self.names[value]
        name, slash, port = value.partition("/")
        if self.round and name.startswith(PREVIOUS) and name not in self.names:
            stage = name.removeprefix(PREVIOUS)
            if stage in self.names:
                raise UserError(f"{name!r} has no meaning in round 1: say `first: {{{stage}: ...}}` beside `rounds`")
            raise UserError(f"no stage of the round is called {stage!r}{did_you_mean(stage, self.names)}")
        return self.names.get(name, name) + slash + port


def unrolled(stages: Mapping[str, Any], params: Mapping[str, Any], source: Source) -> Iterator[Entry]:
    """Every stage of a pipeline in order, blocks of rounds written out. Raises UserError for a bad block."""
    last: dict[str, str] = {}  # `<block>.<stage>` -> the last round's
    for name, config in stages.items():
        at: KeyPath = ("stages", name)
        if not isinstance(config, dict) or "rounds" not in config:
            yield Entry(str(name), config, at, names=dict(last))
            continue
        count, first, inside = _block(config, params, source, at)
        for number in range(1, count + 1):
            own = {stage: f"{name}{number}.{stage}" for stage in inside}
            if number == 1:
                before = {f"{PREVIOUS}{stage}": last.get(value, value) for stage, value in first.items()}
            else:
                before = {f"{PREVIOUS}{stage}": f"{name}{number - 1}.{stage}" for stage in inside}
            for stage, keys in inside.items():
                place = (*at, "stages", stage)
                yield Entry(own[stage], keys, place, {"round": number}, {**last, **own, **before}, number)
        last |= {f"{name}.{stage}": f"{name}{count}.{stage}" for stage in inside}


def _block(
    config: dict[str, Any], params: Mapping[str, Any], source: Source, at: KeyPath
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The number of rounds, what comes before the first, and the stages of a block."""
    for key in config:
        if key not in KEYS:
            raise UserError(f"{source.at((*at, key))}: unknown key{did_you_mean(str(key), KEYS)}")
    count = interpolate(config["rounds"], params, source, (*at, "rounds"))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{source.at((*at, 'rounds'))}: a number of rounds, at least 1, is expected, not {count!r}")
    inside = config.get("stages")
    if not isinstance(inside, dict) or not inside:
        raise UserError(f"{source.at((*at, 'stages'))}: a mapping of stage names to stages is required")
    first = interpolate(config.get("first") or {}, params, source, (*at, "first"))
    if not isinstance(first, dict):
        raise UserError(f"{source.at((*at, 'first'))}: a mapping of the round's stages to stages above is expected")
    for stage, value in first.items():
        place = source.at((*at, "first", stage))
        if str(stage).partition("/")[0] not in inside:
            raise UserError(f"{place}: no stage of the round has this name{did_you_mean(str(stage), inside)}")
        if not isinstance(value, str):
            raise UserError(f"{place}: the name of a stage above, or a model, is expected, not {value!r}")
    return count, first, inside
