"""LoRA on the vision adapter, and the guarantee that the language model is not touched.

In: a model and a preset in words. Out: a PEFT model whose trainable parameters all lie in the tower, the connector or
the cross-attention; a preset that matches nothing, or anything of the language model, is refused before and after
attaching. Also: continue from an adapter, merge it into the weights, count what trains.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from align.config import Config
from align.errors import UserError
from align.families import Part, Parts, parts_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


class Preset(Config):
    """What trains, in words; the language model never does. `lora` adds a low-rank term to the part's linear layers
    (LoRA, arXiv 2106.09685: W + alpha/rank * B A), `full` trains the connector's own weights."""

    tower: Literal["frozen", "lora"] = "frozen"
    connector: Literal["frozen", "lora", "full"] = "lora"
    cross_attention: Literal["frozen", "lora"] | None = None  # None: lora where the model has such layers (Mllama)
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def words(self, parts: Parts) -> dict[Part, str]:
        """What happens to each part of this model. Raises UserError where the preset does not fit the family."""
        family = parts.family.name
        cross = self.cross_attention or ("lora" if parts.has_cross_attention else "frozen")
        if self.cross_attention == "lora" and not parts.has_cross_attention:
            raise UserError(f"cross_attention: {family} has no cross-attention layers; leave this key out")
        words: dict[Part, str] = {"tower": self.tower, "connector": self.connector, "cross_attention": cross}
        if all(word == "frozen" for word in words.values()):
            raise UserError("tower, connector, cross_attention: all are frozen, so there is nothing to train")
        if self.dropout and any(words[part] == "lora" for part in parts.lora_parameters):
            raise UserError(f"dropout: {family}'s connector is a bare weight, which LoRA adapts without dropout; set 0")
        return words


@dataclass(frozen=True)
class Targets:
    """A preset resolved against a module tree: exact names, in the order of the model."""

    lora: tuple[str, ...]  # linear layers
    lora_parameters: tuple[str, ...]  # weights without a linear layer of their own
    full: tuple[str, ...]  # modules trained whole
    pattern: str  # matches exactly the names in `lora`


def resolve(model: "nn.Module", config: "PretrainedConfig", preset: Preset) -> Targets:
    """The modules of an unwrapped model that a preset means. Raises UserError for a part that matches no module."""
    parts = parts_of(config)
    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    lora: list[str] = []
    bare: list[str] = []
    full: list[str] = []
    patterns: list[str] = []
    for part, word in preset.words(parts).items():
        found: list[str] = []
        if word == "full":
            found = _matching(parts.full, modules)
            full += found
        elif word == "lora":
            found = _matching(parts.lora.get(part), modules)
            lora += found
            patterns += [parts.lora[part]] if found else []
            weights = _matching(parts.lora_parameters.get(part), parameters)
            bare += weights
            found = found + weights
        if word != "frozen" and not found:
            raise UserError(f"{part}: {word}: no layer of this {parts.family.name} model matches")
        wrong = [name for name in found if parts.of(name) != part]
        if wrong:
            raise UserError(f"{part}: {word} would touch {wrong[0]}, which is {parts.of(wrong[0])}")
    return Targets(tuple(lora), tuple(bare), tuple(full), "|".join(patterns))


def _matching(pattern: str | None, names: list[str]) -> list[str]:
    return [name for name in names if pattern and re.fullmatch(pattern, name)]


def attach(model: "PreTrainedModel", preset: Preset, seed: int) -> "PeftModel":
    """Put a fresh adapter on a base model (in place). Adapter weights are float32 whatever the base's dtype, and the
    same for the same seed; run a half-precision base under autocast. Raises UserError: see `resolve`, `verify`."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = resolve(model, model.config, preset)
    config = LoraConfig(
        r=preset.rank,
        lora_alpha=preset.alpha,
        lora_dropout=preset.dropout,
        target_modules=targets.pattern or [],
        target_parameters=list(targets.lora_parameters) or None,
        modules_to_save=list(targets.full) or None,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config, revision=getattr(model.config, "_commit_hash", None))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    verify(adapted)
    return adapted


_WRAPPER = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+|lora_[AB]\.[^.]+)(?=\.)")


def plain_name(name: str) -> str:
    """A tensor's name in the unwrapped model: `base_model.model.X.base_layer.weight` is `X.weight`; an adapter's own
    tensor gets the name of the module that it adapts."""
    return _WRAPPER.sub("", name.removeprefix("base_model.model."))


def verify(model: "PeftModel") -> None:
    """Every trainable parameter lies in tower, connector or cross-attention, and there is one. Raises UserError."""
    parts = parts_of(model.config)
    trainable = [plain_name(name) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UserError("the adapter has no trainable parameter")
    touched = [name for name in trainable if parts.of(name) == "language"]
    if touched:
        raise UserError(f"the adapter would train the language model: {len(touched)} parameters, first {touched[0]}")


def resume(model: "PeftModel") -> "PeftModel":
    """Make a loaded adapter trainable again (in place), float32. Raises UserError where it touches language."""
    model.set_adapter(model.active_adapter)
    model.peft_config[model.active_adapter].inference_mode = False
    verify(model)
    return model


def trainable(
    name: str, preset: Preset | None, dtype: str, device: str, seed: int
) -> "tuple[PeftModel, ProcessorMixin]":
    """A model to train: a fresh adapter on a base model, or an adapter folder continued. Raises UserError."""
    from peft import PeftModel

    from align.models import load

    model, processor = load(name, dtype, device)
    if isinstance(model, PeftModel):
        return resume(model), processor
    return attach(model, preset or Preset(), seed), processor
