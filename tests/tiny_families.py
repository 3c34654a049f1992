"""One tiny random model of each known model_type, in memory, with a batch that holds an image and one that does not.

The configs are the library's own classes; weights are wide enough that the image moves the logits, and the gates that
start at zero (Mllama's cross-attention, Gemma 3's projection) are open.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

VOCABULARY, IMAGE = 64, 63
TEXT_IDS = [5, 9, 17, 33, 4, 21]
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
_QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": 62, "vision_start_token_id": 61, "vision_end_token_id": 60,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA = {**_TEXT, "model_type": "llama"}
_CLIP = {**_VISION, "model_type": "clip_vision_model", "projection_dim": 16}
_PIXTRAL = {**_VISION, "model_type": "pixtral", "head_dim": 4}
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model"}


def _mrope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section), **more}}


def _mllama() -> tf.PretrainedConfig:
    vision = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 4,
        "intermediate_size": 32, "image_size": 8, "patch_size": 4, "max_num_tiles": 2, "vision_output_dim": 32,
        "intermediate_layers_indices": [1], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }  # fmt: skip
    # eleven layers, cross-attention at 1 and 10: a pattern for layer 1 must not take layer 10 or the other way round
    text = {**_TEXT, "num_hidden_layers": 11, "cross_attention_layers": [1, 10],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    return tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def _qwen_vision(**more: Any) -> dict[str, Any]:
    return {"depth": 2, "hidden_size": 16, "num_heads": 4, "patch_size": 4, **more}


CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "mllama": _mllama,
    "idefics3": lambda: tf.Idefics3Config(
        vision_config=_VISION, text_config=_LLAMA, scale_factor=2, image_token_id=IMAGE, pad_token_id=0
    ),
    "smolvlm": lambda: tf.SmolVLMConfig(
        vision_config=_VISION, text_config=_LLAMA, scale_factor=2, image_token_id=IMAGE, pad_token_id=0
    ),
    "llava": lambda: tf.LlavaConfig(vision_config=_CLIP, text_config=_LLAMA, image_token_index=IMAGE),
    "llava-pixtral": lambda: tf.LlavaConfig(
        vision_config=_PIXTRAL, text_config=_LLAMA, image_token_index=IMAGE,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    ),
    "llava_next": lambda: tf.LlavaNextConfig(
        vision_config=_CLIP, text_config=_LLAMA, image_token_index=IMAGE, image_grid_pinpoints=[[16, 32], [32, 16]]
    ),
    "qwen2_vl": lambda: tf.Qwen2VLConfig(
        vision_config=_qwen_vision(embed_dim=16, mlp_ratio=2), text_config={**_TEXT, **_mrope(1, 1, 0)}, **_QWEN_IDS
    ),
    "qwen2_5_vl": lambda: tf.Qwen2_5_VLConfig(
        vision_config=_qwen_vision(
            out_hidden_size=16, intermediate_size=32, fullatt_block_indexes=[1], window_size=16
        ),
        text_config={**_TEXT, **_mrope(1, 1, 0)}, **_QWEN_IDS,
    ),
    "qwen3_vl": lambda: tf.Qwen3VLConfig(
        vision_config=_qwen_vision(
            out_hidden_size=16, intermediate_size=32, deepstack_visual_indexes=[1], num_position_embeddings=16
        ),
        text_config={**_TEXT, "head_dim": 12, **_mrope(2, 2, 2, mrope_interleaved=True)}, **_QWEN_IDS,
    ),
    "gemma3": lambda: tf.Gemma3Config(
        vision_config={**_SIGLIP, "vision_use_head": False}, mm_tokens_per_image=4, image_token_index=IMAGE,
        text_config={**_TEXT, "head_dim": 4, "sliding_window": 8},
    ),
    "paligemma": lambda: tf.PaliGemmaConfig(
        vision_config={**_SIGLIP, "vision_use_head": False}, projection_dim=16, image_token_index=IMAGE,
        text_config={**_TEXT, "head_dim": 4, "model_type": "gemma"},
    ),
}  # fmt: skip
"""Every model_type of the table, LLaVA with both kinds of tower."""


def tiny_model(kind: str, seed: int = 0) -> tf.PreTrainedModel:
    """A float32 model in eval mode; the same for the same seed."""
    torch.manual_seed(seed)
    model = tf.AutoModelForImageTextToText.from_config(CONFIGS[kind](), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "layrnorm" not in name:
                parameter.normal_(std=0.3)
    return model.eval()


def text_batch() -> dict[str, torch.Tensor]:
    """Two rows of text, no image."""
    ids = torch.tensor([TEXT_IDS, TEXT_IDS[::-1]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image_batch(kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """One row with one random image before the text, as the family's processor would lay it out."""
    noise = torch.Generator().manual_seed(seed)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise)

    more: dict[str, torch.Tensor]
    if kind == "mllama":
        tokens = 1
        length = tokens + len(TEXT_IDS)
        more = {
            "pixel_values": pixels(1, 1, 2, 3, 8, 8),
            "aspect_ratio_ids": torch.tensor([[2]]),
            "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
            "cross_attention_mask": torch.ones(1, length, 1, 2, dtype=torch.long),
        }
    elif kind in ("idefics3", "smolvlm"):
        tokens = 4
        more = {"pixel_values": pixels(1, 1, 3, 16, 16), "pixel_attention_mask": torch.ones(1, 1, 16, 16).bool()}
    elif kind == "llava":
        tokens, more = 16, {"pixel_values": pixels(1, 3, 16, 16)}
    elif kind == "llava-pixtral":
        tokens, more = 16, {"pixel_values": pixels(1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
    elif kind == "llava_next":  # 16 of the overview, 4 rows of 8 with a newline each
        tokens, more = 52, {"pixel_values": pixels(1, 3, 3, 16, 16), "image_sizes": torch.tensor([[16, 32]])}
    elif kind.startswith("qwen"):  # 4 x 4 patches of 3 x 2 x 4 x 4 numbers, merged 2 x 2
        tokens, more = 4, {"pixel_values": pixels(16, 96), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    else:
        tokens, more = {"gemma3": 4, "paligemma": 16}[kind], {"pixel_values": pixels(1, 3, 16, 16)}
    ids = torch.tensor([[IMAGE] * tokens + TEXT_IDS])
    is_image = (ids == IMAGE).long()
    if kind.startswith("qwen"):
        more["mm_token_type_ids"] = is_image
    elif kind == "gemma3":
        more["token_type_ids"] = is_image
    elif kind == "paligemma":
        more["token_type_ids"] = torch.zeros_like(ids)  # a prefix without an answer
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}
