"""Builds the demo's language reward model: it tells right answers from wrong ones where the chart stands in the text.

In: the student's language model and a schedule. Out: a folder with a LlamaForSequenceClassification of the student's
self-attention layers, whose one label rates a conversation. It never sees an image; `graft` puts it into the
student, and `train-reward` then lets the vision side bring what it reads here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from align.models import load
from align.tree.layout import common_prefix
from pipelines.demo.charts import COLORS, MAX_VALUE, Chart, Part, Progress, corrupt, sample_chart
from pipelines.demo.questions import KINDS, NOT_THERE, ChartQA, ask, reason
from pipelines.demo.tokenizer import MLLAMA
from pipelines.demo.training import IGNORED, Example, Schedule, fit, next_token_loss, pack
from reward.graft import matched

TABLE_SHARE = 0.8
"""Share of the questions that come with their table; without one, an answer is right where it follows from itself."""


@dataclass(frozen=True)
class RewardPlan:
    """Steps, questions a step, and wrong answers to each."""

    text: Schedule = field(default_factory=lambda: Schedule(500, lr=0.01, adamw_lr=1e-3))
    questions: int = 32
    wrong: int = 3

    def scaled(self, effort: float) -> RewardPlan:
        """The plan with that share of its steps."""
        return replace(self, text=self.text.scaled(effort))


def misread(rng: random.Random, chart: Chart, qa: ChartQA) -> str | None:
    """The same question answered from a chart that was misread in one place, or from another chart altogether; None
    where that gives the right answer."""
    other = corrupt(rng, chart) if rng.random() < 0.7 else sample_chart(rng, Part.STUDENT)
    for _ in range(100):
        again = ask(rng, other, qa.kind)
        if again.question == qa.question:
            return reason(other, again) if again.answer != qa.answer else None
    return None


def misconcluded(rng: random.Random, chart: Chart, qa: ChartQA) -> str:
    """The chart described rightly, and another answer at the end."""
    evidence, options = qa.evidence, sorted(COLORS)
    if qa.answer == NOT_THERE:
        options = options if "Which" in qa.question else [str(value) for value in range(1, MAX_VALUE + 1)]
    elif qa.answer.isdigit():
        options = [str(value) for value in range(1, MAX_VALUE + 1)]
    elif qa.answer in ("yes", "no"):
        options = ["yes", "no"]
    answer = rng.choice([option for option in options if option != qa.answer])
    if evidence.endswith("none"):
        evidence = f"{evidence.split()[0]} {answer if answer.isdigit() else rng.randint(1, MAX_VALUE)}"
    return reason(chart, replace(qa, answer=answer, evidence=evidence))


def wrong(rng: random.Random, chart: Chart, qa: ChartQA) -> str:
    """A reasoned answer with another conclusion than the right one."""
    tries = 100 if qa.kind == "describe" else rng.choice((0, 10, 10, 10))
    found = (misread(rng, chart, qa) for _ in range(tries))
    return next((answer for answer in found if answer is not None), None) or misconcluded(rng, chart, qa)


class Questions:
    """Groups of one question's answers, the right one first."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, wrong: int) -> None:
        self._tokenizer = tokenizer
        self._wrong = wrong

    def sample(self, rng: random.Random, count: int) -> list[list[Example]]:
        """`count` groups."""
        return [self._one(rng) for _ in range(count)]

    def _one(self, rng: random.Random) -> list[Example]:
        chart = sample_chart(rng, Part.STUDENT)
        qa = ask(rng, chart, rng.choice(KINDS))
        right = reason(chart, qa)
        answers = [right, *(wrong(rng, chart, qa) for _ in range(self._wrong))]
        user = f"Bars: {chart.table()}.\n{qa.question}" if rng.random() < TABLE_SHARE else qa.question
        head = self._ids(f"{MLLAMA.bos}<|user|>{user}{MLLAMA.eos}<|assistant|>")
        return [Example(head + self._ids(answer + MLLAMA.eos), len(head)) for answer in answers]

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


def _reward_loss(
    model: LlamaForSequenceClassification, head: nn.Module, tokenizer: PreTrainedTokenizerFast, plan: RewardPlan
) -> Callable[[random.Random], Tensor]:
    """Bradley and Terry's loss at the ends of answers, and at every token whether the answer is still the right one:
    where it goes wrong is learned far sooner when it is shown. The right answers' next tokens through the student's
    `head` keep the hidden states what its cross-attention layers are made for."""
    questions = Questions(tokenizer, plan.wrong)

    def loss_of(rng: random.Random) -> Tensor:
        groups = questions.sample(rng, plan.questions)
        batch = pack(groups, tokenizer.pad_token_id)
        hidden = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        ratings = model.score(hidden)[..., 0]
        ends, right_ones, still = [], [], torch.full(ratings.shape, float(IGNORED))
        for row, group in enumerate(groups):
            right, place = group[0], group[0].learned_from - 1  # up to here the prompt is shared
            for example in group:
                same = common_prefix(torch.tensor(right.ids)[:, None], torch.tensor(example.ids)[:, None])
                start = place + 1
                place += len(example.ids) - (right.learned_from - 1)
                split = start + same - right.learned_from
                still[row, start : min(split, place)] = 1.0
                if example is right:
                    right_ones.append(row * ratings.shape[1] + torch.arange(start - 1, place - 1))
                still[row, split:place] = 0.0
                ends.append(row * ratings.shape[1] + place - 1)
        chosen, *rejected = ratings.flatten()[torch.tensor(ends)].view(len(groups), -1).unbind(1)
        told = still != IGNORED
        pairs = -logsigmoid(chosen[:, None] - torch.stack(rejected, dim=1)).mean()
        said = torch.cat(right_ones)
        words = next_token_loss(hidden.flatten(0, 1)[said], head, batch.labels.flatten()[said])
        return pairs + binary_cross_entropy_with_logits(ratings[told], still[told]) + words

    return loss_of


def build_language_reward(
    student: str, out: Path, seed: int, plan: RewardPlan | None = None, progress: Progress | None = None
) -> dict[str, float]:
    """Train the reward model from `student`'s language model and save it with its tokenizer to `out`; returns the last
    losses. Checkpoints lie in `out/checkpoints`, as those of the other models."""
    plan = plan or RewardPlan()
    vision_language, processor = load(student, "float32", "cpu")
    text = vision_language.config.get_text_config()
    layers = text.num_hidden_layers - len(text.cross_attention_layers)
    shape = {name: value for name, value in text.to_dict().items() if name in LlamaConfig().to_dict()}
    shape |= {"num_hidden_layers": layers, "num_labels": 1}
    for name in ("model_type", "architectures", "id2label", "label2id", "transformers_version"):
        shape.pop(name, None)
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**shape))
    for tensor, place in matched(model, vision_language):
        tensor.copy_(place)
    tokenizer = processor.tokenizer

    def report(done: int) -> None:
        if progress is not None:
            progress(done, plan.text.steps)

    loss_of = _reward_loss(model, vision_language.lm_head.requires_grad_(False), tokenizer, plan)
    losses = fit(model, loss_of, plan.text, f"{seed}/reward", out / "checkpoints" / "reward.pt", progress=report)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"loss": sum(losses[-20:]) / len(losses[-20:])} if losses else {}
