"""A vision-language model with a scalar head: how good is this answer to this question about this image.

In: prompts, answers and images. Out: one number an answer, read by the head off the last hidden state at the last token
of the conversation as the model's chat template renders it. Imported by a running stage or reward alone: it imports
torch. Folders hold an adapter or a whole model, and the head in a safetensors file of its own.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.errors import UserError
from align.families import family_of
from align.models import base_of, is_adapter, load, locate
from align.records import Message
from align.training.collate import pad as pad_rows
from align.training.collate import stack
from align.training.encode import Encoded, Encoder, Unusable
from align.tree.forward import Tree, pad
from align.tree.forward import score as score_trees
from align.tree.layout import IGNORED
from align.tree.layout import Path as TreePath
from align.tree.trl import Forest
from align.tree.vision import Features, Images, Vision, unwrapped, why_plain
from reward.trained import HEADS, OWN_HEAD, check_code, head_file

TOKENS = 1 << 13
"""Tokens of trees in one pass: the attention mask is as large as their square."""


@dataclass(frozen=True)
class Ask:
    """One answer to be rated."""

    prompt: Sequence[Message]
    completion: Sequence[Message]
    images: Sequence[str]


class RewardModel(nn.Module):  # type: ignore[misc]
    """The vision-language model, wrapped in an adapter or not, and the head [1, hidden], in float32."""

    def __init__(self, vlm: Any, head: nn.Linear) -> None:
        super().__init__()
        self.vlm = vlm
        self.head = head

    def forward(self, inputs: Mapping[str, Any], vision: Vision | None = None, tails: Tensor | None = None) -> Tensor:
        """[rows] the rating of each right-padded sequence; with `vision`, of each row of `inputs["forest"]`. With
        `tails` [rows], the ratings [rows, most] at the last `tails[row]` tokens, as if each were the end, padded with
        zeros."""
        if vision is not None:
            forest: Forest = inputs["forest"]
            wanted = None if tails is None else tails[forest.rows].tolist()
            scores = score_trees(self.vlm, forest.trees, vision, TOKENS, wanted)
            order = forest.rows.argsort().tolist()
            found = [self.rated(scores.tails[n]) for n in order] if tails is not None else []
            return pad(found) if found else self.rated(scores.last_hidden)[order]
        backbone = unwrapped(self.vlm).base_model
        last = inputs["attention_mask"].sum(dim=1)
        hidden = backbone(**inputs, use_cache=False).last_hidden_state
        if tails is not None:
            return pad([self.rated(row[end - n : end]) for row, end, n in zip(hidden, last, tails, strict=True)])
        return self.rated(hidden[torch.arange(len(last), device=hidden.device), last - 1])

    def rated(self, hidden: Tensor) -> Tensor:
        """[tokens] for hidden states [tokens, hidden]."""
        with torch.autocast(hidden.device.type, enabled=False):
            ratings: Tensor = self.head(hidden.float())[:, 0]
        return ratings


def fresh_head(vlm: Any, seed: int) -> nn.Linear:
    """A head that is the same for the same seed: normal weights of standard deviation 1/sqrt(hidden + 1) (Stiennon et
    al., arXiv 2009.01325), bias 0."""
    size = unwrapped(vlm).config.get_text_config().hidden_size
    head = nn.Linear(size, 1)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, size, generator=draw) / math.sqrt(size + 1))
        head.bias.zero_()
    return head.to(unwrapped(vlm).device)


def first_head(folder: Path, vlm: Any, seed: int) -> tuple[nn.Linear, str]:
    """The head that training begins with, and where it is from: that of the model's folder, or of an adapter's base,
    where there is one, a fresh one else."""
    base = locate(base_of(folder)).folder if is_adapter(folder) else folder
    for place in (folder, base):
        for form in HEADS:
            if (place / form.file).is_file():
                size = unwrapped(vlm).config.get_text_config().hidden_size
                return load_head(place, size).to(unwrapped(vlm).device), str(place / form.file)
    return fresh_head(vlm, seed), "fresh"


def save_head(head: nn.Linear, folder: Path) -> None:
    """Write the head beside its model."""
    form = OWN_HEAD
    tensors = {form.weight: head.weight.detach().cpu().contiguous(), form.bias: head.bias.detach().cpu()}
    save_file(tensors, folder / form.file)


def load_head(folder: Path, size: int) -> nn.Linear:
    """The head of a folder, in any of the known forms. Raises UserError where there is none or it does not fit."""
    path, form = head_file(folder)
    try:
        tensors = load_file(path)
        weight, bias = tensors[form.weight], tensors.get(form.bias)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: {form.weight} cannot be read: {error}") from None
    if tuple(weight.shape) != (1, size) or (bias is not None and bias.numel() != 1):
        raise UserError(f"{path}: the head is {tuple(weight.shape)}, the model needs (1, {size})")
    head = nn.Linear(size, 1)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.zeros(1) if bias is None else bias.reshape(1))
    return head


def load_rater(name: str, dtype: str = "auto", device: str = "auto", batch_size: int = 16) -> "Rater":
    """A rater from a folder or a hub id. Raises UserError."""
    check_code(locate(name, weights=False).folder, name)  # before gigabytes are downloaded
    folder = locate(name).folder
    head_file(folder)
    vlm, processor = load(name, dtype, device)
    base = unwrapped(vlm)
    head = load_head(folder, base.config.get_text_config().hidden_size).to(base.device)
    return Rater(RewardModel(vlm, head).eval(), processor, batch_size)


def forest(rows: Sequence[tuple[str, Encoded]], vision: Vision) -> Forest:
    """Sequences with their images' paths as one tree an image; nothing is predicted, so that all that two sequences
    share is laid out once."""
    members: dict[str, list[int]] = {}
    for row, (image, _) in enumerate(rows):
        members.setdefault(image, []).append(row)
    trees = []
    for image, numbers in members.items():
        paths = []
        for row in numbers:
            inputs = rows[row][1].inputs
            ids = inputs["input_ids"].long()
            sides = {name: inputs[name].long() for name in vision.entrance.sides if name in inputs}
            places = vision.positions((image,), inputs)
            paths.append(TreePath(ids, torch.full_like(ids, IGNORED), places, sides))
        trees.append(Tree.of(paths, (image,)))
    return Forest(tuple(trees), torch.tensor([row for numbers in members.values() for row in numbers]))


class Rater:
    """Rates answers. Where the tree is exact for the model (`why_plain`), all answers about an image share its work
    and that of what they have in common; else each answer is a row of a padded batch. Both give the same numbers."""

    def __init__(self, model: RewardModel, processor: Any, batch_size: int, tree: bool = True) -> None:
        base = unwrapped(model.vlm)
        self.model = model
        self.batch_size = batch_size
        self.encoder = Encoder(processor, family_of(base.config))  # as it is trained
        self.pad_token_id = processor.tokenizer.pad_token_id or 0
        self.most = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        self.tree = tree
        self._alone = threading.Lock()  # a pass over trees has the model's modules do less while it lasts

    def rate(self, asks: Sequence[Ask]) -> list[float | str]:
        """One rating an answer, in their order, or in its place the reason why there is none. A batch ends with an
        image, once it has `batch_size` answers; on the plain path it has no more than these. Threads take turns."""
        with self._alone:
            return self._rate(asks)

    def _rate(self, asks: Sequence[Ask]) -> list[float | str]:
        found: list[float | str] = ["not rated"] * len(asks)
        waiting: list[tuple[int, str, Encoded]] = []
        pixels: dict[str, dict[str, Tensor]] = {}
        for i in sorted(range(len(asks)), key=lambda i: (list(asks[i].images), i)):
            try:
                image, encoded = self._encoded(asks[i])
                if image not in pixels:
                    if len(waiting) >= self.batch_size:
                        self._flush(waiting, pixels, found)
                        waiting, pixels = [], {}
                    text, _ = self.encoder.sequences(asks[i].prompt, [], image)
                    pixels[image] = self.encoder.pixels(text, image)
            except Unusable as problem:
                found[i] = f"{problem.reason}: {problem.detail}" if problem.detail else problem.reason
                continue
            waiting.append((i, image, encoded))
        if waiting:
            self._flush(waiting, pixels, found)
        return found

    def _encoded(self, ask: Ask) -> tuple[str, Encoded]:
        if len(ask.images) != 1:
            raise Unusable("one image is needed", f"{len(ask.images)} are given")
        if not any(message.role == "user" for message in ask.prompt):
            raise Unusable("no question")
        _, (encoded,) = self.encoder.sequences(ask.prompt, [ask.completion], ask.images[0])  # as training does
        if len(encoded) > self.most:
            raise Unusable("too long", f"{len(encoded)} tokens, the model takes {self.most}")
        return ask.images[0], encoded

    def _flush(
        self, waiting: list[tuple[int, str, Encoded]], pixels: dict[str, dict[str, Tensor]], found: list[float | str]
    ) -> None:
        base = unwrapped(self.model.vlm)
        short = base.dtype in (torch.float16, torch.bfloat16)
        tree = self.tree and why_plain(base.config, max(len(encoded) for _, _, encoded in waiting)) is None
        with torch.no_grad(), torch.autocast(base.device.type, dtype=base.dtype if short else None, enabled=short):
            if tree:
                vision = Vision(self.model.vlm, lambda images: pixels[images[0]], _Kept())
                ratings = self.model({"forest": forest([row[1:] for row in waiting], vision)}, vision)
            else:
                steps = range(0, len(waiting), self.batch_size)
                ratings = torch.cat([self._plain(waiting[n : n + self.batch_size], pixels) for n in steps])
        for (i, _, _), rating in zip(waiting, ratings.tolist(), strict=True):
            found[i] = rating if math.isfinite(rating) else f"the model gave {rating}"
        bad = [row for row in waiting if isinstance(found[row[0]], str)]
        half = (len(bad) + 1) // 2
        for again in (bad[:half], bad[half:]) if len(waiting) > 1 else ():
            if again:  # NaN reaches what lies beside it: attention weighs that by 0, and 0 times NaN is NaN
                self._flush(again, pixels, found)

    def _plain(self, waiting: list[tuple[int, str, Encoded]], pixels: dict[str, dict[str, Tensor]]) -> Tensor:
        batch = pad_rows([encoded for _, _, encoded in waiting], self.pad_token_id)
        batch.update(stack([pixels[image] for _, image, _ in waiting]))
        device = unwrapped(self.model.vlm).device
        ratings: Tensor = self.model({name: tensor.to(device) for name, tensor in batch.items()})
        return ratings


class _Kept:
    """Features of the images of one batch, where the model is."""

    def __init__(self) -> None:
        self._found: dict[Images, Features] = {}

    def get(self, images: Images, compute: Any) -> Features:
        if images not in self._found:
            self._found[images] = compute(images)
        return self._found[images]
