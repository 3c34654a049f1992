"""Builds the demo's teacher: a small Idefics3 model that asks, answers and judges questions about charts.

In: a seed and a schedule. Out: a folder with an Idefics3ForConditionalGeneration and its processor, which
vLLM serves. It learns four skills from ground truth, each as a chat turn rendered from the templates under
`configs/prompts/demo/`: writing questions with answers as JSON from the image, the same from the image's
text form, answering by describing and concluding, and rating an answer from 1 to 5. It learns until it
is good, not perfect: its mistakes are what the pipeline's reward and rejection have to catch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from pipelines.demo.charts import COLORS, IMAGE_SIZE, MAX_VALUE, Chart, Part, Progress, corrupt, sample_chart
from pipelines.demo.prompts import Prompts
from pipelines.demo.questions import KINDS, NOT_THERE, ChartQA, ask, reason
from pipelines.demo.student import PIXEL_MEAN, PIXEL_STD, ROPE_THETA, pixel_batch
from pipelines.demo.texts import system_text
from pipelines.demo.tokenizer import IDEFICS3, train_tokenizer
from pipelines.demo.training import IGNORED, Example, Schedule, fit, initialize, next_token_loss, pack, pad_right

RIGHT, WRONG = "5", "1"
"""The ratings which the judge learns."""
MAX_ASKED = 2
"""Most questions asked for in one prompt."""


@dataclass(frozen=True)
class TeacherSize:
    """Widths and depths of the teacher."""

    width: int = 128
    heads: int = 4
    text_layers: int = 5
    vision_layers: int = 3
    patch: int = 16

    @property
    def image_tokens(self) -> int:
        """Places that an image takes in the sequence."""
        return (IMAGE_SIZE // self.patch) ** 2


@dataclass(frozen=True)
class TeacherPlan:
    """The schedule and the number of charts of a step."""

    schedule: Schedule = field(default_factory=lambda: Schedule(550))
    charts: int = 8
    conclusions: int = 48

    def scaled(self, effort: float) -> TeacherPlan:
        """The plan with that share of its steps."""
        return replace(self, schedule=self.schedule.scaled(effort))


def make_teacher(size: TeacherSize, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """An untrained model for `tokenizer`."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = Idefics3VisionConfig(
        hidden_size=size.width,
        intermediate_size=size.width * 2,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        image_size=IMAGE_SIZE,
        patch_size=size.patch,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.width * 2,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        **ids,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IDEFICS3.image),
        scale_factor=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Idefics3ForConditionalGeneration(config)
    initialize(model)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id = ids["bos_token_id"], ids["eos_token_id"]
    generation.pad_token_id = ids["pad_token_id"]
    return model


def make_processor(tokenizer: PreTrainedTokenizerFast, size: TeacherSize) -> Idefics3Processor:
    """The teacher's processor: the image whole, never split."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE},
        max_image_size={"longest_edge": IMAGE_SIZE},
        do_image_splitting=False,
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=size.image_tokens, chat_template=tokenizer.chat_template)


def as_json(chart: Chart, found: list[ChartQA]) -> str:
    """Questions with reasoned answers in the form that the teacher writes."""
    return json.dumps([{"question": qa.question, "answer": reason(chart, qa)} for qa in found])


def wrong_answer(rng: random.Random, chart: Chart, qa: ChartQA) -> str:
    """A wrong answer to `qa`, reasoned: the chart misread, or the conclusion missed."""
    if qa.kind == "describe":
        return reason(chart, ChartQA(qa.kind, qa.question, corrupt(rng, chart).table()))
    if qa.answer.isdigit():
        options = [str(value) for value in range(MAX_VALUE + 1)]
    elif qa.answer in ("yes", "no"):
        options = ["yes", "no"]
    else:
        options = sorted(COLORS) if rng.random() < 0.8 else [NOT_THERE]
    if qa.answer == NOT_THERE:
        options = [str(value) for value in range(1, MAX_VALUE + 1)] if "tall" in qa.question else sorted(COLORS)
    answer = rng.choice([option for option in options if option != qa.answer])
    described = corrupt(rng, chart) if rng.random() < 0.5 else chart
    return reason(described, ChartQA(qa.kind, qa.question, answer))


class SkillExamples:
    """The four skills as chats, several to a chart."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int, prompts: Prompts) -> None:
        self._tokenizer, self._prompts = tokenizer, prompts
        fake = "<fake_token_around_image>"
        self._image = f"{fake}<global-img>{IDEFICS3.image * image_tokens}{fake}"

    def group(self, rng: random.Random, chart: Chart) -> tuple[list[Example], bool]:
        """Chats about `chart` with one common beginning, and whether that holds the image."""
        system = system_text(rng)
        if rng.random() < 0.25:
            form, seen = chart.text_form(), rng.random() < 0.75
            return [self._asked(rng, chart, kind, form, system, seen) for kind in rng.sample(KINDS, 3)], seen
        chats = [self._asked(rng, chart, kind, None, system, True) for kind in rng.sample(KINDS, 1)]
        for kind in rng.sample(KINDS, 2):
            qa = ask(rng, chart, kind)
            chats.append(self.chat(system, True, self._prompts.answer(qa.question), reason(chart, qa)))
        for kind in rng.sample(KINDS, 1):
            qa = ask(rng, chart, kind)
            right = rng.random() < 0.5
            answer = reason(chart, qa) if right else wrong_answer(rng, chart, qa)
            prompt = self._prompts.judge(qa.question, answer)
            chats.append(self.chat(system, True, prompt, RIGHT if right else WRONG))
        return chats, True

    def concluded(self, rng: random.Random, chart: Chart) -> Example:
        """A chat in text alone of which the conclusion is learned: the description stands there already."""
        qa = ask(rng, chart, rng.choice(KINDS))
        described, stop, conclusion = reason(chart, qa).partition(".")
        if not stop:
            return self.chat("", False, self._prompts.answer(qa.question), described)
        return self.chat("", False, self._prompts.answer(qa.question), stop + conclusion, described)

    def _asked(self, rng: random.Random, chart: Chart, kind: str, form: str | None, system: str, seen: bool) -> Example:
        count = rng.randint(1, MAX_ASKED)
        found = [ask(rng, chart, kind) for _ in range(count)]
        return self.chat(system, seen, self._prompts.ask(kind, count, form), as_json(chart, found))

    def chat(self, system: str, seen: bool, user: str, assistant: str, given: str = "") -> Example:
        """One user turn about an image (`seen`) or in text alone, with its answer, whose beginning may be given."""
        opening = f"<|system|>{system}{IDEFICS3.eos}" if system else ""
        image = self._image if seen else ""
        prompt = f"{IDEFICS3.bos}{opening}<|user|>{image}{user}{IDEFICS3.eos}<|assistant|>{given}"
        head = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tail = self._tokenizer(assistant + IDEFICS3.eos, add_special_tokens=False)["input_ids"]
        return Example(head + tail, len(head))


def _skill_loss(
    model: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: TeacherPlan,
    image_tokens: int,
    prompts: Prompts,
) -> Callable[[random.Random], Tensor]:
    examples = SkillExamples(tokenizer, image_tokens, prompts)

    def loss_of(rng: random.Random) -> Tensor:
        shown: list[Chart] = []
        groups: list[list[Example]] = []
        for _ in range(plan.charts):
            chart = sample_chart(rng, Part.TEACHER)
            group, seen = examples.group(rng, chart)
            groups.append(group)
            if seen:
                shown.append(chart)
        batch = pack(groups, tokenizer.pad_token_id)
        hidden = model.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            # The model takes the images of the batch in the order of their places in the sequences.
            pixel_values=pixel_batch(shown)[:, None] if shown else None,
            use_cache=False,
        ).last_hidden_state
        # To conclude is to look up and to copy, which a small model learns late; text alone is the cheapest place.
        texts = [examples.concluded(rng, sample_chart(rng, Part.TEACHER)) for _ in range(plan.conclusions)]
        ids, labels = pad_right(texts, tokenizer.pad_token_id)
        described = model.model(input_ids=ids, use_cache=False).last_hidden_state
        learned = (batch.labels != IGNORED, labels != IGNORED)
        states = torch.cat([hidden[learned[0]], described[learned[1]]])
        return next_token_loss(states, model.lm_head, torch.cat([batch.labels[learned[0]], labels[learned[1]]]))

    return loss_of


def build_teacher(
    out: Path,
    seed: int,
    plan: TeacherPlan | None = None,
    size: TeacherSize | None = None,
    progress: Progress | None = None,
    prompts: Prompts | None = None,
) -> dict[str, float]:
    """Train the teacher and save model and processor to `out`; returns the loss of the last steps.

    Checkpoints lie in `out/checkpoints`: a build that was killed continues there, a finished one is written again.
    """
    plan, size, prompts = plan or TeacherPlan(), size or TeacherSize(), prompts or Prompts()
    tokenizer = train_tokenizer(IDEFICS3, prompts)
    torch.manual_seed(seed)
    model = make_teacher(size, tokenizer)

    def report(done: int) -> None:
        if progress is not None:
            progress(done, plan.schedule.steps)

    losses = fit(
        model,
        _skill_loss(model, tokenizer, plan, size.image_tokens, prompts),
        plan.schedule,
        f"{seed}/teacher",
        out / "checkpoints" / "teacher.pt",
        progress=report,
    )
    model.save_pretrained(out)
    make_processor(tokenizer, size).save_pretrained(out)
    return {"loss": sum(losses[-20:]) / len(losses[-20:])} if losses else {}
