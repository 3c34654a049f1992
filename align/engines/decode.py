"""The decoding loop behind the transformers engine: prefill a prompt once, draw many answers from it.

`model.generate(custom_generate=...)` prepares inputs, cache and logits processors as always and hands over to this
loop. It runs the prompts once, repeats each prompt's cache for its rows, and gives every row its own stream of
random numbers, so that what a row draws does not depend on what else is in the batch. Rows that ended leave it.

Shapes: B prompts, R rows (answers under way), V vocabulary, T most new tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

GREEDY_BELOW = 1e-5
"""A temperature under this is 0, as in vLLM."""
ONLY_PREFILL = ("pixel_values", "cross_attention_states", "aspect_ratio_ids", "aspect_ratio_mask", "mm_encoder_outputs")
"""Inputs that carry the image: from the second step on it lives in the cache."""


@dataclass(frozen=True)
class Row:
    """One answer to draw: which prompt of the batch it continues, and how."""

    prompt: int
    seed: int
    temperature: float
    top_p: float
    max_tokens: int


@dataclass
class Drawn:
    """What the loop made: per row the token ids (without the end token) and whether an end token came; per prompt
    the log-probabilities (V) of its first token, before temperature, and in `later` by row those of its first token
    that is not white space, where that is a later one."""

    tokens: list[list[int]]
    ended: list[bool]
    first: "Tensor"
    later: "dict[int, Tensor]" = field(default_factory=dict)


def uniforms(seed: int, count: int) -> "Tensor":
    """`count` numbers in [0, 1), float64, on the CPU: a row's own stream, the same on every device."""
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(logits: "Tensor", temperature: "Tensor", top_p: "Tensor", numbers: "Tensor") -> "Tensor":
    """One token a row by inverting the cumulative distribution at the row's number; argmax where temperature is 0.

    logits (R, V) float32; temperature, top_p, numbers (R,) float64. Returns (R,) int64. Nucleus as by Holtzman et al.
    2020: the smallest set of likeliest tokens whose mass reaches top_p.
    """
    import torch

    greedy = temperature < GREEDY_BELOW
    best = logits.argmax(-1)
    if bool(greedy.all()):
        return best
    heat = torch.where(greedy, torch.ones_like(temperature), temperature)
    mass = torch.softmax(logits.double() / heat[:, None], -1)
    if bool((top_p < 1).any()):
        ranked, order = mass.sort(dim=-1, descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p[:, None]
        beyond[:, 0] = False
        mass = mass.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    cumulative = mass.cumsum(-1)
    point = numbers[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return torch.where(greedy, best, token)


class Loop:
    """Decodes `rows` from a batch of prompts; give it to `generate` as `custom_generate`, then read `drawn`."""

    def __init__(self, rows: Sequence[Row], eos: Sequence[int], blank: "Callable[[int], bool] | None" = None) -> None:
        """`blank` says of a token whether it is white space; `Drawn.later` is filled where it is given."""
        self._rows = rows
        self._eos = eos
        self._blank = blank
        self.drawn: Drawn | None = None

    def __call__(
        self,
        model: "PreTrainedModel",
        input_ids: "Tensor",
        logits_processor: "Callable[[Tensor, Tensor], Tensor]",
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> "Tensor":
        import torch

        rows, device, prompts = self._rows, input_ids.device, input_ids.shape[0]
        longest = max(r.max_tokens for r in rows)
        numbers = torch.stack([_padded(uniforms(r.seed, r.max_tokens), longest) for r in rows]).to(device)
        temperature = torch.tensor([r.temperature for r in rows], dtype=torch.float64, device=device)
        top_p = torch.tensor([r.top_p for r in rows], dtype=torch.float64, device=device)
        most = torch.tensor([r.max_tokens for r in rows], device=device)
        eos = torch.tensor(list(self._eos), device=device)

        inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs)
        outputs = model(**inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
        for name in ONLY_PREFILL:
            kwargs.pop(name, None)
        first = outputs.logits[:, -1].float()
        self.drawn = Drawn([], [], torch.log_softmax(first, -1))

        live = torch.arange(len(rows), device=device)
        which = torch.tensor([r.prompt for r in rows], device=device)
        made = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        lengths = torch.zeros(len(rows), dtype=torch.long, device=device)
        ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
        logits, input_ids, kwargs = _select(first, input_ids, kwargs, which, prompts)
        begun = torch.full((len(rows),), self._blank is None, device=device)  # has a token that is not white space
        for step in range(longest):
            scores = logits_processor(input_ids, logits)
            token = draw(scores, temperature[live], top_p[live], numbers[live, step])
            self._note(step, live, token, logits, begun)
            end = torch.isin(token, eos)
            open_before = ~ended[live] & (step < most[live])
            made[live, step] = token
            lengths[live] += (open_before & ~end).long()
            ended[live] |= open_before & end
            on = ~ended[live] & (step + 1 < most[live])
            left = int(on.sum())
            if not left:
                break
            input_ids = torch.cat([input_ids, token[:, None]], -1)
            if left <= 0.75 * len(live):
                keep = on.nonzero()[:, 0]
                _, input_ids, kwargs = _select(None, input_ids, kwargs, keep, len(live))
                live = live[keep]
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
            outputs = model(**inputs, return_dict=True)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
            logits = outputs.logits[:, -1].float()
        self.drawn.tokens = [m[:n] for m, n in zip(made.tolist(), lengths.tolist(), strict=True)]
        self.drawn.ended = ended.tolist()
        return made

    def _note(self, step: int, live: "Tensor", token: "Tensor", logits: "Tensor", begun: "Tensor") -> None:
        """Keep the distribution of each live row's first token that is not white space."""
        import torch

        if self._blank is None or bool(begun.all()):
            return
        assert self.drawn is not None
        for place, (row, chosen) in enumerate(zip(live.tolist(), token.tolist(), strict=True)):
            if not begun[row] and not self._blank(chosen):
                begun[row] = True
                if step:
                    self.drawn.later[row] = torch.log_softmax(logits[place], -1)


def _padded(numbers: "Tensor", length: int) -> "Tensor":
    import torch

    return torch.nn.functional.pad(numbers, (0, length - len(numbers)))


def _select(
    logits: "Tensor | None", input_ids: "Tensor", kwargs: dict[str, Any], index: "torch.Tensor", size: int
) -> "tuple[Tensor, Tensor, dict[str, Any]]":
    """Everything that has a batch dimension of `size`, at `index` of it: repeated, reordered or thinned out."""
    import torch

    if len(index) == size and torch.equal(index, torch.arange(size, device=index.device)):
        return logits, input_ids, kwargs
    kwargs["past_key_values"].reorder_cache(index)
    chosen = {}
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor) and value.dim() > 1:
            dim = value.dim() - 2 if name == "position_ids" else 0  # positions of several axes come first
            value = value.index_select(dim, index) if value.shape[dim] == size else value
        chosen[name] = value
    return (logits if logits is None else logits[index]), input_ids[index], chosen
