"""The training loop: packing changes nothing, and a continued run equals an uninterrupted one."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.demo.training import IGNORED, Example, Schedule, fit, next_token_loss, pack


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_do_not_see_each_other(model: LlamaForCausalLM, attention: str) -> None:
    model.set_attn_implementation(attention)
    rng = random.Random(0)
    prefix = [rng.randrange(1, 32) for _ in range(5)]
    group = []
    for _ in range(3):
        own = [rng.randrange(1, 32) for _ in range(6)]
        group.append(Example(prefix + own, learned_from=8))
    other = [Example([rng.randrange(1, 32) for _ in range(20)], learned_from=4)]
    batch = pack([group, other], pad=0)
    with torch.no_grad():
        packed = model.model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        loss = next_token_loss(packed, model.lm_head, batch.labels)
        terms: list[Tensor] = []
        for example in [*group, *other]:
            ids = torch.tensor([example.ids])
            logits = model(input_ids=ids).logits[0, example.learned_from - 1 : -1]
            terms.append(nn.functional.cross_entropy(logits, ids[0, example.learned_from :], reduction="none"))
    torch.testing.assert_close(loss, torch.cat(terms).mean())
    assert int((batch.labels != IGNORED).sum()) == 3 * 3 + 16


def test_the_shared_prefix_is_written_once() -> None:
    batch = pack([[Example([1, 2, 3, 4, 9], 4), Example([1, 2, 3, 5, 9], 4)]], pad=0)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 9, 5, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4]]
    same = pack([[Example([1, 2, 3, 4], 2), Example([1, 2, 3, 4], 2)]], pad=0)
    assert (same.labels != IGNORED).sum() == 4, "no learned token is shared"


def squared(model: nn.Linear) -> Callable[[random.Random], Tensor]:
    def loss_of(rng: random.Random) -> Tensor:
        x = torch.tensor([[rng.random(), rng.random()]])
        return (model(x) - x.sum()).square().mean()

    return loss_of


def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def fresh() -> nn.Linear:
        torch.manual_seed(3)
        return nn.Linear(2, 1)

    schedule = Schedule(steps=10)
    whole = fresh()
    expected = fit(whole, squared(whole), schedule, "s", tmp_path / "whole.pt", every=4)

    class Kill(Exception):
        pass

    def kill_at_six(done: int) -> None:
        if done == 6:
            raise Kill

    parts = fresh()
    with pytest.raises(Kill):
        fit(parts, squared(parts), schedule, "s", tmp_path / "parts.pt", every=4, progress=kill_at_six)
    torch.manual_seed(99)
    parts = nn.Linear(2, 1)
    steps: list[int] = []
    losses = fit(parts, squared(parts), schedule, "s", tmp_path / "parts.pt", every=4, progress=steps.append)
    assert steps == list(range(4, 11)), "continued after the checkpoint at step 4"
    assert losses == expected
    assert torch.equal(whole.weight, parts.weight)
    assert torch.equal(whole.bias, parts.bias)


def test_the_rate_rises_then_falls_to_zero() -> None:
    schedule = Schedule(steps=100)
    scales = [schedule.scale(step) for step in range(100)]
    assert max(scales) == pytest.approx(1.0)
    assert scales.index(max(scales)) in (9, 10)
    assert scales[0] == pytest.approx(0.1)
    assert scales[-1] < 0.01
