"""First loss and gradient equal a plain computation, row by row on the whole logits; float32, every adapter tensor."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from align import dpo, sft
from align.adapter import Preset, trainable
from align.artifact import Store
from align.dpo import DPO
from align.families import family_of
from align.records import Row
from align.sft import SFT
from align.training.collate import Pixels
from align.training.encode import Encoder, encode
from align.training.options import Training
from align.training.run import Task, make_trainer
from align.training.trainers import DPOConfig, MendedDPO, MendedSFT, SFTConfig
from tests.align.training.corpus import images, pairs, plain_logps, qa, questions, tiny

FAMILIES = ("mllama", "idefics3", "llava")
ROWS = 6


class Gradients(TrainerCallback):
    """Keeps the first step's gradients."""

    found: dict[str, Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not hasattr(self, "found"):
            self.found = gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def awake(model: torch.nn.Module, seed: int) -> None:
    """LoRA starts at zero, which hides half of the gradient; give it weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def first_step(
    stage: Training, model: Any, processor: Any, rows: list[Row], task: Task, folder: Path, change: Any = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the trainer logs after its first step, and the gradients of it."""
    encoder = Encoder(processor, family_of(model.config))
    pixels = Pixels(encoder.pixels, 10**9)
    examples, aside = encode(rows, task.parts, encoder, stage.max_length, pixels.put)
    assert not aside
    trainer, _ = make_trainer(stage, model, processor, examples, pixels, task, str(folder / "checkpoints"), folder)
    if change is not None:
        change(model)
    watch = Gradients()
    trainer.add_callback(watch)
    trainer.train()
    return trainer.state.log_history[0], watch.found


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    for name, gradient in expected.items():
        apart = (found[name] - gradient).abs().max() / gradient.abs().max()
        assert apart < 1e-5, name


def test_task() -> None:
    """The tasks below are the stages' own."""
    row = questions(["x"], 1)[0]
    assert sft._parts(row) == (row.prompt, [row.completion])
    pair = pairs(["x"], 1)[0]
    assert dpo._parts(pair) == (pair.prompt, [pair.chosen, pair.rejected])


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_sft(family: str, micro_batch: int | None, tmp_path: Path) -> None:
    path = str(tiny(family, tmp_path))
    preset = Preset(connector="full" if family == "llava" else "lora", rank=4)
    stage = SFT(
        input="rows",
        model=path,
        adapter=preset,
        batch_size=ROWS,
        micro_batch=micro_batch,
        max_steps=1,
        max_grad_norm=1e9,
    )
    rows = questions(images(Store(tmp_path / "store")), ROWS)
    model, processor = trainable(path, preset, "float32", "cpu", 0)
    awake(model, 1)
    plain = torch.cat([plain_logps(model, processor, row, row.completion) for row in rows])
    loss = -plain.mean()
    loss.backward()
    expected = gradients(model)
    model.zero_grad()
    task = Task("sft", sft._parts, MendedSFT, SFTConfig, True)
    logged, found = first_step(stage, model, processor, list(rows), task, tmp_path)
    assert math.isclose(logged["loss"], loss.item(), rel_tol=1e-5)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))
    assert math.isclose(logged["grad_norm"], norm, rel_tol=1e-5)
    same(found, expected)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_dpo(family: str, steps: int, tmp_path: Path) -> None:
    """The reference is the adapter as it came in: the policy is moved before the step, and the plain reference is a
    second model that is not. With 2 steps of half of the rows the references are computed beforehand, with 1 not."""
    path = str(tiny(family, tmp_path))
    preset = Preset(connector="full" if family == "llava" else "lora", rank=4)
    rows = pairs(images(Store(tmp_path / "store")), ROWS)
    model, processor = trainable(path, preset, "float32", "cpu", 0)
    reference, _ = trainable(path, preset, "float32", "cpu", 0)
    policy, _ = trainable(path, preset, "float32", "cpu", 0)
    for one in (model, reference, policy):
        awake(one, 1)
    awake(policy, 2)

    size = ROWS // 2
    stage = DPO(
        input="rows", model=path, adapter=preset, batch_size=size, max_steps=steps, max_grad_norm=1e9, beta=0.3,
        loss_weights=[1.0, 0.5],
    )  # fmt: skip

    def arguments(**options: Any) -> DPOConfig:
        return DPOConfig(
            **options, beta=0.3, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5],
            train_sampling_strategy="sequential",
        )  # fmt: skip

    task = Task("dpo", dpo._parts, MendedDPO, arguments, True)
    logged, found = first_step(stage, model, processor, list(rows), task, tmp_path, change=move_trained)

    margins, chosen_all = [], []
    for row in rows[:size]:
        chosen, rejected = (plain_logps(policy, processor, row, answer) for answer in (row.chosen, row.rejected))
        with torch.no_grad():
            before = [plain_logps(reference, processor, row, answer).sum() for answer in (row.chosen, row.rejected)]
        margins.append((chosen.sum() - before[0]) - (rejected.sum() - before[1]))
        chosen_all.append(chosen)
    scaled = 0.3 * torch.stack(margins)
    loss = -torch.nn.functional.logsigmoid(scaled).mean() - 0.5 * torch.cat(chosen_all).mean()
    loss.backward()
    assert scaled.abs().min() > 1e-3  # or the reference would not be told from the policy
    assert math.isclose(logged["loss"], loss.item(), rel_tol=1e-5)
    assert math.isclose(logged["rewards/margins"], scaled.mean().item(), rel_tol=1e-4)
    same(found, gradients(policy))


def move_trained(model: Any) -> None:
    """Move the adapter that trains, leave TRL's frozen copy where it is."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if ".ref." in name]
    awake(model, 2)


def test_a_row_without_an_image_would_teach_nothing(tmp_path: Path) -> None:
    """Why such rows are set aside: no trainable parameter has any part in their loss."""
    for family in FAMILIES:
        model, processor = trainable(str(tiny(family, tmp_path)), None, "float32", "cpu", 0)
        ids = processor.tokenizer("red blue green", return_tensors="pt", add_special_tokens=False)
        assert not model(**ids, labels=ids["input_ids"]).loss.requires_grad


def test_rows_of_one_batch_do_not_touch_each_other(tmp_path: Path) -> None:
    """The loss of a long row and one of another shape of image is the sum of both alone (no leak through padding)."""
    path = str(tiny("mllama", tmp_path))
    first, second, *_ = images(Store(tmp_path / "store"))
    rows = [qa(0, first, "red", "blue"), qa(1, second, "red four bar ?", "seven bar left right line")]
    model, processor = trainable(path, None, "float32", "cpu", 0)
    awake(model, 1)
    with torch.no_grad():
        alone = [plain_logps(model, processor, row, row.completion) for row in rows]
    stage = SFT(input="rows", model=path, batch_size=2, max_steps=1)
    logged, _ = first_step(
        stage, model, processor, list(rows), Task("sft", sft._parts, MendedSFT, SFTConfig, True), tmp_path
    )
    assert math.isclose(logged["loss"], -torch.cat(alone).mean().item(), rel_tol=1e-5)
