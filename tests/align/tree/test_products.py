import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import align.tree.products as products
from align.adapter import Preset
from align.tree.forward import score
from align.tree.products import frozen_products, product
from tests.plain import tiny_case

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def by_onednn(monkeypatch):
    """As on a processor where oneDNN is the faster one; gives the shapes that it multiplied."""
    seen: list[tuple[int, ...]] = []
    own = products._by_onednn
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_by_onednn", lambda x, *given: seen.append(tuple(x.shape)) or own(x, *given))
    return seen


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_onednn
@pytest.mark.parametrize("shape", [(64, 24), (3, 50, 24), (1, 700, 24), (2, 1, 90, 24)])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_torchs_own(by_onednn, shape, biased):
    x, weight, bias = drawn(*shape), drawn(10, 24, seed=1), drawn(10, seed=2) if biased else None
    slope = drawn(*shape[:-1], 10, seed=3)
    found = []
    for way in (product, linear):
        given = x.clone().requires_grad_()
        out = way(given, weight, bias)
        out.backward(slope)
        found.append((out.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert by_onednn == [shape, (*shape[:-1], 10)]


@needs_onednn
def test_tensors_that_do_not_lie_in_a_row(by_onednn):
    x, weight = drawn(6, 50, 4).transpose(0, 2), drawn(6, 8).t()
    torch.testing.assert_close(product(x, weight), linear(x, weight))
    given = drawn(80, 6).requires_grad_()
    product(given, weight).sum().backward()  # the gradient that arrives is one number, expanded
    torch.testing.assert_close(given.grad, weight.sum(0).expand(80, 6))
    assert len(by_onednn) == 3


@needs_onednn
def test_a_weight_that_trains_gets_its_gradient(by_onednn):
    x, weight, bias = drawn(100, 4), drawn(2, 4).requires_grad_(), torch.zeros(2, requires_grad=True)
    product(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(2, 4))
    product(x, weight.detach(), bias).sum().backward()
    assert bias.grad.tolist() == [100, 100]
    assert not by_onednn
    with torch.no_grad():
        product(x, weight)
    assert by_onednn == [(100, 4)]


@needs_onednn
def test_left_to_torch_are_other_numbers_autocast_and_few_rows(by_onednn, monkeypatch):
    x, weight = drawn(100, 4), drawn(2, 4)
    assert product(x.double(), weight.double()).dtype == torch.float64
    assert product(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight).dtype == torch.bfloat16
    for few in (0, 1, 63):
        assert product(x[:few], weight).shape == (few, 2)
    assert product(x[0], weight).shape == (2,)
    with monkeypatch.context() as switched_off:
        switched_off.setattr(torch.backends.mkldnn, "enabled", False)
        product(x, weight)
    assert not by_onednn
    product(x, weight)
    assert by_onednn


@needs_onednn
def test_of_all_numbers_of_rows_it_gets_few(monkeypatch):
    """It keeps what it compiles for each: unbounded, a server would grow with every new length."""
    seen: set[int] = set()
    weight = drawn(3, 2)

    class Operator:
        @staticmethod
        def _linear_pointwise(x, weight, bias, *_):
            seen.add(len(x))
            return linear(x, weight, bias)

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", Operator)
    for rows in range(64, 5000):
        x = drawn(rows, 2)
        torch.testing.assert_close(product(x, weight), linear(x, weight))
        assert rows <= max(seen) <= rows + max(64, rows / 8)
    assert len(seen) < 40


@needs_onednn
def test_frozen_layers_of_a_model_multiply_so_and_afterwards_as_before(by_onednn):
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5), Odd(5, 3), nn.Linear(3, 2))
    for n in (1, 2, 3):
        model[n].requires_grad_(False)
    launched = model[3].forward = model[3].forward
    x = drawn(66, 4)
    expected = model(x)
    with frozen_products(model):
        found = model(x)
        found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert by_onednn == [(66, 4), (66, 5)]  # the second layer, forth and back
    assert model[0].weight.grad is not None
    assert model[1].weight.grad is None
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == ["3"]
    assert model[3].forward is launched


def test_it_is_for_amd_with_avx512(monkeypatch):
    told = {
        ("AMD EPYC", True): True,
        ("AMD Ryzen 9 7950X", True): True,
        ("AMD EPYC 7742", False): False,
        ("Intel Xeon Platinum 8480+", True): False,
        ("Apple M2", None): False,
    }
    for (name, wide), expected in told.items():
        found = {"cpu_name": name} | ({} if wide is None else {"avx512_f": wide})
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert products.onednn_is_faster.__wrapped__() is expected


@needs_onednn
def test_a_model_whose_tower_trains_multiplies_so_in_its_head_alone_until_nothing_trains(
    by_onednn, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(products, "ROWS", 1)
    root = tmp_path_factory.getbasetemp() / "tiny"
    root.mkdir(exist_ok=True)
    axes = []
    for tower, trains in (("frozen", True), ("lora", True), ("lora", False)):
        told = tiny_case(root, "llava", Preset(rank=4, tower=tower))
        by_onednn.clear()
        with torch.set_grad_enabled(trains):
            score(told.model, told.trees(), told.vision())
        axes.append({len(shape) for shape in by_onednn})
    assert axes == [{2, 3}, {2}, {2, 3}]  # layers have rows, tokens and hidden numbers, the head has no rows
