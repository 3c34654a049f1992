import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from align.adapter import Preset, attach
from align.artifact import Store, begin
from align.errors import UserError
from align.export import REPORT, Merge, lora_arguments, save_merged, shares, why_merge
from align.families import parts_of
from align.models import load, save_processor
from align.proof import language_digests
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama

BUILDERS = {"mllama": tiny_mllama, "idefics3": tiny_idefics3, "llava": tiny_llava}
WHOLE = Preset(tower="lora", connector="full", rank=4)


def adapter(base: Path, folder: Path, preset: Preset, seed: int, spread: float = 0.05) -> str:
    """An adapter folder as training writes it, every weight of it moved."""
    model, processor = load(str(base), "auto", "cpu")
    adapted = attach(model, preset, seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=spread)
    adapted.save_pretrained(folder)
    save_processor(processor, folder)
    return str(folder)


def in_bfloat16(base: Path) -> Path:
    load(str(base))[0].to(torch.bfloat16).save_pretrained(base)
    return base


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """By the names in the module tree; files keep the names under which a family was first published."""
    return {name: parameter.detach() for name, parameter in load(str(folder), "float32", "cpu")[0].named_parameters()}


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_adapter_is_a_plain_model(family: str, dtype: str, tmp_path: Path) -> None:
    base = BUILDERS[family](tmp_path / "base")
    if dtype == "bfloat16":
        in_bfloat16(base)
    name = adapter(base, tmp_path / "a", WHOLE, seed=1)
    out = tmp_path / "merged"
    report = save_merged([name], out)
    # as a stranger loads it, with nothing of this project
    merged = AutoModelForImageTextToText.from_pretrained(out)
    assert str(merged.dtype) == f"torch.{dtype}"
    assert AutoProcessor.from_pretrained(out, backend="pil").chat_template
    assert GenerationConfig.from_pretrained(out).eos_token_id == GenerationConfig.from_pretrained(base).eos_token_id
    assert set(load_file(out / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    original, _ = load(str(base), dtype, "cpu")
    assert language_digests(merged) == language_digests(original)
    parts, plain = parts_of(merged.config), dict(original.named_parameters())
    moved = {parts.of(n) for n, p in merged.named_parameters() if not torch.equal(p, plain[n])}
    assert moved == set(parts.names) - {"language"}
    assert report["language"]["equal"] is True
    assert report["answer"]["moved"] > 0.1
    assert report["answer"]["error"] < (1e-4 if dtype == "float32" else 0.2 * report["answer"]["moved"])
    assert (report["dtype"], report["base"], report["weights"]) == (dtype, str(base), [1.0])
    assert ("Mllama" in report["vllm"]["merged"]) == (family == "mllama")
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("family", BUILDERS)
def test_an_average_is_the_mean_of_deltas_by_hand(family: str, tmp_path: Path) -> None:
    """Adapters of different ranks and parts: W + 0.7 * s1 B1 A1 + 0.3 * s2 B2 A2, in double precision from the files;
    a part that one of them leaves alone counts as the base there."""
    base = BUILDERS[family](tmp_path / "base")
    presets = [Preset(rank=4, alpha=8.0), Preset(tower="lora", rank=3, alpha=12.0)]
    names = [adapter(base, tmp_path / f"a{n}", preset, seed=n) for n, preset in enumerate(presets)]
    report = save_merged(names, tmp_path / "merged", [0.7, 0.3])
    expected = {n: w.double() for n, w in weights_of(base).items()}
    touched = set()
    for name, share, preset in zip(names, [0.7, 0.3], presets, strict=True):
        factors = {n: t.double() for n, t in load_file(Path(name) / "adapter_model.safetensors").items()}
        for key, a in factors.items():
            if key.endswith("lora_A.weight"):
                weight = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                delta = factors[key.replace("lora_A", "lora_B")] @ a
                expected[weight] += share * preset.alpha / preset.rank * delta
                touched.add(weight)
    found = weights_of(tmp_path / "merged")
    for name, weight in weights_of(base).items():
        if name in touched:
            assert not torch.equal(found[name], weight)
            torch.testing.assert_close(found[name].double(), expected[name], atol=1e-6, rtol=0)
        else:
            assert torch.equal(found[name], weight), name
    assert report["answer"]["error"] < 1e-4 < report["answer"]["moved"]
    assert report["vllm"]["adapter"].startswith("an average" if family != "mllama" else "no Mllama")


def test_the_mean_of_factors_is_not_what_is_written(tmp_path: Path) -> None:
    """An adapter and the one with both factors negated are the same delta; the mean of their factors is nothing."""
    base = tiny_idefics3(tmp_path / "base")
    one = adapter(base, tmp_path / "one", Preset(rank=4), seed=1)
    other = adapter(base, tmp_path / "other", Preset(rank=4), seed=1)
    file = Path(other) / "adapter_model.safetensors"
    save_file({n: -t for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    save_merged([one], tmp_path / "alone")
    save_merged([one, other], tmp_path / "mean")
    found, alone = weights_of(tmp_path / "mean"), weights_of(tmp_path / "alone")
    for name, weight in alone.items():
        torch.testing.assert_close(found[name], weight, atol=1e-7, rtol=0)


def test_an_average_of_connectors_trained_whole(tmp_path: Path) -> None:
    base = tiny_llava(tmp_path / "base")
    names = [adapter(base, tmp_path / f"a{n}", WHOLE, seed=n) for n in range(3)]
    report = save_merged(names, tmp_path / "merged")
    key = "base_model.model.model.multi_modal_projector.linear_1.weight"
    own = [load_file(Path(name) / "adapter_model.safetensors")[key] for name in names]
    found = weights_of(tmp_path / "merged")
    (name,) = [n for n in found if n.endswith("multi_modal_projector.linear_1.weight")]
    torch.testing.assert_close(found[name], torch.stack(own).mean(0), atol=1e-6, rtol=0)
    assert report["answer"]["error"] < 1e-4


def test_a_change_that_bfloat16_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = in_bfloat16(tiny_idefics3(tmp_path / "base"))
    name = adapter(base, tmp_path / "a", Preset(rank=4), seed=0, spread=1e-5)
    with pytest.raises(UserError, match="bfloat16 is too coarse for so small a change: dtype=float32"):
        save_merged([name], tmp_path / "merged")
    report = save_merged([name], tmp_path / "wide", dtype="float32")
    assert report["answer"]["error"] < 0.05 * report["answer"]["moved"]


def test_an_adapter_of_the_language_model_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_llava(tmp_path / "base")
    model = get_peft_model(load(str(base))[0], LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"language part is not the base's: .*q_proj"):
        save_merged([str(tmp_path / "a")], tmp_path / "out")


def test_the_check_sees_a_wrong_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import align.export as export

    base = tiny_idefics3(tmp_path / "base")
    name = adapter(base, tmp_path / "a", Preset(rank=4), seed=0)
    right: Callable[..., Any] = export._mean

    def wrong(*given: Any) -> Any:
        model, *others = right(*given)
        model.model.connector.modality_projection.proj.weight.data.mul_(1.01)
        return model, *others

    monkeypatch.setattr(export, "_mean", wrong)
    with pytest.raises(UserError, match=r"logits are .* off"):
        save_merged([name], tmp_path / "out")


def test_as_a_stage(tmp_path: Path) -> None:
    base = tiny_llava(tmp_path / "base")
    names = [adapter(base, tmp_path / f"a{n}", Preset(rank=4), seed=n) for n in range(2)]
    stage = Merge(models=names, weights=[0.25, 0.75])
    stage.check()
    with begin(Store(tmp_path / "store"), "merge", "k") as out:
        metrics = stage.run(out)
    assert json.loads((out.path / REPORT).read_text()) == metrics
    assert not isinstance(load(str(out.path / "model"))[0], PeftModel)
    assert "language model equal to the base's: True" in Merge.summary_of(metrics)


class TestRefusals:
    def test_shares(self) -> None:
        assert shares(None, 4) == [0.25] * 4
        with pytest.raises(UserError, match="weights: 1 for 2 models"):
            shares([1.0], 2)
        for wrong in ([0.5, 0.6], [1.5, -0.5], [1.0, 0.0]):
            with pytest.raises(UserError, match="shares above 0 with sum 1 are expected, not"):
                shares(wrong, 2)

    def test_models(self, tmp_path: Path) -> None:
        base, other = tiny_llava(tmp_path / "base"), tiny_llava(tmp_path / "other", seed=1)
        one = adapter(base, tmp_path / "one", Preset(rank=4), seed=0)
        two = adapter(other, tmp_path / "two", Preset(rank=4), seed=0)
        with pytest.raises(UserError, match=r"base: no adapter_config.json, so there is no adapter to merge"):
            Merge(models=[str(base)]).check()
        with pytest.raises(UserError, match=r"only adapters of one base can be averaged: .*one of .*base, .*two of"):
            Merge(models=[one, two]).check()
        Merge(models=[one, "a-stage-above"]).check()


def test_what_vllm_serves(tmp_path: Path) -> None:
    base = tiny_idefics3(tmp_path / "base")
    plain = Path(adapter(base, tmp_path / "plain", Preset(rank=9), seed=0))
    assert why_merge(plain) is None
    arguments = lora_arguments(plain, "mine")
    assert arguments[-4:] == ["--max-lora-rank", "16", "--lora-modules", f"mine={plain}"]
    assert "trained whole" in str(why_merge(Path(adapter(base, tmp_path / "full", WHOLE, seed=0))))
    mllama = tiny_mllama(tmp_path / "mllama")
    assert "no Mllama" in str(why_merge(Path(adapter(mllama, tmp_path / "m", Preset(rank=4), seed=0))))
    wide = Path(adapter(base, tmp_path / "wide", Preset(rank=600), seed=0))
    with pytest.raises(UserError, match="rank 600 is more than vLLM takes"):
        lora_arguments(wide)
