"""No work for a gradient that nobody uses: none in the tower, none below the first trainable layer, and no logits of
tokens that are not scored."""

from pathlib import Path
from typing import Any

import pytest
import torch

import align.training.run as running
from align.adapter import Preset
from align.artifact import Store, begin
from align.dpo import DPO
from align.records import QA, Pair
from align.sft import SFT
from align.training.encode import Example
from align.tree import forward
from tests.align.training.corpus import images, keep, pairs, questions, tiny


@pytest.mark.parametrize("path", ["tree", "plain"])
@pytest.mark.parametrize("stage", [SFT, DPO])
@pytest.mark.parametrize("family", ["mllama", "idefics3", "llava"])
def test_no_wasted_gradient(
    stage: Any, family: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "plain":
        monkeypatch.setattr("align.tree.vision.why_plain", lambda *_: "for the test")
    store = Store(tmp_path / "store")
    rows = list((questions if stage is SFT else pairs)(images(store, 2), 4))
    training = stage(
        input=keep(store, rows, QA if stage is SFT else Pair), model=str(tiny(family, tmp_path)), batch_size=4,
        max_steps=1, adapter=Preset(rank=2),
    )  # fmt: skip
    with_gradient: set[str] = set()
    scored: list[int] = []
    tokens: list[int] = []
    made = running.make_trainer

    def watched(stage: Any, model: Any, processor: Any, examples: list[Example], *more: Any) -> Any:
        trainer, how = made(stage, model, processor, examples, *more)
        tokens.append(sum(int(s.scored.sum()) for e in examples for s in e.sequences))
        base = model.get_base_model()

        def hook(name: str) -> Any:
            def look(module: Any, given: Any, out: Any) -> None:
                first = out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)
                if isinstance(first, torch.Tensor) and first.requires_grad:
                    with_gradient.add(name)

            return look

        for name, module in base.named_modules():
            module.register_forward_hook(hook(name))
        assert not model.is_gradient_checkpointing
        return trainer, how

    monkeypatch.setattr(running, "make_trainer", watched)
    inner = forward._LogProbs.apply

    def counted(hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
        if hidden.requires_grad:
            scored.append(len(targets))
        return inner(hidden, weight, bias, targets)

    monkeypatch.setattr(forward._LogProbs, "apply", counted)
    with begin(store, training.NAME, "a") as out:
        metrics = training.run(out)
    assert metrics["training"]["path"].startswith(path)
    towers = [name for name in with_gradient if "vision_model" in name or "vision_tower" in name]
    assert not towers
    assert any("connector" in name or "projector" in name for name in with_gradient)
    if family == "mllama":  # the layers before the first cross-attention have nothing to learn and nothing below them
        assert not [name for name in with_gradient if name.endswith(("layers.0", "layers.0.mlp"))]
    if path == "tree":  # shared tokens are scored once where they predict the same; never more than there are
        assert 0 < sum(scored) <= tokens[0]


def test_mllamas_masked_tiles_are_read_only_by_what_stands_before_the_image(tmp_path: Path) -> None:
    """Why all tiles are kept, padding ones too: transformers gives a token before the image, which may see no tile, no
    mask at all. Where every token may see the image, what masked tiles hold changes nothing."""
    from align.models import load

    model, _ = load(str(tiny("mllama", tmp_path)))
    patches = model.config.vision_config.image_size**2 // model.config.vision_config.patch_size**2 + 1
    tiles, width = model.config.vision_config.max_num_tiles, model.config.text_config.hidden_size
    states = torch.randn(1, tiles * patches, width, generator=torch.Generator().manual_seed(0))
    other = states.clone()
    other[:, patches:] = 7.0  # all tiles but the first
    ids = torch.tensor([[256, 5, 6, 7, 8]])
    for first, exact in ((0, True), (2, False)):  # the first token that may see the image
        mask = torch.zeros(1, 5, 1, tiles, dtype=torch.long)
        mask[:, first:, :, 0] = 1
        with torch.no_grad():
            one, two = (
                model(input_ids=ids, cross_attention_states=s, cross_attention_mask=mask, use_cache=False).logits
                for s in (states, other)
            )
        assert bool((one - two).abs().max() < 1e-6) == exact
