import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from align.errors import UserError
from align.families import FAMILIES, PARTS, family_of, parts_of
from tests.tiny_families import CONFIGS, tiny_model

PUBLISHED = sorted(Path("configs/models").glob("*.json"))
# Parameters of the published checkpoints, as their model pages give them.
PUBLISHED_PARAMETERS = {
    "llama-3.2-11b-vision": 10_670_220_835,
    "smolvlm-256m": 256_484_928,
    "smolvlm2-500m": 507_482_304,
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.6-mistral-7b": 7_566_747_648,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-4b": 4_437_815_808,
    "gemma-3-4b": 4_300_079_472,
    "paligemma-3b-224": 2_923_466_480,
}


def on_meta(path: Path) -> PreTrainedModel:
    config = AutoConfig.for_model(**json.loads(path.read_text()))
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_every_row_is_tried() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert {kind.removesuffix("-pixtral") for kind in CONFIGS} == known
    assert {json.loads(p.read_text())["model_type"] for p in PUBLISHED} == known
    assert {p.stem for p in PUBLISHED} == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_tensor_of_a_tiny_model_is_in_one_part(kind: str) -> None:
    model = tiny_model(kind)
    parts = parts_of(model.config)
    counts = Counter(parts.of(name) for name in tensors(model))  # raises where a name is in no part or in two
    assert set(counts) == set(parts.names)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_every_tensor_of_a_published_model_is_in_one_part(path: Path) -> None:
    model = on_meta(path)
    parts = parts_of(model.config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[parts.of(name)] += parameter.numel()
    for name, _ in model.named_buffers():
        parts.of(name)
    assert set(counts) == set(parts.names)
    assert counts.total() == PUBLISHED_PARAMETERS[path.stem]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_language_part_is_what_the_library_calls_the_language_model(kind: str) -> None:
    """get_decoder and get_output_embeddings are the library's own idea of the language model."""
    model = tiny_model(kind)
    parts = parts_of(model.config)
    language = {id(p) for p in model.model.get_decoder().parameters()}
    language |= {id(p) for p in model.get_output_embeddings().parameters()}
    ours = {id(p) for name, p in model.named_parameters() if parts.of(name) in ("language", "cross_attention")}
    assert ours == language


def test_mllama_cross_attention_layers_are_no_part_of_the_language_model() -> None:
    model = tiny_model("mllama")
    parts = parts_of(model.config)
    layers = model.model.language_model.layers
    for i, layer in enumerate(layers):
        expected = "cross_attention" if type(layer).__name__ == "MllamaCrossAttentionDecoderLayer" else "language"
        found = {parts.of(f"model.language_model.layers.{i}.{name}") for name, _ in layer.named_parameters()}
        assert found == {expected}
        assert (i in (1, 10)) == (expected == "cross_attention")


def test_mllama_11b_parts_by_hand() -> None:
    """Sizes of the published model: hidden 4096, mlp 14336, keys and values 1024, 40 layers of which 8 cross."""
    model = on_meta(Path("configs/models/llama-3.2-11b-vision.json"))
    parts = parts_of(model.config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[parts.of(name)] += parameter.numel()
    attention = 4096 * (4096 + 1024 + 1024 + 4096)
    mlp = 3 * 4096 * 14336
    norms = 2 * 4096
    embeddings = (128_256 + 8) * 4096 + 128_256 * 4096
    assert counts["language"] == 32 * (attention + mlp + norms) + 4096 + embeddings
    # a cross-attention layer has norms on queries and keys (128 a head) and two gates more
    assert counts["cross_attention"] == 8 * (attention + mlp + norms + 2 * 128 + 2)
    assert counts["connector"] == 7680 * 4096 + 4096


@pytest.mark.parametrize("kind", CONFIGS)
def test_side_inputs_are_arguments_of_the_model(kind: str) -> None:
    model = tiny_model(kind)
    family = family_of(model.config)
    arguments = inspect.signature(type(model).forward).parameters
    assert set(family.sequence_inputs) | set(family.image_inputs) <= set(arguments)


@pytest.mark.parametrize("kind", CONFIGS)
def test_patterns_mean_whole_names(kind: str) -> None:
    model = tiny_model(kind)
    parts = parts_of(model.config)
    for name in tensors(model):
        for wrong in (f"other.{name}", f"x{name}"):
            with pytest.raises(KeyError):
                parts.of(wrong)


def test_lora_is_on_linear_layers_of_its_own_part() -> None:
    for kind in CONFIGS:
        model = tiny_model(kind)
        parts = parts_of(model.config)
        for part, pattern in parts.lora.items():
            found = [(n, m) for n, m in model.named_modules() if re.fullmatch(pattern, n)]
            assert found
            assert all(isinstance(m, torch.nn.Linear) for _, m in found)
            assert {parts.of(n) for n, _ in found} == {part}
            assert part in PARTS
            assert part != "language"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, "'llama' is no known vision-language family"),
        ({"model_type": "qwen2_5vl"}, "did you mean 'qwen2_5_vl'?"),
        ({}, "''"),
    ],
)
def test_an_unknown_family_is_the_users_mistake(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        family_of(config)


def test_mllama_without_cross_attention_is_refused() -> None:
    with pytest.raises(UserError, match="cross_attention_layers is empty"):
        parts_of({"model_type": "mllama", "text_config": {"cross_attention_layers": []}})
