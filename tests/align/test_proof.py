import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from align.adapter import Preset, attach, merge
from align.families import parts_of
from align.models import load, load_processor
from align.proof import PROMPTS, Snapshot, check, language_digests, snapshot, text_logits
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama
from tests.tiny_families import CONFIGS, image_batch, tiny_model

FOLDERS = [tiny_mllama, tiny_idefics3, tiny_llava]


def trained(model: PreTrainedModel, preset: Preset) -> torch.nn.Module:
    """An adapter whose every weight has moved."""
    adapted = attach(model, preset, seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.1)
    return adapted


@pytest.mark.parametrize("build", FOLDERS)
@pytest.mark.parametrize("preset", [Preset(), Preset(tower="lora", connector="full")])
def test_a_trained_adapter_leaves_the_language_model_alone(
    build: Callable[[Path], Path], preset: Preset, tmp_path: Path
) -> None:
    model, processor = load(str(build(tmp_path)))
    before = snapshot(model, processor)
    verdict = check(before, snapshot(trained(model, preset), processor))
    assert verdict["equal"] is True
    assert verdict["language_tensors_changed"] == []
    assert verdict["text_logits_max_abs_diff"] == 0.0
    assert verdict["text_logits_sha256_before"] == verdict["text_logits_sha256_after"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_digests_are_those_of_the_language_part_wrapped_or_not(kind: str) -> None:
    plain = language_digests(tiny_model(kind))
    model = tiny_model(kind)
    parts = parts_of(model.config)
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if parts.of(n) == "language"]
    assert sorted(plain) == sorted(names)
    adapted = trained(model, Preset(tower="lora", connector="full"))
    assert language_digests(adapted) == plain
    assert language_digests(merge(adapted)) == plain


def test_a_digest_by_hand() -> None:
    model = tiny_model("llava")
    weight = model.lm_head.weight
    expected = hashlib.sha256(b"torch.float32 (64, 16) " + weight.detach().numpy().tobytes()).hexdigest()
    assert language_digests(model)["lm_head.weight"] == expected


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_bit_of_any_language_tensor_is_seen(kind: str) -> None:
    model = tiny_model(kind).bfloat16()
    before = language_digests(model)
    parts = parts_of(model.config)
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    for name in before:
        tensor = tensors[name].detach()
        bits = tensor.view(-1)[:1].view(torch.uint8)
        bits[0] ^= 1
        after = language_digests(model)
        assert [n for n in before if before[n] != after[n]] == [name]
        bits[0] ^= 1
    assert language_digests(model) == before
    for name, parameter in model.named_parameters():
        if parts.of(name) != "language":
            parameter.data.add_(1)
    assert language_digests(model) == before


def test_a_change_of_dtype_is_seen() -> None:
    before = language_digests(tiny_model("mllama").bfloat16())
    after = language_digests(tiny_model("mllama").bfloat16().float())
    assert all(before[n] != after[n] for n in before)


@pytest.mark.parametrize("build", FOLDERS)
def test_a_changed_language_model_is_caught(build: Callable[[Path], Path], tmp_path: Path) -> None:
    model, processor = load(str(build(tmp_path)))
    before = snapshot(model, processor)
    name = next(n for n in before.digests if n.endswith("layers.0.self_attn.q_proj.weight"))
    with torch.no_grad():
        model.get_parameter(name).add_(1e-3)
    verdict = check(before, snapshot(model, processor))
    assert verdict["equal"] is False
    assert verdict["language_tensors_changed"] == [name]
    assert verdict["text_logits_equal"] is False
    assert verdict["text_logits_max_abs_diff"] > 0


def test_logits_alone_are_enough_to_fail() -> None:
    """-0.0 equals 0.0 as a number and is another bit pattern; a missing tensor is a change too."""
    zeros = torch.zeros(2, 3)
    assert check(Snapshot({"a": "1"}, zeros), Snapshot({"a": "1"}, zeros.clone()))["equal"] is True
    assert check(Snapshot({"a": "1"}, zeros), Snapshot({"a": "1"}, -zeros))["equal"] is False
    assert check(Snapshot({"a": "1"}, zeros), Snapshot({}, zeros))["language_tensors_changed"] == ["a"]
    assert check(Snapshot({}, zeros), Snapshot({}, torch.zeros(1, 3)))["equal"] is False


@pytest.mark.parametrize("build", FOLDERS)
def test_logits_are_those_of_plain_calls_in_every_language(build: Callable[[Path], Path], tmp_path: Path) -> None:
    model, processor = load(str(build(tmp_path)))
    assert len(PROMPTS) == 8
    found = text_logits(model, processor)
    row = 0
    for prompt in PROMPTS:
        ids = processor.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(input_ids=ids).logits[0]
        torch.testing.assert_close(found[row : row + len(expected)], expected)
        row += len(expected)
    assert len(found) - row >= 32  # the sweep over the vocabulary
    assert found.dtype == torch.float32
    assert torch.equal(found, text_logits(model, processor))


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model, processor = load(str(tiny_llava(tmp_path)))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    adapted = attach(model, Preset(dropout=0.5), seed=0)
    adapted.train()
    adapted.base_model.model.model.vision_tower.eval()
    modes = {name: module.training for name, module in adapted.named_modules()}
    one, two = text_logits(adapted, processor), text_logits(adapted, processor)
    assert torch.equal(one, two)
    assert {name: module.training for name, module in adapted.named_modules()} == modes
    assert all(p.grad is None for p in adapted.parameters())


def test_a_forward_that_a_trainer_has_wrapped_in_autocast_is_not_used(tmp_path: Path) -> None:
    model, processor = load(str(tiny_llava(tmp_path)))
    adapted = attach(model, Preset(), seed=0)
    before = text_logits(adapted, processor)
    adapted.forward = torch.autocast("cpu", torch.bfloat16)(adapted.forward)
    with torch.no_grad():
        ids = processor.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        assert not torch.equal(adapted(input_ids=ids).logits[0].float(), before[: ids.shape[1]])
    assert torch.equal(text_logits(adapted, processor), before)


def test_a_tokenizer_that_knows_no_word_still_leaves_the_sweep(tmp_path: Path) -> None:
    model, processor = load(str(tiny_llava(tmp_path)))
    assert len(text_logits(model, processor, prompts=[""])) >= 32
    assert load_processor(tmp_path).tokenizer("")["input_ids"] == []


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapter_was_really_on(kind: str) -> None:
    """The same trained adapter that leaves text alone moves an image's logits."""
    batch = image_batch(kind)
    with torch.no_grad():
        plain = tiny_model(kind)(**batch).logits
        adapted = trained(tiny_model(kind), Preset())(**batch).logits
    assert (plain - adapted).abs().max() > 1e-3
