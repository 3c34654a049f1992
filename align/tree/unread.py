"""Work that nothing reads, left out of a pass: the last layer's at tokens that no head sees, the tower's layers above
the one that the connector takes.

In: a model's modules, and what is read of them. Out: nothing; while a context lasts, the modules do less, and what is
read of them, gradients too, is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from align.tree.instead import instead


@contextmanager
def last_layer_at(backbone: Any, at: Tensor) -> Iterator[None]:
    """The hidden states of a language model hold at the tokens `at` [rows, L] (boolean) alone: its last layer makes
    keys and values of every token, and the rest, which is each token's own, of these."""
    layer = backbone.get_decoder().layers[-1]
    attention = getattr(layer, "cross_attn", None) or layer.self_attn
    places = at.flatten().nonzero()[:, 0]

    def there(module: nn.Module) -> Callable[[Tensor], Tensor]:
        whole = module.forward

        def forward(hidden: Tensor) -> Tensor:
            found = whole(hidden.flatten(0, 1)[places][None])[0]
            rest = found.new_zeros(at.numel(), found.shape[-1])
            return rest.index_copy(0, places, found).unflatten(0, at.shape)

        return forward

    with instead([(module, there(module)) for module in (attention.q_proj, attention.o_proj, layer.mlp)]):
        yield


@contextmanager
def layers_up_to(layers: Sequence[nn.Module], read: int | Sequence[int]) -> Iterator[None]:
    """Of a tower's layers the hidden states numbered `read` are read, as transformers numbers them (0 is what the
    first layer gets, -1 what the last gives): the layers above hand on what they get."""
    numbers = [read] if isinstance(read, int) else read
    top = max(number % (len(layers) + 1) for number in numbers)
    with instead([(layer, lambda hidden, *_, **__: hidden) for layer in layers[top:]]):
        yield
