"""Products with frozen weights on a CPU, by the faster of the two libraries that torch has for them.

In: the modules of a model, or one weight and what it is multiplied with. Out: the same products but for rounding, with
gradient to what is multiplied and none to the weight. torch multiplies float32 by MKL, which keeps to AVX2 on AMD's
processors (intel/intel-extension-for-pytorch #475); oneDNN uses AVX-512 there, on the same weights where they lie.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from align.tree.instead import instead

ROWS = 64
"""Fewer rows go to MKL. oneDNN gets a multiple of it, and of an eighth of the rows: it keeps what it compiles for each
number of rows, up to a megabyte."""


@cache
def onednn_is_faster() -> bool:
    """Whether this processor is one on which MKL leaves AVX-512 unused."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_f")) and str(found.get("cpu_name")).startswith("AMD")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] by a weight [out, in] and a bias [out]: [..., out]. The weight gets a gradient only where oneDNN is
    not used, for which it has to be frozen, float32, and on a CPU that multiplies faster so."""
    trained = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    kinds = {(tensor.device.type, tensor.dtype) for tensor in (x, weight)}
    other = kinds != {("cpu", torch.float32)} or torch.is_autocast_enabled("cpu")
    few = x.shape[:-1].numel() < ROWS
    if trained or other or few or not (torch.backends.mkldnn.enabled and onednn_is_faster()):
        return torch.nn.functional.linear(x, weight, bias)
    found: Tensor = _Product.apply(x, weight, bias)
    return found


@contextmanager
def frozen_products(model: nn.Module) -> Iterator[None]:
    """While this lasts, linear layers whose weights are frozen multiply by `product`."""

    def there(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        return lambda x: product(x, layer.weight, layer.bias)

    linear = [m for m in model.modules() if type(m) is nn.Linear] if onednn_is_faster() else []
    layers = [m for m in linear if m.weight.device.type == "cpu" and "forward" not in m.__dict__]  # a launcher's stay
    with instead([(layer, there(layer)) for layer in layers]):
        yield


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """By the operator that torch.compile takes for it; it has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _by_onednn(slope, weight.t(), None), None, None


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.flatten(0, -2)
    rows = len(flat)
    step = max(ROWS, 1 << (rows.bit_length() - 4))
    padded = nn.functional.pad(flat, (0, 0, 0, -rows % step))
    found: Tensor = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    return found[:rows].unflatten(0, x.shape[:-1])
