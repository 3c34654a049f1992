"""The plain path, to compare with: every sequence through the model alone, as its processor makes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from align.adapter import Preset, attach
from align.models import load
from align.tree.forward import Tree, score
from align.tree.layout import IGNORED, Path
from align.tree.vision import ENTRANCES, Images, Vision
from tests import tiny


@dataclass
class Case:
    """A model with an adapter that matters, its processor, images by name, and rows (image names, prompt, answer)."""

    model: Any
    processor: Any
    images: dict[str, Image.Image]
    rows: list[tuple[Images, str, str]]

    def inputs(self, row: int) -> dict[str, Tensor]:
        """What the processor makes of a row: prompt and answer as one text."""
        names, prompt, answer = self.rows[row]
        return self._processed(names, prompt + answer)

    def _processed(self, names: Images, text: str) -> dict[str, Tensor]:
        images = {"images": [[self.images[name] for name in names]]} if names else {}
        return dict(self.processor(text=[text], return_tensors="pt", add_special_tokens=False, **images))

    def labels(self, row: int) -> Tensor:
        """[T] the answer's tokens, -100 for the prompt's."""
        names, prompt, _ = self.rows[row]
        ids = self.inputs(row)["input_ids"][0]
        start = len(self._processed(names, prompt)["input_ids"][0])
        return torch.cat([torch.full((start,), IGNORED), ids[start:]])

    def pixels(self, names: Images) -> dict[str, Tensor]:
        """The image inputs of a row with these images."""
        row = next(i for i, found in enumerate(self.rows) if found[0] == names)
        return self.inputs(row)

    def path(self, row: int) -> Path:
        inputs = self.inputs(row)
        entrance = ENTRANCES[self.model.config.model_type]
        sides = {name: inputs[name][0] for name in entrance.sides if name in inputs}
        along = {name: inputs[name][0] for name in ("input_ids", *sides)}
        positions = self.vision().positions(self.rows[row][0], along)
        return Path(inputs["input_ids"][0], self.labels(row), positions, sides)

    def trees(self, order: Sequence[int] | None = None) -> list[Tree]:
        """Rows of the same images as one tree each, in the order of their first rows."""
        groups: dict[Images, list[int]] = {}
        for row in order or range(len(self.rows)):
            groups.setdefault(self.rows[row][0], []).append(row)
        return [Tree.of([self.path(row) for row in rows], names) for names, rows in groups.items()]

    def order(self) -> list[int]:
        """The rows as `trees` puts them."""
        firsts = [row[0] for row in self.rows]
        return sorted(range(len(self.rows)), key=lambda row: firsts.index(firsts[row]))

    def vision(self, cache: Any = None) -> Vision:
        return Vision(self.model, self.pixels, cache)


def plain_log_probs(case: Case, row: int) -> tuple[Tensor, Tensor]:
    """[T-1] of one row, zero where nothing is scored, and the last hidden state, by the model's own forward."""
    targets = case.labels(row)[1:]
    out = case.model(**case.inputs(row), output_hidden_states=True, use_cache=False)
    every = out.logits[0, :-1].float().log_softmax(-1)
    picked = every.gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return picked * (targets != IGNORED), out.hidden_states[-1][0, -1]


def gradients(model: Any) -> dict[str, Tensor]:
    """Every trained tensor's gradient, taken away from the model."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def adapted(model: Any, preset: Preset) -> Any:
    """An adapter whose both halves matter: fresh ones have B = 0, so that A gets no gradient."""
    peft = attach(model, preset, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return peft.eval()


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (size[1], size[0], 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


TOLERANCE = 1e-5
BUILDERS: dict[str, tuple[Callable[[FilePath], FilePath], str]] = {
    "mllama": (tiny.tiny_mllama, "<|image|>"),
    "llava": (tiny.tiny_llava, "<image>"),
    "idefics3": (tiny.tiny_idefics3, "<image>"),
}


def rows(image: str) -> list[tuple[tuple[str, ...], str, str]]:
    """Two images with questions and answers that share beginnings, in mixed order; one whole row twice."""
    begin, end = tiny.BOS, tiny.EOS

    def prompt(question: str, system: str = "") -> str:
        return f"{begin}{system}<|user|>{image}{question}{end}<|assistant|>"

    return [
        (("wide",), prompt("How many?"), f"three{end}"),
        (("tall",), prompt("Which colour?"), f"red{end}"),
        (("wide",), prompt("How many?"), f"thirty or more{end}"),
        (("wide",), prompt("How much?"), f"a lot{end}"),
        (("tall",), prompt("Which colour?"), f"reddish, I think{end}"),
        (("wide",), prompt("How many?"), f"three{end}"),
        (("wide",), prompt("How many?", f"<|system|>Be brief.{end}"), f"3{end}"),
    ]


def tiny_case(root: FilePath, family: str, preset: Preset | None = None) -> Case:
    """A tiny model of a family, built below `root` once."""
    folder = root / family
    if not folder.exists():
        BUILDERS[family][0](folder)
    model, processor = load(str(folder), "float32", "cpu")
    images = {"wide": picture(1, (60, 28)), "tall": picture(2, (24, 24))}
    return Case(adapted(model, preset or Preset(rank=4)), processor, images, rows(BUILDERS[family][1]))


def compare(case: Case, tolerance: float = TOLERANCE) -> None:
    """Log-probabilities, last hidden states and every adapter gradient of the tree equal those of the plain path."""
    order = case.order()
    draw = torch.Generator().manual_seed(3)
    weights = [torch.rand(len(case.labels(row)) - 1, generator=draw) for row in order]
    plain = [plain_log_probs(case, row) for row in order]
    sum((w * lp).sum() for w, (lp, _) in zip(weights, plain, strict=True)).backward()
    expected = gradients(case.model)
    trees = case.trees()
    assert sum(len(tree.layout) for tree in trees) < 0.8 * sum(len(case.labels(row)) for row in order)
    scores = score(case.model, trees, case.vision())
    for p, (log_probs, hidden) in enumerate(plain):
        length = len(log_probs)
        torch.testing.assert_close(scores.log_probs[p, :length], log_probs, atol=tolerance, rtol=0)
        assert not scores.log_probs[p, length:].any()
        torch.testing.assert_close(scores.last_hidden[p], hidden, atol=tolerance, rtol=tolerance)
        assert scores.label_mask[p, :length].equal(case.labels(order[p])[1:] >= 0)
    sum((w * scores.log_probs[p, : len(w)]).sum() for p, w in enumerate(weights)).backward()
    found = gradients(case.model)
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        assert largest > 1e-3, name
        difference = (found[name] - gradient).abs().max().item()
        assert difference <= tolerance * largest, f"{name}: {difference} of {largest}"
