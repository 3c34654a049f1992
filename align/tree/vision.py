"""How an image's features enter each family: what the tower gives, and what the connector makes of it.

In: the processor's image inputs of one row. Out of the tower: `Features`, whatever reaches the connector; they depend
on frozen weights and the image alone, so they can be kept. Out of the connector: the vectors [tokens, hidden] that
stand for the image, with gradient to the connector's weights. One row a family; the tests prove each against the
model's own forward. A family without a row takes the plain path.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from align.adapter import plain_name
from align.families import family_of, parts_of
from align.tree.products import frozen_products
from align.tree.unread import layers_up_to

Features = dict[str, Tensor]
Images = tuple[str, ...]
"""The images of one prompt in their order, by path or any other name; empty for text alone."""


Vectors = tuple[Tensor, ...]
"""What stands for the images of a row: [tokens, hidden], and the same for each further layer that images enter at."""


@dataclass(frozen=True)
class Entrance:
    """Where a family's features go: over the image's `placeholders` among the tokens, or into `cross_attention`.

    `tower(backbone, inputs)` gives the features, `connect(backbone, features)` the vectors. `sides` are the processor's
    outputs along the tokens that a tree needs. `given(backbone, vectors)` is the form in which the model takes the
    vectors of all rows. `axes`: whether a position has three parts, which the model makes of the tokens and the
    image's grid. `both_ways`: whether an image's tokens see each other forwards too, and layers of two kinds get masks
    by name.
    """

    into: Literal["placeholders", "cross_attention"]
    tower: Callable[[Any, Mapping[str, Tensor]], Features]
    connect: Callable[[Any, Features], Vectors]
    sides: tuple[str, ...] = ()
    given: Callable[[Any, Tensor], Any] = lambda b, vectors: [vectors]
    axes: bool = False
    both_ways: bool = False


def _reaching(modules: Sequence[nn.Module], run: Callable[[], object]) -> list[Tensor]:
    """What reaches each module, as its first argument, while `run` runs."""
    seen: dict[int, Tensor] = {}

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen.__setitem__(number, args[0])

    handles = [module.register_forward_pre_hook(watch(n)) for n, module in enumerate(modules)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[n] for n in range(len(modules))]


def _projector_input(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    (hidden,) = _reaching([b.multi_modal_projector], lambda: b.get_image_features(**inputs, return_dict=True))
    return {"hidden": hidden}


def _llava_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    tower = getattr(b.vision_tower, "encoder", None) or b.vision_tower.transformer
    with layers_up_to(tower.layers, b.config.vision_feature_layer):
        return _projector_input(b, inputs)


def _projected(b: Any, features: Features) -> Vectors:
    return (b.multi_modal_projector(features["hidden"]).flatten(0, -2),)


def _mllama_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    # All tiles, those that only fill up too: a token before <|image|> has its whole row masked, which transformers
    # turns into no mask at all, so the begin-of-text token reads every tile and all later tokens read it.
    return {"hidden": b.vision_model(**inputs).last_hidden_state[0]}


def _idefics3_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    (hidden,) = _reaching([b.connector], lambda: b.get_image_features(**inputs, return_dict=True))
    return {"hidden": hidden}


def _idefics3_connect(b: Any, features: Features) -> Vectors:
    return (b.connector(features["hidden"]).flatten(0, 1),)


def _llava_next_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    return {**_llava_tower(b, inputs), "image_sizes": inputs["image_sizes"]}


def _llava_next_connect(b: Any, features: Features) -> Vectors:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    sizes, config = features["image_sizes"], b.config
    patches = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes
    ]
    packed, _ = b.pack_image_features(
        torch.split(b.multi_modal_projector(features["hidden"]), patches),
        sizes,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_newline=b.image_newline,
    )
    return (torch.cat(list(packed)),)


def _mergers(b: Any) -> list[nn.Module]:
    """Qwen's connectors: the merger, and those of Qwen3-VL for its lower layers."""
    return [b.visual.merger, *getattr(b.visual, "deepstack_merger_list", [])]


def _qwen_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    hidden = _reaching(_mergers(b), lambda: b.get_image_features(**inputs, return_dict=True))
    return {f"hidden_{n}": tensor for n, tensor in enumerate(hidden)}


def _qwen2_5_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    """Its tower works window by window; the units that the merger merges go back into the image's order here."""
    from transformers.vision_utils import get_vision_window_index

    (hidden,) = _qwen_tower(b, inputs).values()
    v = b.visual
    order, _ = get_vision_window_index(inputs["image_grid_thw"], v.spatial_merge_size, v.window_size, v.patch_size)
    units = hidden.reshape(len(order), -1, hidden.shape[-1])
    return {"hidden_0": units[order.argsort().to(hidden.device)].reshape(hidden.shape)}


def _qwen_connect(b: Any, features: Features) -> Vectors:
    return tuple(merger(features[f"hidden_{n}"]) for n, merger in enumerate(_mergers(b)))


def _qwen(tower: Callable[[Any, Mapping[str, Tensor]], Features]) -> Entrance:
    return Entrance("placeholders", tower, _qwen_connect, sides=("mm_token_type_ids",), axes=True)


_IDEFICS3 = Entrance(
    "placeholders", _idefics3_tower, _idefics3_connect, given=lambda b, v: v.unflatten(0, (-1, b.image_seq_len))
)

ENTRANCES: Mapping[str, Entrance] = {
    "mllama": Entrance("cross_attention", _mllama_tower, _projected, sides=("cross_attention_mask",)),
    "llava": Entrance("placeholders", _llava_tower, _projected),
    "llava_next": Entrance("placeholders", _llava_next_tower, _llava_next_connect),
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "qwen2_vl": _qwen(_qwen_tower),
    "qwen2_5_vl": _qwen(_qwen2_5_tower),
    "qwen3_vl": _qwen(_qwen_tower),
    "gemma3": Entrance(
        "placeholders", _projector_input, _projected, sides=("token_type_ids",), given=lambda b, v: v, both_ways=True
    ),
}
"""By `model_type`. PaliGemma is not among them: its question is seen by its image, so questions share nothing."""


def entrance_of(config: Any) -> Entrance | None:
    """The entrance of a config's family, None where the tree is not proven for it."""
    return ENTRANCES.get(config.model_type)


def why_plain(config: Any, longest: int) -> str | None:
    """Why rows of up to `longest` tokens have to take the plain path with this model, in one line; None: they need
    not."""
    entrance = entrance_of(config)
    if entrance is None:
        return f"{config.model_type} takes the plain path: sharing an image's work is not exact or not proven for it"
    text = config.get_text_config()
    known = ("sdpa", "eager") if entrance.both_ways else ("sdpa", "eager", "flex_attention")
    if text._attn_implementation not in known:
        return f"plain path: attention {text._attn_implementation!r} takes no tree mask; {', '.join(known)} do"
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    if window and slides and not entrance.both_ways and longest > window:
        return f"plain path: rows of {longest} tokens exceed the sliding window of {window}"
    return None


def unwrapped(model: Any) -> Any:
    """The transformers model inside a launcher's and PEFT's wrappers."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Vision:
    """The features of images for one model: computed by its tower, kept in `memory` or a cache where the tower is
    frozen, and made anew, with gradient, where it is trained."""

    def __init__(self, model: Any, inputs: Callable[[Images], Mapping[str, Tensor]], cache: Any = None) -> None:
        """`inputs(images)` gives the processor's outputs for one row of images; `cache` is what keeps features, see
        `align.vision_cache`."""
        base = unwrapped(model)
        entrance = entrance_of(base.config)
        if entrance is None:
            raise ValueError(f"{base.config.model_type}: the tree is not proven for this family")
        self.entrance = entrance
        self.backbone = base.base_model
        self.frozen = tower_is_frozen(model)
        self._names = family_of(base.config).image_inputs
        self._inputs = inputs
        self._cache = cache if self.frozen else None
        self._grids: dict[Images, Tensor] = {}

    def features(self, images: Images) -> Features:
        """What the tower gives for a row of images, on the model's device."""
        if not self.frozen:
            return self._computed(images)
        with torch.no_grad():
            found = self._cache.get(images, self._still) if self._cache is not None else self._still(images)
        device = self.backbone.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in found.items()}

    def vectors(self, images: Images) -> Vectors:
        """What stands for a row of images, through the connector as it is now."""
        return self.entrance.connect(self.backbone, self.features(images))

    def positions(self, images: Images, along: Mapping[str, Tensor]) -> Tensor | None:
        """The positions [T, 3] of a sequence by the model's own rule, from its inputs along the tokens and its images'
        grids; None where positions simply count."""
        if not self.entrance.axes:
            return None
        if not images:
            return torch.arange(len(along["input_ids"]))[:, None].expand(-1, 3)
        if images not in self._grids:
            self._grids[images] = self._inputs(images)["image_grid_thw"].cpu()
        kinds = {name: along[name][None].long() for name in ("input_ids", "mm_token_type_ids")}
        found, _ = self.backbone.get_rope_index(**kinds, image_grid_thw=self._grids[images])
        positions: Tensor = found[:, 0].T
        return positions

    def products(self) -> AbstractContextManager[None]:
        """The model's `frozen_products`. Not where the tower trains: the gradients of its first layers are differences
        of large numbers, which the plain path's rounding decides."""
        quick = self.frozen or not torch.is_grad_enabled()
        return frozen_products(self.backbone) if quick else nullcontext()

    def prefetch(self, rows: Sequence[Images]) -> None:
        """Have the cache read these rows ahead."""
        if self._cache is not None:
            self._cache.prefetch(rows)

    def _still(self, images: Images) -> Features:
        """What a frozen tower gives, the same whenever it is asked: the connector runs along with some towers, and its
        dropout would draw the training's random numbers. A continued training, which finds features in the cache,
        would go on with others than an uninterrupted one."""
        training, kind = self.backbone.training, self.backbone.device.type
        half = self.backbone.dtype in (torch.float16, torch.bfloat16)  # as a training on such weights runs
        self.backbone.eval()
        try:
            with torch.autocast(kind, dtype=self.backbone.dtype if half else None, enabled=half):
                return self._computed(images)
        finally:
            self.backbone.train(training)

    def _computed(self, images: Images) -> Features:
        device = self.backbone.device
        given = self._inputs(images)
        with self.products():
            return self.entrance.tower(self.backbone, {n: given[n].to(device) for n in self._names if n in given})


def tower_is_frozen(model: Any) -> bool:
    """Whether the vision tower is the base model's own and stays so: nothing of it trains, and no adapter sits on it,
    which could be switched off or exchanged."""
    parts = parts_of(unwrapped(model).config)
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if (parameter.requires_grad or "lora_" in name) and parts.of(plain_name(name)) == "tower":
            return False
    return True
