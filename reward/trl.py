"""A reward as a reward function of TRL's GRPO and RLOO trainers.

In: what these trainers hand over, prompts and completions as texts or messages and the data set's columns by name, each
a list of one entry a completion. Out: one number a completion, None where it could not be scored (TRL leaves those out
of the group's mean). Images come from the column `image` or `images`, as paths or as PIL images.
"""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.engine import EngineAway
from align.errors import UserError, did_you_mean
from align.images import BadImage, upright
from align.records import Candidate, row_id
from reward.asks import BadAsk, Images, read_ask
from reward.base import Reward, Score
from reward.load import load_reward

_LOG = logging.getLogger(__name__)


class TrlReward:
    """Call it, or hand it to `GRPOTrainer(reward_funcs=...)`. `reference` names the column with the right answers: a
    text, a number, a date or a boolean each, or a list or an array of all that are right."""

    def __init__(self, reward: Reward, reference: str | None = None, name: str = "reward") -> None:
        self.reward = reward
        self.reference = reference
        self.__name__ = name  # what TRL calls it in its logs

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One score a completion. Raises UserError where the column of `reference` is missing."""
        if self.reference and self.reference not in columns:
            told = did_you_mean(self.reference, columns)
            raise UserError(f"the data set has no column {self.reference!r}, the reward's reference{told}")
        with (
            tempfile.TemporaryDirectory(prefix="vlm-align-") as folder,
            Images(Path.cwd(), Path(folder)) as taken,
        ):
            return self._scores(taken, prompts, completions, columns)

    def _scores(
        self, taken: Images, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[float | None]:
        references = columns[self.reference] if self.reference else [None] * len(prompts)
        given_images = next((columns[name] for name in ("images", "image") if columns.get(name) is not None), None)
        images = [None] * len(prompts) if given_images is None else given_images
        found: list[float | None] = [None] * len(prompts)
        asked: list[tuple[int, Candidate]] = []
        unscored: list[str] = []
        kept: dict[int, tuple[Any, str]] = {}  # pictures, which completions often share, and their paths, by id
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                given = {
                    "prompt": without_images(prompt),
                    "images": [_path(image, taken.folder, kept) for image in _listed(images[i])],
                    "completion": completion,
                    "reference": references[i],
                }
                (candidate,) = read_ask(given, taken, row_id("trl", i)).candidates
            except (BadAsk, BadImage, OSError) as problem:  # OSError: an image that cannot be kept
                unscored.append(str(problem))
                continue
            names = [image.removeprefix(str(taken.folder)) for image in candidate.images]  # the same in every call
            question = row_id("trl", given["prompt"], names)  # completions of a prompt are of one
            asked.append((i, candidate.model_copy(update={"question_id": question})))
        try:
            scores = self.reward.score([candidate for _, candidate in asked]) if asked else []
        except EngineAway as problem:  # a training outlives an outage: this batch has no scores, the next one may
            scores = [Score(None, reason=str(problem)) for _ in asked]
        for (i, _), score in zip(asked, scores, strict=True):
            found[i] = score.value
            if score.value is None:
                unscored.append(score.reason)
        if unscored:
            _LOG.warning("%d of %d completions have no score, the first: %s", len(unscored), len(found), unscored[0])
        return found


@contextmanager
def trl_reward(source: str | Path | Mapping[str, Any], reference: str | None = None) -> Iterator[TrlReward]:
    """A reward function from a config: `with trl_reward("rules.yaml", reference="answer") as reward: GRPOTrainer(...,
    reward_funcs=reward)`. Raises UserError."""
    with load_reward(source) as reward:
        yield TrlReward(reward, reference)


def _path(image: Any, folder: Path, kept: dict[int, tuple[Any, str]]) -> str:
    """A path as it is; a PIL image, or bytes in the form of data sets, as a file named by its content."""
    if isinstance(image, str | Path):
        return str(image)
    if id(image) not in kept:
        if isinstance(image, Mapping):
            if not image.get("bytes"):
                return str(image.get("path"))
            data = bytes(image["bytes"])
            path = folder / hashlib.sha256(data).hexdigest()
            path.write_bytes(data)
        else:
            picture = upright(image)
            path = folder / hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
            if not path.exists():
                picture.save(path, "PNG", compress_level=1)
        kept[id(image)] = (image, str(path))
    return kept[id(image)][1]


def _listed(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def without_images(prompt: Any) -> Any:
    """A prompt whose messages hold text alone: TRL puts image parts where the images go, which come as a column."""
    if not isinstance(prompt, list | tuple):
        return prompt
    return [_without_images(turn) if isinstance(turn, Mapping) else turn for turn in prompt]


def _without_images(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if isinstance(content, list | tuple):
        content = [part for part in content if not (isinstance(part, Mapping) and part.get("type") == "image")]
    return {**turn, "content": content}
