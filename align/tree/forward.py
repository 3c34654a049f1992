"""One forward pass over trees of sequences, and the log-probability of every scored token in it.

In: a model, wrapped in PEFT (and a launcher) or not, trees of paths, the images' features. Out: `Scores` by path, as
TRL's fused head gives them by sequence, with gradient; and the hidden states at the end of each path, for a head that
rates answers. The model is called by its own arguments; only the tokens that have something to predict reach the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from align.tree.attention import form_of, over_trees
from align.tree.batching import TOKENS, passes, split
from align.tree.layout import IGNORED, Layout, Path, lay_out
from align.tree.mask import attention_mask, block_mask, both_ways, sees, within
from align.tree.products import product
from align.tree.unread import last_layer_at
from align.tree.vision import Images, Vectors, Vision, unwrapped

HEAD_CHUNK = 1024
"""Tokens whose logits over the vocabulary are in memory at a time."""
_CPU_PASS = 700
"""Tokens of several trees in one pass on a CPU: what more of them make no longer fits into its caches."""


@dataclass(frozen=True)
class Tree:
    """Paths about the same images; no image for text alone. `layout` is what `lay_out` makes of the paths."""

    paths: tuple[Path, ...]
    images: Images
    layout: Layout

    @classmethod
    def of(cls, paths: Sequence[Path], images: Images) -> "Tree":
        return cls(tuple(paths), images, lay_out(paths))


@dataclass(frozen=True)
class Scores:
    """By path, in the order of the trees: [paths, T-1] with T the longest path's tokens; entry t is about token t+1
    and zero where that is not scored. `log_probs` carries gradient, what TRL logs beside it does not. `tails` are by
    path the hidden states [n, hidden] at its last n tokens."""

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor
    log_sum_sq_probs: Tensor
    label_mask: Tensor
    tails: list[Tensor]

    @property
    def last_hidden(self) -> Tensor:
        """[paths, hidden] at the last token of each."""
        return torch.stack([tail[-1] for tail in self.tails])


@dataclass(frozen=True)
class _Batch:
    """Layouts side by side, padded at the end to the longest; a padding token sees itself alone."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    end: Tensor

    @classmethod
    def of(cls, layouts: Sequence[Layout], device: torch.device) -> "_Batch":
        longest = max(map(len, layouts))
        end = torch.arange(1, longest + 1).repeat(len(layouts), 1)
        for row, layout in enumerate(layouts):
            end[row, : len(layout)] = layout.end
        return cls(
            pad([layout.ids for layout in layouts]).to(device),
            pad([layout.targets for layout in layouts], IGNORED).to(device),
            pad([layout.positions for layout in layouts]).to(device),
            end.to(device),
        )


def pad(tensors: Sequence[Tensor], value: float = 0) -> Tensor:
    """Tensors [L, ...] of different lengths as one, [rows, longest, ...]."""
    padded: Tensor = pad_sequence(list(tensors), batch_first=True, padding_value=value)
    return padded


def score(
    model: Any, trees: Sequence[Tree], vision: Vision, budget: int = TOKENS, tails: Sequence[int] | None = None
) -> Scores:
    """Score every path of every tree, in passes of at most `budget` tokens, of fewer on a CPU where several trees go
    together; a tree that is larger is split. A model with cross-attention gets text alone in a pass of its own, which
    has to skip those layers. `tails` says by path how many hidden states at its end are wanted, one if it is not
    given."""
    parts: list[tuple[Tree, list[int]]] = []  # with its paths' numbers among all paths
    seen = 0
    for tree in trees:
        whole = len(tree.layout) <= budget
        for members in [list(range(len(tree.paths)))] if whole else split(tree.paths, budget):
            part = tree if whole else Tree.of([tree.paths[p] for p in members], tree.images)
            parts.append((part, [seen + p for p in members]))
        seen += len(tree.paths)
    kinds: dict[int, list[int]] = {}
    for n, (part, _) in enumerate(parts):
        crossing = vision.entrance.into == "cross_attention"
        kinds.setdefault(len(part.images) if crossing else 0, []).append(n)
    rows: list[Any] = [None] * seen
    room = min(budget, _CPU_PASS) if vision.backbone.device.type == "cpu" else budget
    for kind in kinds.values():
        for together in passes([len(parts[n][0].layout) for n in kind], room):
            chosen = [parts[kind[i]] for i in together]
            wanted = [[1 if tails is None else tails[number] for number in numbers] for _, numbers in chosen]
            found = _score_rows(model, [tree for tree, _ in chosen], vision, wanted)
            for (_, numbers), scored in zip(chosen, found, strict=True):
                for number, *row in zip(numbers, *scored, strict=True):
                    rows[number] = row
    stacked = pad([row[0] for row in rows])
    log_probs, entropy, mean_logits, log_sum_sq, is_top1, on = stacked.unbind(-1)
    return Scores(
        log_probs,
        entropy.detach(),
        mean_logits.detach(),
        is_top1.detach().bool(),
        log_sum_sq.detach(),
        on.detach().bool(),
        [row[1] for row in rows],
    )


def _score_rows(model: Any, trees: Sequence[Tree], vision: Vision, tails: Sequence[Sequence[int]]) -> list[list[Any]]:
    """For each tree: by path the numbers of its tokens [T-1, 6], and by path the hidden states of its tail."""
    base = unwrapped(model)
    device = vision.backbone.device
    layouts = [tree.layout for tree in trees]
    batch = _Batch.of(layouts, device)
    inputs = _inputs(base, trees, batch, vision)
    wheres = [[where.to(device) for where in layout.where] for layout in layouts]
    at = batch.targets != IGNORED
    read = at.clone()
    for row, (own, wanted) in enumerate(zip(wheres, tails, strict=True)):
        read[row, torch.cat([where[-n:] for where, n in zip(own, wanted, strict=True)])] = True
    with (
        vision.products(),
        over_trees(base.config, batch.end, inputs["attention_mask"]) as how,
        last_layer_at(vision.backbone, read),
    ):
        hidden = _hidden(model, vision.backbone, {**inputs, **how})
    scored = _head(base.get_output_embeddings(), hidden[at], batch.targets[at])
    numbers = scored.new_zeros(*at.shape, scored.shape[-1]).masked_scatter(at[..., None], scored)
    result = []
    for row, own in enumerate(wheres):
        ends = [hidden[row, where[-n:]] for where, n in zip(own, tails[row], strict=True)]
        result.append([[numbers[row, where[:-1]] for where in own], ends])
    return result


def _inputs(base: Any, trees: Sequence[Tree], batch: _Batch, vision: Vision) -> dict[str, Any]:
    """The arguments of the model's forward for a batch of trees."""
    axes = batch.positions.dim() == 3
    inputs: dict[str, Any] = {
        "input_ids": batch.ids,
        "position_ids": batch.positions.permute(2, 0, 1) if axes else batch.positions,
        "attention_mask": _mask(base, trees, batch, vision),
        "use_cache": False,
    }
    rows = dict.fromkeys(tree.images for tree in trees if tree.images)
    vectors = {images: vision.vectors(images) for images in rows}
    if not vectors:
        return inputs
    if vision.entrance.into == "cross_attention":
        inputs["cross_attention_states"] = torch.stack([vectors[tree.images][0] for tree in trees])
        crossing = [tree.layout.sides["cross_attention_mask"] for tree in trees]
        inputs["cross_attention_mask"] = pad(crossing).to(batch.ids.device)
        return inputs
    nth = [(vectors[t.images], _nth_placeholder(t.layout, base.config.image_token_id)) for t in trees if t.images]
    first, *deeper = (torch.cat([vector[n] for vector, n in zip_layer]) for zip_layer in _by_layer(nth))
    output: Any = BaseModelOutputWithPooling(pooler_output=vision.entrance.given(vision.backbone, first))
    if deeper:
        output.deepstack_features = [[layer] for layer in deeper]
    inputs["mm_encoder_outputs"] = {"image": output}
    return inputs


def _by_layer(nth: Sequence[tuple[Vectors, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """By layer that images enter at: each tree's vectors with the numbers of those to place."""
    return [[(vectors[layer], n) for vectors, n in nth] for layer in range(len(nth[0][0]))]


def _mask(base: Any, trees: Sequence[Tree], batch: _Batch, vision: Vision) -> Any:
    """The attention mask, or one for each kind of layer by name."""
    if not vision.entrance.both_ways:
        form = form_of(base.config, batch.end.device, base.dtype)
        return block_mask(batch.end) if form == "flex_attention" else attention_mask(sees(batch.end), form, base.dtype)
    text = base.config.get_text_config()
    block = pad([_blocks(tree.layout) for tree in trees], -1).to(batch.end.device)
    seen = both_ways(sees(batch.end), block)
    kinds = {"full_attention": seen, "sliding_attention": within(seen, batch.positions, text.sliding_window)}
    return {kind: attention_mask(mask, text._attn_implementation, base.dtype) for kind, mask in kinds.items()}


def _blocks(layout: Layout) -> Tensor:
    """For each token the number of the image in its path that it belongs to, -1 for none. Raises ValueError where two
    paths share the beginning of an image and not its end, since its first tokens see its last."""
    block = torch.full_like(layout.ids, -1)
    wholes: dict[int, int] = {}
    for where in layout.where:
        inside = layout.sides["token_type_ids"][where] == 1
        starts = inside & ~torch.cat([inside.new_zeros(1), inside[:-1]])
        number = torch.where(inside, starts.cumsum(0) - 1, -1)
        block[where] = number
        for n in range(int(starts.sum())):
            first, last = where[number == n][[0, -1]].tolist()
            if wholes.setdefault(first, last) != last:
                raise ValueError("two paths share the beginning of an image and not its end")
    return block


def _nth_placeholder(layout: Layout, image_token: int) -> Tensor:
    """For each image token of a layout, in order: which of its path's image tokens it is. Where branches part before
    the image, the same vector is placed in each."""
    nth = torch.zeros_like(layout.ids)
    for where in layout.where:
        nth[where] = (layout.ids[where] == image_token).cumsum(0) - 1
    return nth[layout.ids == image_token]


def _hidden(model: Any, backbone: Any, inputs: dict[str, Any]) -> Tensor:
    """The last hidden states [rows, L, hidden]. The whole model is called, so that a launcher's wrapper sees the
    pass; its own head is asked for one token only."""
    caught: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda _, args, out: caught.append(out.last_hidden_state))
    try:
        model(**inputs, logits_to_keep=torch.tensor([0], device=backbone.device))
    finally:
        handle.remove()
    (hidden,) = caught
    return hidden


def _head(head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """[tokens, 6] float32: log-probability of the target, entropy, mean logit, log of the sum of squared
    probabilities, whether the target is the likeliest token, and 1. The head itself gets no gradient: it is frozen."""
    log_probs, *others = _LogProbs.apply(hidden, head.weight, head.bias, targets)
    return torch.stack([log_probs, *others, torch.ones_like(log_probs)], dim=-1)


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]
    """The log-probabilities of targets through a frozen linear head, in memory for a piece of the tokens' logits.

    For log p = w[t] h - log sum_v exp(w[v] h) the gradient by h is -sum_v (p[v] - [v = t]) w[v]. It is taken while the
    probabilities are there, so that backward needs [tokens, hidden] numbers and no logits. The difference is taken in
    float32: rounded first, it would be lost where the model is sure."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        pieces, slopes = [], []
        for h, t in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK), strict=True):
            logits = product(h, weight, bias).float()
            probs = logits.softmax(-1)
            top, likeliest = logits.max(-1)
            normaliser = top - probs.gather(-1, likeliest[:, None])[:, 0].log()
            pieces.append(
                (
                    logits.gather(-1, t[:, None])[:, 0] - normaliser,
                    normaliser - torch.linalg.vecdot(probs, logits),
                    logits.mean(-1),
                    torch.linalg.vecdot(probs, probs).log(),
                    (likeliest == t).float(),
                )
            )
            if wanted:
                probs.scatter_add_(-1, t[:, None], torch.full_like(probs[:, :1], -1))
                slopes.append(-product(probs.to(weight.dtype), weight.t()).to(h.dtype))
        if wanted:
            ctx.save_for_backward(torch.cat(slopes))
        found = tuple(torch.cat(column) for column in zip(*pieces, strict=True))
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0][:, None].to(slope.dtype), None, None, None
