"""For a while, modules run other functions than their own.

In: modules, and what each is to run. Out: nothing; afterwards the modules are as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def instead(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """While this lasts, modules run these functions in place of their `forward`."""
    before = [dict(module.__dict__) for module, _ in forwards]
    for module, forward in forwards:
        module.forward = forward
    try:
        yield
    finally:
        for (module, _), own in zip(forwards, before, strict=True):
            del module.forward  # its class's own again, or the one that a launcher has put there
            module.__dict__.update({name: own[name] for name in ("forward",) if name in own})
