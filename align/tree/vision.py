"""How an image's features enter each family: what the tower gives, and what the connector makes of it.

In: the processor's image inputs of one row. Out of the tower: `Features`, whatever reaches the connector; they depend
on frozen weights and the image alone, so they can be kept. Out of the connector: the vectors [tokens, hidden] that
stand for the image, with gradient to the connector's weights. One row a family; the tests prove each against the
model's own forward. A family without a row takes the plain path.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from align.adapter import plain_name
from align.families import family_of, parts_of

Features = dict[str, Tensor]
Images = tuple[str, ...]
"""The images of one prompt in their order, by path or any other name; empty for text alone."""


@dataclass(frozen=True)
class Entrance:
    """Where a family's features go: over the image's `placeholders` among the tokens, or into `cross_attention`.

    `tower(backbone, inputs)` gives the features, `connect(backbone, features)` the vectors that stand for the images,
    [tokens, hidden]. `sides` are the processor's outputs along the tokens that a tree needs. `listed`: whether the
    model takes the vectors as a list (of one) or as they are.
    """

    into: Literal["placeholders", "cross_attention"]
    tower: Callable[[Any, Mapping[str, Tensor]], Features]
    connect: Callable[[Any, Features], Tensor]
    sides: tuple[str, ...] = ()
    listed: bool = True


@contextmanager
def _watched(module: nn.Module, seen: list[Tensor]) -> Any:
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield
    finally:
        handle.remove()


def _reaching(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What reaches a module, as its first argument, while `run` runs."""
    seen: list[Tensor] = []
    with _watched(module, seen):
        run()
    (reached,) = seen
    return reached


def _projector_input(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    return {"hidden": _reaching(b.multi_modal_projector, lambda: b.get_image_features(**inputs, return_dict=True))}


def _projected(b: Any, features: Features) -> Tensor:
    vectors: Tensor = b.multi_modal_projector(features["hidden"])
    return vectors.flatten(0, -2)


def _mllama_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    # All tiles, those that only fill up too: a token before <|image|> has its whole row masked, which transformers
    # turns into no mask at all, so the begin-of-text token reads every tile and all later tokens read it.
    return {"hidden": b.vision_model(**inputs).last_hidden_state[0]}


def _idefics3_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    return {"hidden": _reaching(b.connector, lambda: b.get_image_features(**inputs, return_dict=True))}


def _idefics3_connect(b: Any, features: Features) -> Tensor:
    vectors: Tensor = b.connector(features["hidden"])
    return vectors.flatten(0, 1)


def _llava_next_tower(b: Any, inputs: Mapping[str, Tensor]) -> Features:
    return {**_projector_input(b, inputs), "image_sizes": inputs["image_sizes"]}


def _llava_next_connect(b: Any, features: Features) -> Tensor:
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
    return torch.cat(list(packed))


ENTRANCES: Mapping[str, Entrance] = {
    "mllama": Entrance("cross_attention", _mllama_tower, _projected, sides=("cross_attention_mask",)),
    "llava": Entrance("placeholders", _projector_input, _projected),
    "llava_next": Entrance("placeholders", _llava_next_tower, _llava_next_connect),
    "idefics3": Entrance("placeholders", _idefics3_tower, _idefics3_connect, listed=False),
    "smolvlm": Entrance("placeholders", _idefics3_tower, _idefics3_connect, listed=False),
}
"""By `model_type`."""


def entrance_of(config: Any) -> Entrance | None:
    """The entrance of a config's family, None where the tree is not proven for it."""
    return ENTRANCES.get(config.model_type)


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

    def features(self, images: Images) -> Features:
        """What the tower gives for a row of images, on the model's device."""
        if not self.frozen:
            return self._computed(images)
        with torch.no_grad():
            found = self._cache.get(images, self._computed) if self._cache is not None else self._computed(images)
        device = self.backbone.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in found.items()}

    def vectors(self, images: Images) -> Tensor:
        """The vectors [tokens, hidden] that stand for a row of images, through the connector as it is now."""
        return self.entrance.connect(self.backbone, self.features(images))

    def prefetch(self, rows: Sequence[Images]) -> None:
        """Have the cache read these rows ahead."""
        if self._cache is not None:
            self._cache.prefetch(rows)

    def _computed(self, images: Images) -> Features:
        device = self.backbone.device
        given = self._inputs(images)
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
