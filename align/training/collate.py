"""Examples into padded batches, with each image's pixels processed once while memory lasts.

In: examples by number (what a Trainer's data loader hands over). Out: the model's inputs, padded on the right, with
`labels` for SFT or `completion_mask` for DPO, as TRL's own vision collators name and order them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from align.training.encode import Encoded, Example

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label of a token that is no part of the loss (cross entropy's ignore_index)."""


class Pixels:
    """The images' inputs by path, the least recently used ones forgotten beyond `limit` bytes and made anew."""

    def __init__(self, make: Callable[[str, str], dict[str, "Tensor"]], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._kept: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def put(self, image: str, inputs: dict[str, "Tensor"]) -> None:
        """Keep an image's inputs, if they fit."""
        if image in self._kept:
            return
        self._kept[image] = inputs
        self._bytes += _bytes_of(inputs)
        while self._bytes > self._limit:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= _bytes_of(forgotten)

    def get(self, example: Example) -> dict[str, "Tensor"]:
        """The inputs of an example's image, first axis as the processor gives it for one row."""
        if example.image in self._kept:
            self._kept.move_to_end(example.image)
            return self._kept[example.image]
        inputs = self._make(example.prompt, example.image)
        self.put(example.image, inputs)
        return inputs


def _bytes_of(inputs: dict[str, "Tensor"]) -> int:
    return sum(tensor.nbytes for tensor in inputs.values())


class Collator:
    """The `data_collator` of a Trainer over rows {"index": n}. With several answers an example, the batch holds all
    first answers, then all second ones, which is the order of TRL's DPO loss."""

    def __init__(self, examples: Sequence[Example], pixels: Pixels, pad_token_id: int) -> None:
        self.examples = examples
        self.pixels = pixels
        self.pad_token_id = pad_token_id
        self.references: Tensor | None = None  # the reference's log-probabilities, where known

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        return collated(self, features)

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The model's inputs, and which tokens are scored, `completion_mask`."""
        rows = [(example, example.sequences[n]) for n in range(len(examples[0].sequences)) for example in examples]
        batch: dict[str, Any] = pad([sequence for _, sequence in rows], self.pad_token_id)
        batch.update(stack([self.pixels.get(example) for example, _ in rows]))
        batch["completion_mask"] = scored_mask([sequence for _, sequence in rows])
        return batch


def collated(collator: Any, features: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of examples by number as TRL's trainers take it: `labels` for one answer an example, else
    `completion_mask`; what is known of the reference [examples, 2 or 3]; the batch with corrupted images."""
    chosen = [collator.examples[feature["index"]] for feature in features]
    batch: dict[str, Any] = collator.batch(chosen)
    if len(chosen[0].sequences) == 1:
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
    if collator.references is not None:
        known = collator.references[[feature["index"] for feature in features]]
        for name, column in zip(
            ("ref_chosen_logps", "ref_rejected_logps", "ref_corrupted_logps"), known.T, strict=False
        ):
            batch[name] = column
    if chosen[0].corrupted is not None:
        batch["corrupted"] = collator.batch([example.corrupted for example in chosen])
    return batch


def scored_mask(sequences: Sequence[Encoded]) -> "Tensor":
    """[rows, longest] int64, 1 where a token is scored."""
    import torch

    mask = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in zip(mask, sequences, strict=True):
        row[: len(sequence)] = sequence.scored
    return mask


def pad(sequences: Sequence[Encoded], pad_token_id: int, names: Sequence[str] = ()) -> dict[str, "Tensor"]:
    """Inputs along the tokens, [rows, longest, ...] int64, padded on the right: ids with the pad token, else 0; of
    these names, by default all of the first sequence."""
    import torch

    longest = max(map(len, sequences))
    batch = {}
    for name in names or sequences[0].inputs:
        first = sequences[0].inputs[name]
        filler = pad_token_id if name == "input_ids" else 0
        out = torch.full((len(sequences), longest, *first.shape[1:]), filler, dtype=torch.int64)
        for row, sequence in zip(out, sequences, strict=True):
            row[: len(sequence)] = sequence.inputs[name]
        batch[name] = out
    return batch


def stack(inputs: Sequence[dict[str, "Tensor"]]) -> dict[str, "Tensor"]:
    """Image inputs of several rows as one batch, along their first axis; where rows differ in another axis (number of
    tiles, height, width) the smaller ones are filled with zeros, as the processors do."""
    import torch

    batch = {}
    for name in inputs[0]:
        tensors = [row[name] for row in inputs]
        shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        batch[name] = torch.cat([_grown(tensor, shape) for tensor in tensors])
    return batch


def _grown(tensor: "Tensor", shape: list[int]) -> "Tensor":
    if list(tensor.shape[1:]) == shape:
        return tensor
    out = tensor.new_zeros((tensor.shape[0], *shape))
    out[tuple(slice(n) for n in tensor.shape)] = tensor
    return out
