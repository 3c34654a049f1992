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
    tails = [1 + n % 3 for n in range(sum(len(tree.paths) for tree in trees))]
    for budget in (1 << 20, 60, 1):
        scores = score(told.model, trees, told.vision(), budget, tails)
        scores.log_probs.sum().backward()
        results.append((scores, gradients(told.model)))
    (whole, expected), *others = results
    for scores, found in others:
        torch.testing.assert_close(scores.log_probs, whole.log_probs, atol=TOLERANCE, rtol=0)
        for tail, alike, length in zip(scores.tails, whole.tails, tails, strict=True):
            assert len(tail) == length
            torch.testing.assert_close(tail, alike, atol=TOLERANCE, rtol=TOLERANCE)
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


def test_no_more_rows_of_an_image_stand_together_than_are_wanted():
    images = [row // 10 for row in range(100)]
    found = list(ImageOrder(images, seed=0, together=4))
    assert sorted(found) == list(range(100))
    starts = [n for n in range(100) if n == 0 or images[found[n]] != images[found[n - 1]]]
    assert len(starts) >= 27  # thirty pieces, of which few meet by chance
    order = list(ImageOrder(images, seed=0, together=1))
    assert order != found


@pytest.mark.parametrize("seed", range(5))
def test_a_steps_batches_cost_alike_and_keep_images_whole(seed):
    draw = random.Random(seed)
    images = [row // 5 for row in range(200)]  # 40 images of 5 rows
    costs = [(draw.randint(5, 100), draw.randint(1, 60)) for _ in images]

    def cost(rows):
        by_image = {}
        for row in rows:
            by_image.setdefault(images[row], []).append(row)
        return sum(max(costs[r][0] for r in g) + sum(costs[r][1] for r in g) for g in by_image.values())

    order = list(ImageOrder(images, seed, costs, parts=4, size=10))
    plain = list(ImageOrder(images, seed))
    assert sorted(order) == list(range(200))
    gaps = []
    for start in range(0, 200, 40):
        assert sorted(order[start : start + 40]) == sorted(plain[start : start + 40])  # a step has the rows it had
        batches = [order[n : n + 10] for n in range(start, start + 40, 10)]
        assert all(len({images[row] for row in batch}) == 2 for batch in batches)
        gaps.append([max(map(cost, found)) / min(map(cost, found)) for found in (
            batches, [plain[n : n + 10] for n in range(start, start + 40, 10)]
        )])  # fmt: skip
    assert sum(dealt for dealt, _ in gaps) < sum(drawn for _, drawn in gaps)


def test_dealing_cuts_an_image_only_where_no_batch_has_room():
    order = list(ImageOrder(["a"] * 5 + ["b"] * 2 + ["c"], 0, parts=2, size=4))
    first, second = (sorted("aaaaabbc"[row] for row in order[n : n + 4]) for n in (0, 4))
    assert sorted([first, second]) == [["a", "a", "a", "a"], ["a", "b", "b", "c"]]
    assert sorted(ImageOrder(["a"] * 5, 0, parts=2, size=4)) == list(range(5))
