"""The stage that gives a vision-language model the language side of a reward model for text.

In: a vision-language model (the vision SFT model) and a reward model for text that began as the same language model.
Out: a plain model with the former's tower, connector and cross-attention, the latter's language layers and its head:
where `train-reward` begins in the published recipe (Llama 3, arXiv 2407.21783, section 7.5), which then trains the
vision side and leaves the language layers as they are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from align.artifact import Out
from align.errors import UserError
from align.models import is_adapter, load, locate, read_json, save_processor, stored_dtype
from align.stage import Metrics, ModelRef, PortType, Stage, TextModelRef

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, ProcessorMixin

ENDING = "ForSequenceClassification"
SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act")
"""What both language models must have alike, beside the number of self-attention layers."""
SAME, ROUNDED = 1e-4, 1e-2
"""How far hidden states of a text may lie apart afterwards, as a share of the largest: in float32, in a half type."""


class Graft(Stage):
    """Put a text reward model's language layers and head into a vision-language model."""

    NAME: ClassVar[str] = "graft"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"model": "model"}

    model: ModelRef  # a whole vision-language model
    language: TextModelRef  # a text reward model: transformers' sequence classification with one label, such as Llama's

    def check(self) -> None:
        """Raises UserError for models that are there and do not fit together."""
        if all(Path(name).is_dir() for name in (self.model, self.language)):
            check_fit(self.model, self.language)

    def run(self, out: Out) -> Metrics:
        """Move the weights, write the model, and compare what both make of text alone."""
        from reward.model import save_head

        check_fit(self.model, self.language)
        dtype = stored_dtype(self.model)
        model, processor = load(self.model, dtype, "cpu")
        text, head = text_reward(self.language, model.dtype)
        rope, own = (getattr(m.config.get_text_config(), "rope_parameters", None) or {} for m in (text, model))
        if any(rope[key] != own[key] for key in rope.keys() & own.keys()):
            raise UserError(f"language: {self.language} has rope_parameters {rope}, {self.model} {own}")
        pairs = matched(text, model)
        for tensor, place in pairs:
            place.copy_(tensor)
        apart = difference(text, model, processor)
        if not apart <= (SAME if dtype == "float32" else ROUNDED):
            raise UserError(f"language: {self.language} reads a text otherwise inside {self.model}: {apart:.1g} apart")
        folder = out.folder("model")
        model.save_pretrained(folder)
        save_head(head, folder)
        save_processor(processor, folder)
        return {"tensors": len(pairs), "difference": apart}

    @classmethod
    def summary_of(cls, metrics: Metrics) -> str:
        """What was moved."""
        return f"{metrics['tensors']} language tensors moved, hidden states of text {metrics['difference']:.1e} apart"


def check_fit(model: str, language: str) -> None:
    """Read both configs. Raises UserError where the one is no text reward model, or says that its shape is another than
    that of the other's language model; what a config leaves to its class is looked at once the models are loaded."""
    if is_adapter(locate(model, weights=False).folder):
        raise UserError(f"model: {model} is an adapter; `merge` it first")
    text = read_json(locate(language, weights=False).folder / "config.json")
    made = (text.get("architectures") or ["no model"])[0]
    if not made.endswith(ENDING):
        raise UserError(f"language: {language} is {made}; a reward model for text is expected, such as Llama{ENDING}")
    labels = len(text.get("id2label") or "ab")  # transformers leaves the usual two out
    if labels != 1:
        raise UserError(f"language: {language} tells {labels} classes apart; a reward model has one label")
    whole = read_json(locate(model, weights=False).folder / "config.json")
    own = whole.get("text_config") or whole
    for key in SHAPE:
        if key in own and key in text and own[key] != text[key]:
            raise UserError(f"language: {language} has {key} {text[key]}, the language model of {model} {own[key]}")
    if "num_hidden_layers" in own and "num_hidden_layers" in text:
        layers = own["num_hidden_layers"] - len(own.get("cross_attention_layers") or [])
        if layers != text["num_hidden_layers"]:
            raise UserError(
                f"language: {language} has {text['num_hidden_layers']} layers, the language model of {model} {layers}"
            )


def text_reward(name: str, dtype: Any) -> "tuple[PreTrainedModel, nn.Linear]":
    """A text reward model in eval mode and `dtype`, and its head as a linear layer in float32. Raises UserError."""
    import torch
    from safetensors import SafetensorError
    from torch import nn
    from transformers import AutoModelForSequenceClassification

    folder = str(locate(name).folder)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"language: {name} cannot be loaded: {str(error).splitlines()[0]}") from None
    odd = sorted([*report["missing_keys"], *(key for key in report["unexpected_keys"] if key.startswith("score."))])
    if odd:
        raise UserError(f"language: {name}: {odd[0]} is not what {type(model).__name__} has")
    head = nn.Linear(model.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(model.score.weight)
        head.bias.zero_()
    for parameter in model.parameters():  # not the frequencies of its positions, which stay in float32
        parameter.data = parameter.data.to(dtype)
    return model.eval(), head


def matched(text: "PreTrainedModel", model: "PreTrainedModel") -> "list[tuple[Tensor, Tensor]]":
    """Every language tensor of a text model beside the one in its place in a vision-language model, whose layers of
    cross-attention are stepped over; of the embedding only the rows that both have as words (the image token's is not
    one, whatever a text model pads its own with). Raises UserError where a tensor has no place, a place no tensor, or
    another shape."""
    config = model.config.get_text_config()
    crossing = set(getattr(config, "cross_attention_layers", None) or [])
    layers = [layer for layer in range(config.num_hidden_layers) if layer not in crossing]
    places = {
        name: place
        for name, place in model.get_decoder().named_parameters()
        if not any(name.startswith(f"layers.{layer}.") for layer in crossing)
    }
    found = []
    for name, tensor in text.base_model.named_parameters():
        head, _, rest = name.partition(".")
        if head == "layers":
            number, _, rest = rest.partition(".")
            name = f"layers.{layers[int(number)] if int(number) < len(layers) else 'beyond'}.{rest}"
        if name not in places:
            raise UserError(f"language: there is no place for {name}")
        tensor, place = tensor.detach(), places.pop(name).detach()
        if name == "embed_tokens.weight":
            words = min(len(tensor), config.vocab_size)
            tensor, place = tensor[:words], place[:words]
        if tensor.shape != place.shape:
            raise UserError(f"language: {name} is {tuple(tensor.shape)}, {tuple(place.shape)} is expected")
        found.append((tensor, place))
    if places:
        raise UserError(f"language: nothing to put in the place of {min(places)}")
    return found


def difference(text: "PreTrainedModel", model: "PreTrainedModel", processor: "ProcessorMixin") -> float:
    """The largest difference of the last hidden states on texts without an image, as a share of the largest state."""
    import torch

    from align.proof import PROMPTS

    apart = largest = 0.0
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = processor.tokenizer(prompt, return_tensors="pt")["input_ids"]
            if not ids.numel():  # the tokenizer knows no word of it
                continue
            expected = text.base_model(input_ids=ids).last_hidden_state.float()
            found = model.base_model(input_ids=ids).last_hidden_state.float()
            apart = max(apart, float((found - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return apart / largest
