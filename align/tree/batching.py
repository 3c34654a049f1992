"""Trees that fit: split where they are too large, put into passes of similar lengths, ordered image by image.

In: paths, trees, rows with their images. Out: which of them go together. A score belongs to one path and no other path
can see it, so any way to split and to pack gives the same numbers.
"""

from collections.abc import Iterator, Sequence

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
    batch, at most `together` of them; another order in each epoch, the same one for the same seed and epoch.

    Where an optimizer step has several batches (`parts` of `size` rows, some of them on other ranks), each whole step's
    rows are dealt out so that an image stays in one batch and the batches cost alike, neighbours most: those run at
    the same time. `costs` gives a row's tokens, those that rows of its image share and those of its own."""

    def __init__(
        self,
        images: Sequence[object],
        seed: int,
        costs: Sequence[tuple[int, int]] | None = None,
        parts: int = 1,
        size: int = 0,
        together: int = 1 << 30,
    ) -> None:
        self.seed = seed
        self._together = together
        self.epoch = 0
        self._images, self._costs, self._parts, self._size = images, costs, parts, size
        self._rows: dict[object, list[int]] = {}
        for row, image in enumerate(images):
            self._rows.setdefault(image, []).append(row)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        pieces: list[list[int]] = []
        for rows in self._rows.values():
            drawn = [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()]
            pieces += (drawn[start : start + self._together] for start in range(0, len(drawn), self._together))
        order = [row for p in torch.randperm(len(pieces), generator=draw).tolist() for row in pieces[p]]
        step = self._parts * self._size if self._parts > 1 else len(order)
        for start in range(0, len(order), step or 1):
            rows = order[start : start + step]
            yield from self._dealt(rows) if self._parts > 1 and len(rows) == step else rows

    def _dealt(self, rows: Sequence[int]) -> Iterator[int]:
        """A step's rows batch by batch: images by falling cost, each to the cheapest batch that has room for it."""
        groups: dict[object, list[int]] = {}
        for row in rows:
            groups.setdefault(self._images[row], []).append(row)
        batches: list[list[int]] = [[] for _ in range(self._parts)]
        spent = [0] * self._parts
        for group in sorted(groups.values(), key=self._cost, reverse=True):
            left = group
            while left:
                room = [self._size - len(batch) for batch in batches]
                whole = [p for p in range(self._parts) if room[p] >= len(left)]
                p = min(whole or [p for p in range(self._parts) if room[p]], key=lambda p: spent[p])
                taken, left = left[: room[p]], left[room[p] :]
                batches[p] += taken
                spent[p] += self._cost(taken)
        for p in sorted(range(self._parts), key=lambda p: spent[p]):
            yield from batches[p]

    def _cost(self, rows: Sequence[int]) -> int:
        """About how many tokens rows of one image lay out."""
        if self._costs is None:
            return len(rows)
        return max(self._costs[row][0] for row in rows) + sum(self._costs[row][1] for row in rows)
