"""The three ways as TRL trainers over the same rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, List
from datasets import Image as ImageColumn
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from align.families import family_of
from align.training.collate import Collator, Pixels
from align.training.encode import Encoder, encode
from align.training.trainers import MendedDPO, MendedSFT
from align.tree.trl import TreeCollator, over_trees
from align.tree.vision import Images, Vision
from align.vision_cache import VisionCache, cache_key

Way = Literal["trl", "tuned", "tree"]


@dataclass(frozen=True)
class Prepared:
    """What a trainer is made of. `collator` is None where TRL brings its own; `vision` is the tree's."""

    model: Any
    processor: Any
    way: Way
    dpo: bool
    data: Any
    collator: Any
    vision: Any

    def plain_vision(self, batch: dict[str, torch.Tensor]) -> Vision:
        """The tower over the images of a batch as it was collated, the n-th under the name (n,) for SFT rows."""
        names = family_of(self.model.config).image_inputs

        def inputs(images: Images) -> dict[str, torch.Tensor]:
            n = int(images[0])
            return {name: batch[name][n : n + 1] for name in names if name in batch}

        return Vision(self.model, inputs)


def prepare(
    model: Any, processor: Any, found: list[Any], way: Way, folder: Path, dpo: bool, family: str, memory: int = 1 << 30
) -> Prepared:
    """Encode the rows, and what else a way does before it trains; features are kept in `memory` bytes and on disk."""
    if way == "trl" and family == "llava":
        names = ("prompt", "chosen", "rejected") if dpo else ("prompt", "completion")
        told = [{n: [m.model_dump() for m in getattr(row, n)] for n in names} | {"images": row.images} for row in found]
        data = Dataset.from_list(told).cast_column("images", List(ImageColumn()))
        return Prepared(model, processor, way, dpo, data, None, None)
    encoder = Encoder(processor, family_of(model.config))
    pixels = Pixels(encoder.pixels, 0 if way == "trl" else 1 << 30)
    answers = (lambda r: (r.prompt, [r.chosen, r.rejected])) if dpo else (lambda r: (r.prompt, [r.completion]))
    examples, aside = encode(found, answers, encoder, 4096, pixels.put if way == "tuned" else lambda *_: None)
    if aside:
        raise RuntimeError(f"{len(aside)} rows set aside: {aside[0].reason} {aside[0].detail}")
    pad = processor.tokenizer.pad_token_id
    collator: Any = Collator(examples, pixels, pad)
    vision = None
    if way == "tree":
        prompts = {example.image: example.prompt for example in examples}
        cache = VisionCache(cache_key(model, processor), folder / "vision", memory)

        def inputs(images: Images) -> dict[str, torch.Tensor]:
            made = encoder.pixels(prompts[images[0]], images[0])
            return {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in made.items()}

        vision = Vision(model, inputs, cache)
        for image in prompts:
            vision.features((image,))
        collator = TreeCollator(examples, vision, pad)
    data = Dataset.from_dict({"index": list(range(len(examples))), "images": [[e.image] for e in examples]})
    return Prepared(model, processor, way, dpo, data, collator, vision)


def trainer_of(given: Prepared, batch_size: int, folder: Path, **length: Any) -> Any:
    """TRL's trainer; over trees, DPO's reference is computed here."""
    on_cpu = given.model.device.type == "cpu"
    arguments = (DPOConfig if given.dpo else SFTConfig)(
        output_dir=str(folder / "out"), per_device_train_batch_size=batch_size, **length,
        gradient_checkpointing=given.way == "trl", bf16=not on_cpu, use_cpu=on_cpu, report_to=[], save_strategy="no",
        logging_steps=1, max_length=None, dataloader_pin_memory=not on_cpu, train_sampling_strategy="sequential",
        remove_unused_columns=False, learning_rate=1e-6, disable_tqdm=True, max_grad_norm=1.0,
    )  # fmt: skip
    more: dict[str, Any] = {"model": given.model, "args": arguments, "processing_class": given.processor}
    if given.collator is None:
        return (DPOTrainer if given.dpo else SFTTrainer)(train_dataset=given.data, **more)
    if given.way == "tuned":
        import trl.trainer.utils as utils

        utils._use_triton = lambda device: True  # on a CPU too, TRL's head then scores labelled positions alone
    kind: type = MendedDPO if given.dpo else MendedSFT
    if given.way == "tree":
        kind = over_trees(kind)
    trainer = kind(train_dataset=given.data, data_collator=given.collator, **more)
    if given.way == "tree" and given.dpo:
        given.collator.references = trainer.references(len(given.data))
    return trainer
