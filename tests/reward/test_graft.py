"""A text reward model inside a vision-language model: the same ratings of text, the same vision side."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from align.artifact import Store, begin
from align.config import Source, build
from align.errors import UserError
from align.families import parts_of
from align.models import load
from pipelines.pipeline import plan, single
from reward.graft import Graft
from reward.model import first_head, fresh_head, load_head, load_rater, save_head
from tests.align.training.corpus import tiny


def text_reward(model: Path, folder: Path, kind: type = LlamaForSequenceClassification, **changes: object) -> Path:
    """A Llama of its own weights, in the shape of a tiny model's self-attention layers."""
    config = load(str(model), "float32", "cpu")[0].config
    text = config.get_text_config()
    rows = text.vocab_size
    layers = text.num_hidden_layers - len(getattr(text, "cross_attention_layers", []))
    shape = {key: getattr(text, key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    shape |= {key: getattr(text, key) for key in ("num_key_value_heads", "rms_norm_eps", "rope_parameters")}
    shape |= {"pad_token_id": text.pad_token_id, "vocab_size": rows, "num_hidden_layers": layers}
    shape |= {"num_labels": 1, "initializer_range": 0.3}
    torch.manual_seed(11)
    kind(LlamaConfig(**shape | changes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["mllama", "idefics3", "llava"])
def test_text_is_rated_as_the_text_model_does_and_vision_is_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny(family, tmp_path)
    language = text_reward(model, tmp_path / "text")
    expected = LlamaForSequenceClassification.from_pretrained(language).eval()
    stage = build(Graft, {"model": str(model), "language": str(language)}, Source("x"))
    stage.check()
    with begin(Store(tmp_path / "store"), "graft", "a") as out:
        metrics = stage.run(out)
        rater = load_rater(str(out.path / "model"), "float32", "cpu")
        ids = rater.encoder.processor.tokenizer("red four bar left right", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = rater.model.vlm.base_model(input_ids=ids).last_hidden_state[:, -1]
            assert rater.model.rated(hidden).item() == pytest.approx(expected(ids).logits.item(), abs=1e-5)
    assert metrics["difference"] < 1e-5
    before, after = load(str(model), "float32", "cpu")[0].state_dict(), rater.model.vlm.state_dict()
    parts = parts_of(rater.model.vlm.config)
    same = {name for name in before if torch.equal(before[name], after[name])}
    vision = {name for name in before if parts.of(name) != "language"}
    assert vision
    assert vision <= same
    assert not any(".q_proj." in name for name in same - vision)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 32}, "has hidden_size 32, the language model of"),
        ({"num_hidden_layers": 3}, "has 3 layers, the language model of"),
        ({"num_labels": 2}, "tells 2 classes apart"),
        ({"kind": LlamaForCausalLM}, "is LlamaForCausalLM; a reward model for text is expected"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_loaded(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    model = tiny("mllama", tmp_path)
    language = text_reward(model, tmp_path / "text", **changes)
    for weights in (*language.glob("*.safetensors"), *model.glob("*.safetensors")):
        weights.write_bytes(b"")
    with pytest.raises(UserError, match=said):
        build(Graft, {"model": str(model), "language": str(language)}, Source("x")).check()


def test_another_base_frequency_does_not_fit(tmp_path: Path) -> None:
    model = tiny("mllama", tmp_path)
    language = text_reward(model, tmp_path / "text", rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    stage = build(Graft, {"model": str(model), "language": str(language)}, Source("x"))
    with pytest.raises(UserError, match="has rope_parameters"), begin(Store(tmp_path), "graft", "a") as out:
        stage.run(out)


def test_what_reads_a_text_otherwise_afterwards_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mllama", tmp_path)
    stage = build(Graft, {"model": str(model), "language": str(text_reward(model, tmp_path / "text"))}, Source("x"))
    monkeypatch.setattr("reward.graft.matched", lambda *_: [])
    with pytest.raises(UserError, match="reads a text otherwise"), begin(Store(tmp_path), "graft", "a") as out:
        stage.run(out)
    assert not (out.path / "model").exists()


def test_half_precision_is_kept_and_the_head_is_not_rounded(tmp_path: Path) -> None:
    model = tiny("mllama", tmp_path)
    language = text_reward(model, tmp_path / "text")
    AutoModelForImageTextToText.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    stage = build(Graft, {"model": str(model), "language": str(language)}, Source("x"))
    with begin(Store(tmp_path / "store"), "graft", "a") as out:
        stage.run(out)
        head = load_head(out.path / "model", 64)
        assert load(str(out.path / "model"), "bfloat16", "cpu")[0].dtype == torch.bfloat16
        assert json.loads((out.path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert head.weight.equal(LlamaForSequenceClassification.from_pretrained(language).score.weight)


def test_a_row_that_pads_a_text_model_is_not_put_over_the_image_token(tmp_path: Path) -> None:
    model = tiny("mllama", tmp_path)
    whole, _ = load(str(model), "float32", "cpu")
    language = text_reward(model, tmp_path / "text", vocab_size=whole.config.text_config.vocab_size + 1)
    stage = build(Graft, {"model": str(model), "language": str(language)}, Source("x"))
    with begin(Store(tmp_path / "store"), "graft", "a") as out:
        stage.run(out)
        grafted, _ = load(str(out.path / "model"), "float32", "cpu")
    image = whole.config.image_token_index
    rows = [m.get_input_embeddings().weight for m in (whole, grafted)]
    assert rows[0][image:].equal(rows[1][image:])
    assert not rows[0][image - 1].equal(rows[1][image - 1])


def test_a_plan_takes_a_folder_of_a_text_model(tmp_path: Path) -> None:
    model = tiny("mllama", tmp_path)
    words = (f"model={model}", f"language={text_reward(model, tmp_path / 'text')}")
    (step,) = plan(single("graft", words), Store(tmp_path / "store"))
    assert not step.artifact.complete


def test_training_begins_with_the_head_of_its_model_or_of_its_adapters_base(tmp_path: Path) -> None:
    model = tiny("mllama", tmp_path)
    whole, _ = load(str(model), "float32", "cpu")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(model)})
    )
    assert first_head(model, whole, 1)[1] == "fresh"
    assert first_head(adapter, whole, 1)[0].weight.equal(fresh_head(whole, 1).weight)
    save_head(fresh_head(whole, 7), model)
    for folder in (model, adapter):
        head, place = first_head(folder, whole, 1)
        assert head.weight.equal(fresh_head(whole, 7).weight)
        assert place == str(model / "reward_head.safetensors")


def test_an_adapter_is_to_be_merged_first(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tiny("mllama", tmp_path))})
    )
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is an adapter; `merge` it first"):
        build(Graft, {"model": str(tmp_path / "adapter"), "language": str(tmp_path)}, Source("x")).check()
