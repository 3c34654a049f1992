"""Builds the demo's student: a small Llama-3.2-Vision-style model made in the published order.

In: a seed and three schedules. Out: a folder with an MllamaForConditionalGeneration and its processor. The
language model learns on text alone; then, with the language model frozen, the vision encoder and the adapter
(cross-attention and projector) learn on noisy captions and afterwards on fewer clean ones. It never sees
a question about an image: that is what post-training is for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from pipelines.demo.charts import IMAGE_SIZE, Chart, Part, Progress, pixels, sample_chart
from pipelines.demo.prompts import Prompts
from pipelines.demo.questions import KINDS, ask, reason
from pipelines.demo.texts import clean_caption, noisy_caption, plain_exchange, system_text
from pipelines.demo.tokenizer import MLLAMA, train_tokenizer
from pipelines.demo.training import IGNORED, Example, Schedule, fit, initialize, next_token_loss, pad_right

PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
ROPE_THETA = 100.0
"""Small: nothing here is longer than a hundred tokens, and near positions must be told apart early."""
CAPTION_NOISE = 0.3
"""Share of the first captions that are wrong or empty."""
PLAIN_SHARE, TABLE_SHARE = 0.15, 0.25
"""Shares of the chats in text that are about nothing drawn, and that come with a table."""


@dataclass(frozen=True)
class StudentSize:
    """Widths and depths of the student; `cross_layers` are indices among all `text_layers`."""

    width: int = 128
    heads: int = 8
    text_layers: int = 7
    cross_layers: tuple[int, ...] = (1, 3, 5)
    vision_layers: int = 3
    patch: int = 16


@dataclass(frozen=True)
class StudentPlan:
    """The three steps of the build with their batches."""

    text: Schedule = field(default_factory=lambda: Schedule(650))
    noisy: Schedule = field(default_factory=lambda: Schedule(300))
    clean: Schedule = field(default_factory=lambda: Schedule(80, lr=0.01, adamw_lr=1e-3))
    chats: int = 64
    captions: int = 32

    def scaled(self, effort: float) -> StudentPlan:
        """The plan with that share of its steps."""
        text, noisy, clean = (part.scaled(effort) for part in (self.text, self.noisy, self.clean))
        return replace(self, text=text, noisy=noisy, clean=clean)


def make_student(size: StudentSize, tokenizer: PreTrainedTokenizerFast) -> MllamaForConditionalGeneration:
    """An untrained model for `tokenizer`, its cross-attention gates open so that the image is seen."""
    image_token = tokenizer.convert_tokens_to_ids(MLLAMA.image)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = MllamaTextConfig(
        # As in the published models, the image token has an embedding but no logit.
        vocab_size=image_token,
        hidden_size=size.width,
        intermediate_size=size.width * 2,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        cross_attention_layers=list(size.cross_layers),
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        **ids,
    )
    vision = MllamaVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.width * 2,
        num_hidden_layers=size.vision_layers,
        num_global_layers=1,
        attention_heads=size.heads,
        image_size=IMAGE_SIZE,
        patch_size=size.patch,
        max_num_tiles=1,
        supported_aspect_ratios=[[1, 1]],
        intermediate_layers_indices=[0],
        vision_output_dim=2 * size.width,
    )
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    model = MllamaForConditionalGeneration(config)
    initialize(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn")):
                parameter.fill_(0.5)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = ids["bos_token_id"], ids["eos_token_id"]
    generation.pad_token_id = ids["pad_token_id"]
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast) -> MllamaProcessor:
    """The student's processor: one tile, no resizing of the demo's charts."""
    images = MllamaImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        max_image_tiles=1,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def pixel_batch(charts: list[Chart]) -> Tensor:
    """The drawn charts as the image processors would pass them: float (charts, 3, side, side)."""
    raw = torch.from_numpy(np.stack([pixels(chart) for chart in charts]))
    return (raw.float() / 255 - PIXEL_MEAN) / PIXEL_STD


def _adapter_names(model: MllamaForConditionalGeneration) -> set[str]:
    crossing = [f".language_model.layers.{layer}." for layer in model.config.text_config.cross_attention_layers]
    sides = (".vision_model.", ".multi_modal_projector.", *crossing)
    return {name for name, _ in model.named_parameters() if any(side in name for side in sides)}


def train_only(model: MllamaForConditionalGeneration, side: str) -> None:
    """Let the `"language"` or the `"vision"` side of the model learn and freeze the other one."""
    adapter = _adapter_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_((name in adapter) == (side == "vision"))


class TextExamples:
    """Chats in text alone: tables with reasoned answers, the same without a table, and plain exchanges."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def sample(self, rng: random.Random, count: int) -> list[Example]:
        """`count` chats."""
        return [self._one(rng) for _ in range(count)]

    def _one(self, rng: random.Random) -> Example:
        choice = rng.random()
        if choice < PLAIN_SHARE:
            return self._chat(rng, *plain_exchange(rng), "")
        chart = sample_chart(rng, Part.STUDENT)
        qa = ask(rng, chart, rng.choice(KINDS))
        if choice < PLAIN_SHARE + TABLE_SHARE:
            return self._chat(rng, f"Bars: {chart.table()}.\n{qa.question}", reason(chart, qa), "")
        # Without a table the description cannot be foretold: mostly the conclusion alone is learned.
        described, stop, concluded = reason(chart, qa).partition(".")
        if stop and rng.random() < 0.7:
            return self._chat(rng, qa.question, stop + concluded, described)
        return self._chat(rng, qa.question, reason(chart, qa), "")

    def _chat(self, rng: random.Random, user: str, learned: str, given: str) -> Example:
        system = system_text(rng)
        opening = f"<|system|>{system}{MLLAMA.eos}" if system else ""
        prompt = f"{MLLAMA.bos}{opening}<|user|>{user}{MLLAMA.eos}<|assistant|>{given}"
        head = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = self._tokenizer(learned + MLLAMA.eos, add_special_tokens=False)["input_ids"]
        return Example(head + tail, len(head))


def _text_loss(
    model: MllamaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, chats: int
) -> Callable[[random.Random], Tensor]:
    examples = TextExamples(tokenizer)

    def loss_of(rng: random.Random) -> Tensor:
        # Short and long chats apart: less padding.
        found = sorted(examples.sample(rng, chats), key=lambda example: len(example.ids))
        states, labels = [], []
        for half in (found[: chats // 2], found[chats // 2 :]):
            ids, following = pad_right(half, tokenizer.pad_token_id)
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            learned = following != IGNORED
            states.append(hidden[learned])
            labels.append(following[learned])
        return next_token_loss(torch.cat(states), model.lm_head, torch.cat(labels))

    return loss_of


def _caption_loss(
    model: MllamaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    captions: int,
    caption: Callable[[random.Random, Chart], str],
) -> Callable[[random.Random], Tensor]:
    def loss_of(rng: random.Random) -> Tensor:
        charts = [sample_chart(rng, Part.STUDENT) for _ in range(captions)]
        texts = [f"{MLLAMA.bos}{MLLAMA.image}{caption(rng, chart)}{MLLAMA.eos}" for chart in charts]
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids, labels = pad_right([Example(row, 2) for row in rows], tokenizer.pad_token_id)
        seen = torch.ones(captions, ids.shape[1], 1, 1, dtype=torch.long)
        seen[:, 0] = 0
        hidden = model.model(
            input_ids=ids,
            pixel_values=pixel_batch(charts)[:, None, None],
            aspect_ratio_ids=torch.ones(captions, 1, dtype=torch.long),
            aspect_ratio_mask=torch.ones(captions, 1, 1, dtype=torch.long),
            cross_attention_mask=seen,
            use_cache=False,
        ).last_hidden_state
        return next_token_loss(hidden, model.lm_head, labels)

    return loss_of


def build_student(
    out: Path,
    seed: int,
    plan: StudentPlan | None = None,
    size: StudentSize | None = None,
    progress: Progress | None = None,
    prompts: Prompts | None = None,
) -> dict[str, float]:
    """Train the student and save model and processor to `out`; returns the last losses of the three steps.

    Checkpoints lie in `out/checkpoints`: a build that was killed continues there, a finished one is written again.
    """
    plan, size = plan or StudentPlan(), size or StudentSize()
    tokenizer = train_tokenizer(MLLAMA, prompts)
    torch.manual_seed(seed)
    model = make_student(size, tokenizer)

    def noisy(rng: random.Random, chart: Chart) -> str:
        return noisy_caption(rng, chart, CAPTION_NOISE)

    steps = (
        ("text", "language", plan.text, _text_loss(model, tokenizer, plan.chats)),
        ("noisy", "vision", plan.noisy, _caption_loss(model, tokenizer, plan.captions, noisy)),
        ("clean", "vision", plan.clean, _caption_loss(model, tokenizer, plan.captions, clean_caption)),
    )
    metrics: dict[str, float] = {}
    total = sum(schedule.steps for _, _, schedule, _ in steps)
    before = 0
    for name, side, schedule, loss_of in steps:
        train_only(model, side)

        def report(done: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        losses = fit(model, loss_of, schedule, f"{seed}/{name}", out / "checkpoints" / f"{name}.pt", progress=report)
        if losses:
            metrics[f"{name}_loss"] = sum(losses[-20:]) / len(losses[-20:])
        before += schedule.steps
    model.requires_grad_(True)
    model.save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)
    return metrics
