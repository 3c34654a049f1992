"""What is wrong with a pipeline that can be known from its file alone.

In: a pipeline whose keys, values and references are those of its stages. Out: nothing, or one UserError with a line a
problem that a stage finds in its own values.
"""

from pathlib import Path

from align.config import KeyPath, shipped
from align.errors import UserError
from align.stage import Dataset, Ref
from pipelines.pipeline import Pipeline, at_its_key

_YET_TO_BE = Path("/yet/to/be/made/artifacts")
"""Stands for folders that are not there while a file is only validated."""


def check_steps(pipeline: Pipeline) -> None:
    """What each stage finds wrong with its own values, no data and no model looked at; of files, prompts and the like
    where they are there. Raises UserError with every problem."""
    problems: list[str] = []
    names = {s.name for s in pipeline.steps}

    def stand_in(path: KeyPath, found: tuple[object, ...], value: str) -> str:
        ref = next((m for m in found if isinstance(m, Ref)), None)
        made = ref is not None and value.partition("/")[0] in names
        if not made and (any(isinstance(m, Dataset) for m in found) or (ref is not None and ref.to == "model")):
            return value
        file = shipped(Path(value).expanduser())
        if not made and ref is not None and ref.to == "file" and file.exists():
            return str(file.absolute())
        return str(_YET_TO_BE / value.replace("/", "_") / "port")

    for step in pipeline.steps:
        try:
            step.stage.map_leaves(stand_in).check()
        except UserError as error:
            lines = [line for line in str(error).splitlines() if str(_YET_TO_BE) not in line]
            problems += [at_its_key(pipeline.source, step, line) for line in lines]
    if problems:
        raise UserError("\n".join(problems))
