"""The proof that a training left the language model alone: its tensors' digests and its answers to text, before and
after.

In: a model, wrapped in an adapter or not. Out: sha256 of every parameter and buffer of the language part, and the
logits on text alone with the adapter switched on. Text never reaches tower, connector or cross-attention, so both have
to be equal to the last bit, on the same machine with the same threads.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.adapter import plain_name
from align.families import parts_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import ProcessorMixin

PROMPTS: tuple[str, ...] = (
    "The capital of France is Paris, and the capital of Italy is",
    "Die Summe von sieben und fünf ist zwölf. Das Doppelte davon ist",
    "L'eau bout à cent degrés et gèle à",
    "Il libro è sulla tavola accanto alla",
    "Quem chega primeiro à estação espera pelos",
    "भारत की राजधानी नई दिल्ली है और जापान की राजधानी",
    "Tres manzanas y dos naranjas son en total",
    "ประเทศไทยมีฤดูร้อน ฤดูฝน และ",
)
"""One line in each language of Llama 3.2: English, German, French, Italian, Portuguese, Hindi, Spanish, Thai."""
_CHUNK = 1 << 24
_SWEEP = 64


@dataclass(frozen=True)
class Snapshot:
    """The language model at one moment: digests by tensor name, float32 logits [tokens, vocabulary] on the CPU."""

    digests: dict[str, str]
    logits: "torch.Tensor"


def language_digests(model: "nn.Module") -> dict[str, str]:
    """sha256 of every language tensor, parameters and buffers, of dtype, shape and raw bytes. Names are those of the
    unwrapped model, so that a model with and without its adapter can be compared; tied weights count once."""
    parts = parts_of(model.config)
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        plain = plain_name(name)
        if "lora_" not in name and "modules_to_save" not in name and parts.of(plain) == "language":
            found[plain] = _digest(tensor)
    return found


def _digest(tensor: "torch.Tensor") -> str:
    """In pieces of 16 MiB at most beyond the tensor, whatever its size and device."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()


def text_logits(model: "nn.Module", processor: "ProcessorMixin", prompts: Sequence[str] = PROMPTS) -> "torch.Tensor":
    """Float32 logits [tokens, vocabulary] on text alone, the adapter as it is. One prompt a pass, so that no padding
    and no batch shape enters; after the prompts comes a sweep over the vocabulary, which says something even where a
    small tokenizer knows no word of the prompts."""
    import torch

    tokenizer = processor.tokenizer
    size = model.get_input_embeddings().weight.shape[0]
    images = {getattr(model.config, name, None) for name in ("image_token_id", "image_token_index", "video_token_id")}
    special = {*tokenizer.all_special_ids, *images}
    plain = [i for i in range(min(size, len(tokenizer))) if i not in special]
    sequences = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    sequences.append(plain[:: max(1, len(plain) // _SWEEP)][:_SWEEP])
    device = model.get_input_embeddings().weight.device
    logits = []
    # The class's forward: a trainer leaves one on the instance that runs under autocast, and these would be other bits.
    forward = type(model).forward
    with _evaluating(model), torch.no_grad():
        for ids in sequences:
            if ids:
                tokens = torch.tensor([ids], device=device)
                output = forward(model, input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
                logits.append(output.logits[0].float().cpu())
    return torch.cat(logits)


@contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    """Dropout off inside, every module in its former mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def snapshot(model: "nn.Module", processor: "ProcessorMixin") -> Snapshot:
    """Both halves of the proof for the model as it is now."""
    logits = text_logits(model, processor)  # first: some rotary buffers follow the length of the last input
    return Snapshot(language_digests(model), logits)


def record(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """The digests behind the verdict, ready for JSON: sha256 before and after of every language tensor by name, and of
    the logits; None where a tensor is not there."""
    names = sorted(before.digests.keys() | after.digests.keys())
    return {
        "language_tensors": {
            name: {"before": before.digests.get(name), "after": after.digests.get(name)} for name in names
        },
        "text_logits": {"before": _digest(before.logits), "after": _digest(after.logits)},
    }


def check(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """The verdict, ready for JSON: `equal` says that every digest and every logit is the same to the last bit."""
    import torch

    changed = sorted(
        name for name in before.digests.keys() | after.digests.keys()
        if before.digests.get(name) != after.digests.get(name)
    )  # fmt: skip
    same_shape = before.logits.shape == after.logits.shape
    bits = same_shape and torch.equal(before.logits.view(torch.int32), after.logits.view(torch.int32))
    return {
        "equal": not changed and bits,
        "language_tensors": len(before.digests),
        "language_tensors_changed": changed,
        "text_logits": before.logits.numel(),
        "text_logits_equal": bits,
        "text_logits_max_abs_diff": float((before.logits - after.logits).abs().max()) if same_shape else None,
        "text_logits_sha256_before": _digest(before.logits),
        "text_logits_sha256_after": _digest(after.logits),
    }
