"""One workload in one way, in a process of its own: what it costs, and the numbers that must be equal in all ways.

Ways: `trl` is TRL as it comes (Mllama with a collator that works); `tuned` is TRL with checkpointing off, images
decoded and processed once, and only labelled positions at the head; `tree` is this project's.
"""

import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, List
from datasets import Image as ImageColumn
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from align.adapter import Preset, attach
from align.families import family_of
from align.training.collate import Collator, Pixels
from align.training.encode import Encoder, encode
from align.training.trainers import MendedDPO, MendedSFT
from align.tree.forward import Tree, score
from align.tree.layout import IGNORED
from align.tree.layout import Path as TokenPath
from align.tree.trl import TreeCollator, over_trees
from align.tree.vision import Images, Vision
from align.vision_cache import VisionCache, cache_key
from benchmarks import models

Way = Literal["trl", "tuned", "tree"]


@dataclass(frozen=True)
class Workload:
    """What is trained or scored: `images` a batch, `each` rows an image; words in questions and answers."""

    about: str
    family: Literal["llava", "mllama"]
    kind: Literal["sft", "dpo", "score"]
    images: int
    each: int
    question: int
    low: int
    high: int
    target: tuple[float, float]  # against TRL as it comes, against TRL tuned


WORKLOADS: dict[str, Workload] = {
    "W1": Workload("Mllama DPO", "mllama", "dpo", 4, 1, 24, 16, 64, (15, 9)),
    "W2": Workload("Mllama SFT, 64-word answers", "mllama", "sft", 4, 1, 24, 64, 64, (9, 4)),
    "W3": Workload("LLaVA SFT, 8 short answers an image", "llava", "sft", 1, 8, 12, 2, 8, (12, 6)),
    "W4a": Workload("LLaVA DPO, 1 pair an image", "llava", "dpo", 4, 1, 24, 16, 64, (6, 3.3)),
    "W4b": Workload("LLaVA DPO, 4 pairs an image", "llava", "dpo", 1, 4, 24, 16, 64, (10, 6)),
    "W5a": Workload("8 candidates scored", "llava", "score", 4, 8, 16, 8, 48, (5, 5)),
    "W5b": Workload("16 candidates scored", "llava", "score", 2, 16, 16, 8, 48, (8, 8)),
}


class _Clock(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.at: list[float] = []
        self.first: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs and not self.first:
            self.first = {"loss": float(logs["loss"]), "grad_norm": float(logs["grad_norm"])}


def _memory() -> float:
    """The process's peak so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, way: Way, steps: int, folder: Path) -> dict[str, Any]:
    """`seconds` by step, `preparation` in seconds, `peak` MiB above what it took to load, and what must be equal."""
    warnings.simplefilter("ignore")
    work = WORKLOADS[name]
    found = models.rows(
        folder, work.images * (1 if work.kind == "score" else steps), work.each, work.kind == "dpo",
        work.question, work.low, work.high,
    )  # fmt: skip
    model, processor = getattr(models, work.family)()
    if work.kind == "score":
        return _score(model, processor, found, work, way, steps)
    model = attach(model, Preset(rank=8, alpha=16), seed=0)
    before, started = _memory(), time.perf_counter()
    trainer = _trainer(model, processor, found, work, way, steps, folder)
    preparation = time.perf_counter() - started
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = [b - a for a, b in zip(clock.at, clock.at[1:], strict=False)]
    return {"seconds": seconds, "preparation": preparation, "peak": _memory() - before, "equal": clock.first}


def _arguments(work: Workload, way: Way, steps: int, folder: Path) -> Any:
    return (DPOConfig if work.kind == "dpo" else SFTConfig)(
        output_dir=str(folder / "out"), per_device_train_batch_size=work.images * work.each, max_steps=steps,
        gradient_checkpointing=way == "trl", bf16=False, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=1, max_length=None, dataloader_pin_memory=False, train_sampling_strategy="sequential",
        remove_unused_columns=False, learning_rate=1e-6, disable_tqdm=True, max_grad_norm=1.0,
    )  # fmt: skip


def _trainer(model: Any, processor: Any, found: list[Any], work: Workload, way: Way, steps: int, folder: Path) -> Any:
    arguments, dpo = _arguments(work, way, steps, folder), work.kind == "dpo"
    if way == "trl" and work.family == "llava":
        names = ("prompt", "chosen", "rejected") if dpo else ("prompt", "completion")
        told = [{n: [m.model_dump() for m in getattr(row, n)] for n in names} | {"images": row.images} for row in found]
        data = Dataset.from_list(told).cast_column("images", List(ImageColumn()))
        bare = DPOTrainer if dpo else SFTTrainer
        return bare(model=model, args=arguments, train_dataset=data, processing_class=processor)
    encoder = Encoder(processor, family_of(model.config))
    pixels = Pixels(encoder.pixels, 0 if way == "trl" else 1 << 30)
    answers = (lambda r: (r.prompt, [r.chosen, r.rejected])) if dpo else (lambda r: (r.prompt, [r.completion]))
    keep = (lambda *_: None) if way == "tree" else pixels.put
    examples, aside = encode(found, answers, encoder, 4096, keep)
    if aside:
        raise RuntimeError(f"{len(aside)} rows set aside: {aside[0].reason} {aside[0].detail}")
    pad = processor.tokenizer.pad_token_id
    collator: Any = Collator(examples, pixels, pad)
    if way == "tree":
        prompts = {example.image: example.prompt for example in examples}
        cache = VisionCache(cache_key(model, processor), folder / "vision", 1 << 30)
        vision = Vision(model, lambda images: encoder.pixels(prompts[images[0]], images[0]), cache)
        for image in prompts:
            vision.features((image,))
        collator = TreeCollator(examples, vision, pad)
    if way == "tuned":
        import trl.trainer.utils as utils

        utils._use_triton = lambda device: True  # on a CPU too, TRL's head then scores labelled positions alone
    kind: type = MendedDPO if dpo else MendedSFT
    if way == "tree":
        kind = over_trees(kind)
    data = Dataset.from_dict({"index": list(range(len(examples))), "images": [[e.image] for e in examples]})
    trainer = kind(model=model, args=arguments, train_dataset=data, data_collator=collator, processing_class=processor)
    if way == "tree" and dpo:
        collator.references = trainer.references(len(examples))
    return trainer


def _score(model: Any, processor: Any, found: list[Any], work: Workload, way: Way, steps: int) -> dict[str, Any]:
    """A head over the last hidden state of every candidate; `trl` and `tuned` are both batched transformers."""
    head = torch.nn.Linear(models.HIDDEN, 1)
    encoder = Encoder(processor, family_of(model.config))
    groups: dict[str, list[Any]] = {}
    for row in found:
        groups.setdefault(row.images[0], []).append(row)
    before = _memory()
    seconds: list[float] = []
    rewards: list[Any] = []
    for _ in range(steps):
        started, rewards = time.perf_counter(), []
        trees = []
        pixels: dict[Images, Any] = {}
        for image, members in groups.items():
            prompt = members[0].prompt
            text, sequences = encoder.sequences(prompt, [row.completion for row in members], image)
            pixels[(image,)] = encoder.pixels(text, image)
            ids = [s.inputs["input_ids"].long() for s in sequences]
            if way == "tree":
                trees.append(Tree.of([TokenPath(i, torch.full_like(i, IGNORED)) for i in ids], (image,)))
            else:
                padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=1)
                ends = torch.tensor([len(i) for i in ids])
                mask = (torch.arange(padded.shape[1]) < ends[:, None]).long()
                wide = {n: t.expand(len(ids), *t.shape[1:]) for n, t in pixels[(image,)].items()}
                with torch.no_grad():
                    hidden = model.model(input_ids=padded, attention_mask=mask, **wide).last_hidden_state
                    rewards.append(head(hidden[torch.arange(len(ids)), ends - 1])[:, 0])
        if way == "tree":
            with torch.no_grad():
                scores = score(model, trees, Vision(model, pixels.__getitem__))
                rewards.append(head(scores.last_hidden)[:, 0])
        seconds.append(time.perf_counter() - started)
    values = {f"reward_{i}": value for i, value in enumerate(torch.cat(rewards).tolist())}
    return {"seconds": seconds, "preparation": 0.0, "peak": _memory() - before, "equal": values}
