import pytest
import torch
from transformers import MistralConfig, PretrainedConfig

from align.adapter import Preset
from align.families import FAMILIES
from align.tree.layout import IGNORED
from align.tree.vision import ENTRANCES, why_plain
from tests.plain import Case, adapted, compare
from tests.tiny_families import CONFIGS, IMAGE, TEXT_IDS, image_batch, tiny_model

PROVEN = [kind for kind in CONFIGS if kind != "paligemma"]


class IdCase(Case):
    """Rows (seeds of the image as strings, words before it, question, answer) as token ids; side inputs by the rules
    of the family's processor: image tokens are of kind 1, all after an image may attend to it."""

    def _image(self, name: str) -> dict[str, torch.Tensor]:
        made = image_batch(self.processor, seed=int(name))
        if "image_grid_thw" in made and name == "2":  # of several windows, and not square
            draw = torch.Generator().manual_seed(2)
            made["pixel_values"] = torch.randn(4 * 12, 96, generator=draw)
            made["image_grid_thw"] = torch.tensor([[1, 4, 12]])
            made["input_ids"] = torch.tensor([[IMAGE] * 12])
        return made

    def inputs(self, row: int) -> dict[str, torch.Tensor]:
        names, before, question, answer = self.rows[row]
        made = dict(self._image(names[0])) if names else {}
        image = made["input_ids"][0][made["input_ids"][0] == IMAGE].tolist() if names else []
        ids = torch.tensor([[*before, *image, *question, *answer]])
        kinds = (ids == IMAGE).long()
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in made:
                made[name] = kinds
        if not names and self.model.config.model_type == "gemma3":
            made["token_type_ids"] = kinds
        if "cross_attention_mask" in made:
            after = (kinds.cumsum(1) > 0).long()
            made["cross_attention_mask"] = after[:, :, None, None].expand(-1, -1, 1, 2).contiguous()
        return {**made, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def labels(self, row: int) -> torch.Tensor:
        ids, answer = self.inputs(row)["input_ids"][0], self.rows[row][3]
        return torch.cat([torch.full((len(ids) - len(answer),), IGNORED), ids[len(ids) - len(answer) :]])


def id_case(kind: str, preset: Preset) -> IdCase:
    model = adapted(tiny_model(kind), preset)
    first, second = TEXT_IDS[:3], TEXT_IDS[2:]
    rows = [
        (("1",), [1, 7], first, [11, 12, 13]),
        (("2",), [1, 7], first, [11, 14]),
        (("1",), [1, 7], first, [11, 12, 20, 21]),
        (("1",), [1, 7], second, [30]),
        (("1",), [1, 8, 9], second, [31, 32]),
        (("2",), [1, 7], second, [33, 34, 35]),
    ]
    return IdCase(model, kind, {}, rows)


def test_every_family_has_an_entrance_or_takes_the_plain_path():
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert set(ENTRANCES) == known - {"paligemma"}
    assert {CONFIGS[kind]().model_type for kind in PROVEN} == set(ENTRANCES)


@pytest.mark.parametrize("kind", PROVEN)
def test_the_tree_equals_the_plain_path(kind):
    compare(id_case(kind, Preset(rank=4)))


@pytest.mark.parametrize("kind", PROVEN)
def test_with_the_tower_trained_too(kind):
    compare(id_case(kind, Preset(rank=4, tower="lora")))


@pytest.mark.parametrize("kind", PROVEN)
def test_text_alone_beside_images(kind):
    mixed = id_case(kind, Preset(rank=4))
    mixed.rows += [((), [1, 7], TEXT_IDS[:3], [11, 12]), ((), [1, 7], TEXT_IDS[:3], [13])]
    compare(mixed)


def test_the_plain_path_says_why():
    def told(text: PretrainedConfig | None = None, attention: str = "sdpa", kind: str = "llava") -> PretrainedConfig:
        config = CONFIGS[kind]()
        config.text_config = text or config.text_config
        config.get_text_config()._attn_implementation = attention
        return config

    assert why_plain(told(), 100) is None
    assert why_plain(told(attention="flex_attention"), 100) is None
    assert "paligemma takes the plain path" in why_plain(told(kind="paligemma"), 100)
    assert "'flash_attention_2' takes no tree mask" in why_plain(told(attention="flash_attention_2"), 100)
    assert "'flex_attention' takes no tree mask" in why_plain(told(attention="flex_attention", kind="gemma3"), 100)
    sliding = told(MistralConfig(sliding_window=50))
    assert "100 tokens exceed the sliding window of 50" in why_plain(sliding, 100)
    assert why_plain(sliding, 50) is None
