"""Trees that fit: split where they are too large, put into passes of similar lengths, ordered image by image.

In: paths, trees, rows with their images. Out: which of them go together. A score belongs to one path and no other path
can see it, so any way to split and to pack gives the same numbers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from align.tree.layout import Path, common_prefix, reading_order

TOKENS = 1 << 15
"""Tokens, padding included, in one pass of the model."""


def split(paths: Sequence[Path], budget: int) -> list[list[int]]:
    """Paths by number in parts that lay out at most `budget` tokens each; a longer path stands alone. Neighbours in
    the tree stay together, so little is laid out twice."""
    tables = [path.table() for path in paths]
    parts: list[list[int]] = []
    tokens = 0
    for p in reading_order(tables):
        fresh = len(tables[p]) - (common_prefix(tables[parts[-1][-1]], tables[p]) if parts else 0)
        if parts and tokens + fresh <= budget:
            parts[-1].append(p)
            tokens += fresh
        else:
            parts.append([p])
            tokens = len(tables[p])
    return [sorted(part) for part in parts]


def passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Trees by number in passes of at most `budget` tokens, each tree padded to the pass's longest; those of similar
    length together, so that little is padded."""
    found: list[list[int]] = []
    for t in sorted(range(len(lengths)), key=lambda t: -lengths[t]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(t)
        else:
            found.append([t])
    return found


class ImageOrder(Sampler):  # type: ignore[misc]
    """The rows of a data set in a random order in which those of one image stand together, so that they meet in one
    batch; another order in each epoch, the same one for the same seed and epoch."""

    def __init__(self, images: Sequence[object], seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        self._rows: dict[object, list[int]] = {}
        for row, image in enumerate(images):
            self._rows.setdefault(image, []).append(row)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        groups: list[Any] = list(self._rows.values())
        for g in torch.randperm(len(groups), generator=draw).tolist():
            yield from (groups[g][i] for i in torch.randperm(len(groups[g]), generator=draw).tolist())
