"""TRL's SFT and DPO over trees: the losses, metrics, callbacks and checkpoints stay TRL's.

In: encoded examples and TRL's arguments. Out: TRL's trainer with two things exchanged: what collates a batch, and what
answers when TRL's loss calls the model for log-probabilities. The loss reads nothing else (trl 1.16), so all its kinds
work. The reference's log-probabilities are taken from the batch, where the collator has them, or computed with the
adapter off, in one pass over the same trees.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from align.progress import progress
from align.training.collate import IGNORED, Pixels, pad
from align.training.encode import Encoded, Example
from align.tree.batching import ImageOrder
from align.tree.forward import Tree, score
from align.tree.layout import Path
from align.tree.references import References, reference_digest, sample_digest
from align.tree.vision import Entrance, Images, Vision
from align.vision_cache import cache_key, file_digest, open_cache


@dataclass(frozen=True)
class Forest:
    """The trees of a batch; `rows[k]` is the batch's row that is the k-th path of all."""

    trees: tuple[Tree, ...]
    rows: Tensor


def path_of(sequence: Encoded, entrance: Entrance, positions: Tensor | None = None) -> Path:
    """An encoded prompt with its answer as a path: what belongs to the answer is scored."""
    ids = sequence.inputs["input_ids"].long()
    labels = ids.clone()
    labels[: sequence.start] = IGNORED
    sides = {name: sequence.inputs[name] for name in entrance.sides if name in sequence.inputs}
    return Path(ids, labels, positions, sides)


class TreeCollator:
    """The `data_collator` of a trainer over rows {"index": n}: the tokens as TRL's collators lay them out, for its
    masks and counts, and the trees that the log-probabilities come from. No pixel is touched here.

    `references`, where set, holds the reference's log-probabilities, [examples, 2]; `store` is where they are kept."""

    def __init__(
        self, examples: Sequence[Example], vision: Vision, pad_token_id: int, store: References | None = None
    ) -> None:
        self.examples = examples
        self.vision = vision
        self.pad_token_id = pad_token_id
        self.store = store
        self.references: Tensor | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        chosen = [self.examples[feature["index"]] for feature in features]
        answers = len(chosen[0].sequences)
        rows = [(example.image, example.sequences[n]) for n in range(answers) for example in chosen]
        padded = pad([sequence for _, sequence in rows], self.pad_token_id)
        batch: dict[str, Any] = {name: padded[name] for name in ("input_ids", "attention_mask")}
        scored = torch.zeros_like(batch["input_ids"])
        for row, (_, sequence) in zip(scored, rows, strict=True):
            row[sequence.start : len(sequence)] = 1
        if answers == 1:
            batch["labels"] = batch["input_ids"].masked_fill(scored == 0, IGNORED)
        else:
            batch["completion_mask"] = scored
        if self.references is not None:
            known = self.references[[feature["index"] for feature in features]]
            batch["ref_chosen_logps"], batch["ref_rejected_logps"] = known[:, 0], known[:, 1]
        batch["forest"] = self._forest([((image,), sequence) for image, sequence in rows])
        self.vision.prefetch([tree.images for tree in batch["forest"].trees])
        return batch

    def sample_keys(self, example: int, how: str) -> tuple[str, str]:
        """The digests of an example's two sequences, see `sample_digest`."""
        chosen = self.examples[example]
        images = [file_digest(chosen.image)]
        first, second = (sample_digest(self._path((chosen.image,), s), images, how) for s in chosen.sequences)
        return first, second

    def _path(self, images: Images, sequence: Encoded) -> Path:
        return path_of(sequence, self.vision.entrance, self.vision.positions(images, sequence.inputs))

    def _forest(self, rows: Sequence[tuple[Images, Encoded]]) -> Forest:
        groups: dict[Images, list[int]] = {}
        for row, (images, _) in enumerate(rows):
            groups.setdefault(images, []).append(row)
        trees = []
        for images, members in groups.items():
            trees.append(Tree.of([self._path(images, rows[row][1]) for row in members], images))
        return Forest(tuple(trees), torch.tensor([row for members in groups.values() for row in members]))


def tree_collator(
    model: Any, processor: Any, pixels: Pixels, examples: Sequence[Example], folder: FilePath, memory: int
) -> tuple[TreeCollator, str]:
    """What a trainer over trees needs, and the line that says where the images' features are kept and why. `folder`
    holds features and reference log-probabilities for this and later runs; `memory` is in bytes."""
    first = {example.image: example for example in examples}

    def inputs(images: Images) -> dict[str, Tensor]:
        (image,) = images
        return pixels.get(first[image])

    vision = Vision(model, inputs)
    line = "vision features computed each time: the tower trains"
    if vision.frozen:
        rows = [(image,) for image in first]
        with torch.no_grad():
            cache, chosen = open_cache(cache_key(model, processor), folder / "vision", rows, vision.features, memory)
        vision, line = Vision(model, inputs, cache), chosen.reason
    pad_token_id = processor.tokenizer.pad_token_id
    store = References(folder / "references.sqlite")
    return TreeCollator(examples, vision, 0 if pad_token_id is None else pad_token_id, store), line


class _Planted:
    """Stands where TRL's loss calls the model: `model(..., labels=..., fused_lm_head=True)` by trees."""

    def __init__(self, model: Any, vision: Vision, autocast: Callable[[], Any]) -> None:
        self._model = model
        self._vision = vision
        self._autocast = autocast

    def __call__(self, *, forest: Forest | None = None, fused_lm_head: bool = False, **_: Any) -> Any:
        if forest is None or not fused_lm_head:
            raise NotImplementedError("over trees the model gives log-probabilities and no logits")
        with self._autocast():
            scores = score(self._model, forest.trees, self._vision)
        back = forest.rows.argsort().to(scores.log_probs.device)
        names = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs", "label_mask")
        return SimpleNamespace(**{name: getattr(scores, name)[back] for name in names}, aux_loss=None)


class OverTrees:
    """Mixed in before a TRL trainer whose data collator is a `TreeCollator`."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's own loss. Raises NotImplementedError where it would need logits."""
        if "completion_mask" in inputs and "ref_chosen_logps" not in inputs:
            known = self.compute_ref_log_probs(self.model, inputs)  # type: ignore[attr-defined]
            inputs = {**inputs, "ref_chosen_logps": known[0], "ref_rejected_logps": known[1]}
        if "completion_mask" in inputs:
            self.precompute_ref_logps = True
        parent: Any = super()
        return parent.compute_loss(self._planted(model), inputs, return_outputs, num_items_in_batch)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's own, which switches the adapter off (or to the frozen copy) around the call."""
        parent: Any = super()
        return parent.compute_ref_log_probs(self._planted(model), inputs)

    def references(self, examples: int) -> Tensor | None:
        """The reference's log-probabilities [examples, 2] (chosen, rejected), float32 on the CPU, None for SFT. Those
        that the collator's store knows are taken from it, the others computed image by image and kept there."""
        trainer: Any = self
        collator: TreeCollator = trainer.data_collator
        if len(collator.examples[0].sequences) == 1:
            return None
        trainer.model.eval()
        reference, keys = "", [("", "")] * examples
        known: dict[str, float] = {}
        if collator.store is not None:
            adapter = "ref" if "ref" in trainer.model.peft_config else None
            reference = reference_digest(trainer.model, trainer.processing_class, adapter)
            keys = [collator.sample_keys(i, f"ld_alpha {trainer.ld_alpha}") for i in range(examples)]
            known = collator.store.known(reference, [key for pair in keys for key in pair])
        found = torch.zeros(examples, 2)
        missing = []
        for i in sorted(range(examples), key=lambda i: (collator.examples[i].image, i)):
            if all(key in known for key in keys[i]):
                found[i] = torch.tensor([known[key] for key in keys[i]])
            else:
                missing.append(i)
        size = trainer.args.per_device_train_batch_size
        with progress(len(missing), "reference") as bar:
            for start in range(0, len(missing), size):
                rows = missing[start : start + size]
                batch = trainer._prepare_inputs(collator([{"index": i} for i in rows]))
                found[rows] = torch.stack(self.compute_ref_log_probs(trainer.model, batch), dim=1).float().cpu()
                if collator.store is not None:
                    numbers = {k: v for i in rows for k, v in zip(keys[i], found[i].tolist(), strict=True)}
                    collator.store.keep(reference, numbers)
                bar.update(len(rows))
        return found

    def _planted(self, model: Any) -> _Planted:
        trainer: Any = self
        return _Planted(model, trainer.data_collator.vision, trainer.accelerator.autocast)

    def _get_train_sampler(self, train_dataset: Any = None) -> ImageOrder:
        """Rows of one image next to each other, unless the order is to be the data set's own."""
        trainer: Any = self
        if trainer.args.train_sampling_strategy != "random":
            parent: Any = super()
            return parent._get_train_sampler(train_dataset)  # type: ignore[no-any-return]
        images = [example.image for example in trainer.data_collator.examples]
        return ImageOrder(images, trainer.args.data_seed if trainer.args.data_seed is not None else trainer.args.seed)


def over_trees(trainer: type) -> type:
    """A TRL trainer's class, over trees."""
    return type(f"{trainer.__name__}OverTrees", (OverTrees, trainer), {})
