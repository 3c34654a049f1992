import itertools
import random
from pathlib import Path as FilePath

import pytest
import torch

from align.tree.batching import ImageOrder, passes, split
from align.tree.forward import score
from align.tree.layout import IGNORED, Path, lay_out
from tests.plain import BUILDERS, TOLERANCE, gradients, tiny_case


def paths(seed: int) -> list[Path]:
    draw = random.Random(seed)
    found = []
    for question in range(4):
        for _ in range(3):
            ids = torch.tensor([1] * 10 + [question] * 5 + [draw.randint(2, 9) for _ in range(draw.randint(1, 12))])
            found.append(Path(ids, torch.cat([torch.full((15,), IGNORED), ids[15:]])))
    draw.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budget", [20, 40, 80, 1000])
def test_parts_hold_every_path_once_within_the_budget(seed, budget):
    whole = paths(seed)
    parts = split(whole, budget)
    assert sorted(p for part in parts for p in part) == list(range(len(whole)))
    for part in parts:
        assert len(part) == 1 or len(lay_out([whole[p] for p in part])) <= budget
    if budget == 1000:
        assert len(parts) == 1


@pytest.mark.parametrize("seed", range(10))
def test_passes_hold_every_tree_once_within_the_budget(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 60) for _ in range(30)]
    found = passes(lengths, 200)
    assert sorted(t for together in found for t in together) == list(range(30))
    assert all(len(together) * max(lengths[t] for t in together) <= 200 for together in found)
    padded = sum(len(together) * max(lengths[t] for t in together) for together in found)
    assert padded < 1.35 * sum(lengths)


@pytest.mark.parametrize("family", BUILDERS)
def test_splitting_and_packing_change_no_score_and_no_gradient(tmp_path_factory, family):
    told = tiny_case(FilePath(tmp_path_factory.getbasetemp()) / "tiny", family)
    trees = told.trees()
    results = []
    for budget in (1 << 20, 60, 1):
        scores = score(told.model, trees, told.vision(), budget)
        scores.log_probs.sum().backward()
        results.append((scores, gradients(told.model)))
    (whole, expected), *others = results
    for scores, found in others:
        torch.testing.assert_close(scores.log_probs, whole.log_probs, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(scores.last_hidden, whole.last_hidden, atol=TOLERANCE, rtol=TOLERANCE)
        for name, gradient in expected.items():
            assert (found[name] - gradient).abs().max() <= TOLERANCE * gradient.abs().max()


def test_rows_of_an_image_stand_together_in_another_order_each_epoch():
    images = [draw % 7 for draw in range(50)]
    order = ImageOrder(images, seed=3)
    first = list(order)
    assert sorted(first) == list(range(50))
    assert len(order) == 50
    runs = [images[row] for row in first]
    assert sum(a != b for a, b in itertools.pairwise(runs)) == 6
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(ImageOrder(images, seed=4)) != first
