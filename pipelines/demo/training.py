"""The demo's training loop: plain, deterministic, and able to continue after a kill.

In: a model, a function that makes the loss of one step from a random generator, and the schedule. Out: the
trained model. A step's data depends on (seed, step) alone, so a run continued from its checkpoint ends with
the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Schedule:
    """Steps with a linear warm-up and a cosine descent to zero: Muon on the matrices, AdamW on all else."""

    steps: int
    lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 0.01

    def scaled(self, effort: float) -> Schedule:
        """The schedule with that share of its steps, one at least."""
        return replace(self, steps=max(1, round(self.steps * effort)))

    def scale(self, step: int) -> float:
        """The share of the full rates used in step `step`, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


def initialize(model: nn.Module) -> None:
    """Weights scaled by their inputs, and an output head equal to the embedding.

    The usual 0.02 is meant for wide models: at these widths attention stays flat for hundreds of steps.
    With equal tables, a token that attention brings forward is already the one that gets predicted.
    """
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        embedding.weight.normal_(0, 0.1)
        head = model.get_output_embeddings()
        head.weight.copy_(embedding.weight[: head.weight.shape[0]])


def _optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        tables.add(id(model.get_output_embeddings().weight))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and min(p.shape) > 1 and id(p) not in tables]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in trained if id(parameter) not in chosen]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=schedule.lr, weight_decay=schedule.weight_decay))
    if others:
        decay = schedule.weight_decay
        found.append(torch.optim.AdamW(others, lr=schedule.adamw_lr, betas=(0.9, 0.98), weight_decay=decay))
    return found


@contextmanager
def _fast_matmul(model: nn.Module) -> Iterator[None]:
    # Where the processor has bfloat16 instructions this halves the time of a matrix product. The fused
    # attention kernel gets slow under it at these sizes, so attention is done in plain operations meanwhile.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    attention = model.config._attn_implementation if isinstance(model, PreTrainedModel) else None
    if attention is not None:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        if attention is not None:
            model.set_attn_implementation(attention)


def fit(
    model: nn.Module,
    loss_of: Callable[[random.Random], Tensor],
    schedule: Schedule,
    seed: str,
    checkpoint: Path,
    every: int = 100,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Train the parameters of `model` that require a gradient; returns the losses of all steps.

    `loss_of` gets a generator seeded by (seed, step). Weights, optimizer states and losses go to `checkpoint` each
    `every` steps and at the end; when the file is there already, training continues from it. `progress` is
    called with the number of steps done.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, schedule)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = 0
    losses: list[float] = []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, losses = state["step"], state["losses"]
        if progress is not None:
            progress(first)
    model.train()
    with _fast_matmul(model):
        for step in range(first, schedule.steps):
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * schedule.scale(step)
                optimizer.zero_grad(set_to_none=True)
            loss = loss_of(random.Random(f"{seed}/{step}"))
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
            done = step + 1
            if done % every == 0 or done == schedule.steps:
                _save(checkpoint, model, optimizers, losses)
            if progress is not None:
                progress(done)
    model.eval()
    return losses


def _save(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], losses: list[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    kept = {"model": model.state_dict(), "optimizers": states, "step": len(losses), "losses": losses}
    torch.save(kept, partial)
    partial.replace(path)


@dataclass(frozen=True)
class Example:
    """Token ids with the position from which on they are learned."""

    ids: list[int]
    learned_from: int


@dataclass(frozen=True)
class Batch:
    """Sequences of one step, shape (batch, length) each; `mask` (batch, 1, length, length) is added."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def pack(groups: Sequence[Sequence[Example]], pad: int) -> Batch:
    """One row a group: the prefix which its sequences share is written once, the rest side by side.

    A sequence attends to the prefix and to itself, never to its neighbours, so the row is worth as many
    separate sequences, at the price of one prefix (the image and what stands before the question).
    """
    rows = [_pack_row(group) for group in groups]
    length = max(len(ids) for ids, *_ in rows)
    shape = (len(rows), length)
    ids = torch.full(shape, pad)
    labels = torch.full(shape, IGNORED)
    positions = torch.zeros(shape, dtype=torch.long)
    owners = torch.full(shape, -1)
    for row, (row_ids, row_labels, row_positions, row_owners) in enumerate(rows):
        size = len(row_ids)
        ids[row, :size] = torch.tensor(row_ids)
        labels[row, :size] = torch.tensor(row_labels)
        positions[row, :size] = torch.tensor(row_positions)
        owners[row, :size] = torch.tensor(row_owners)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owners[:, :, None] == owners[:, None, :]
    allowed = causal & (same | (owners == 0)[:, None, :])
    # A mask that is added works with every attention implementation; a boolean one only with some.
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return Batch(ids, labels, positions, mask[:, None])


def pad_right(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and labels of the next token, (examples, longest) each.

    Padding on the right needs no mask under causal attention: nothing learned ever sees it.
    """
    length = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        size, start = len(example.ids), example.learned_from
        ids[row, :size] = torch.tensor(example.ids)
        labels[row, start - 1 : size - 1] = ids[row, start:size]
    return ids, labels


def _pack_row(group: Sequence[Example]) -> tuple[list[int], list[int], list[int], list[int]]:
    # The last prompt token predicts the first learned one, so it cannot be shared.
    shared = min(sequence.learned_from for sequence in group) - 1
    head = group[0].ids
    prefix = 0
    while prefix < shared and all(sequence.ids[prefix] == head[prefix] for sequence in group):
        prefix += 1
    ids, labels = head[:prefix], [IGNORED] * prefix
    positions, owners = list(range(prefix)), [0] * prefix
    for owner, sequence in enumerate(group, start=1):
        ids = ids + sequence.ids[prefix:]
        # Labels are those of the next token: no shift is left to the loss.
        following = [*sequence.ids[1:], IGNORED]
        labels += [
            following[place] if place + 1 >= sequence.learned_from else IGNORED
            for place in range(prefix, len(sequence.ids))
        ]
        positions += range(prefix, len(sequence.ids))
        owners += [owner] * (len(sequence.ids) - prefix)
    return ids, labels, positions, owners


def next_token_loss(hidden: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the learned positions; `hidden` is (..., width), `labels` (...).

    `labels` are already those of the next token. Logits are computed at learned positions only.
    """
    learned = labels != IGNORED
    return nn.functional.cross_entropy(head(hidden[learned]), labels[learned])
