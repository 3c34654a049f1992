"""Which models a stage loaded, and as what: `dtype: auto` and `device: auto` are written down resolved.

In: `note` from whatever loads a model. Out: `noting` hands them to the runner, which keeps them in `artifact.json`.
They are no part of the key: what `auto` means is up to the machine, and an artifact made elsewhere stays a hit here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

Note = dict[str, str]
_notes: list[Note] = []


def note(model: str, dtype: str, device: str) -> None:
    """A model was loaded."""
    entry = {"model": model, "dtype": dtype.removeprefix("torch."), "device": device}
    if entry not in _notes:
        _notes.append(entry)


@contextmanager
def noting() -> Iterator[list[Note]]:
    """The list of what is loaded inside the block."""
    _notes.clear()
    yield _notes
