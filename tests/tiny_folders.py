"""Tiny whole model folders of the families that `tests.tiny` has not, with each family's own processor.

In: a folder and a model_type. Out: the folder with model, tokenizer, PIL image processor and chat template. The configs
are those of `tests.tiny_families` with a vocabulary of bytes and images of 32 pixels; gates are open.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny import tiny_tokenizer
from tests.tiny_families import CONFIGS

KINDS = ("smolvlm", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma")
_SMOL = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>")
_QWEN = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_SIDE = {"height": 16, "width": 16}


def tiny_folder(path: Path, kind: str, seed: int = 0) -> Path:
    """Write the model's folder and return it."""
    path.mkdir(parents=True)
    processor: dict[str, Any] = {}
    if kind == "smolvlm":
        tokenizer = tiny_tokenizer("<image>", *_SMOL)
        SmolVLMImageProcessorPil(
            size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
        ).save_pretrained(path)
        processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
    elif kind == "llava_next":
        tokenizer = tiny_tokenizer("<image>")
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size=_SIDE, image_grid_pinpoints=[[16, 32], [32, 16]]
        ).save_pretrained(path)
        processor = {
            "processor_class": "LlavaNextProcessor", "patch_size": 4, "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        }  # fmt: skip
    elif kind.startswith("qwen"):
        tokenizer = tiny_tokenizer("<|image_pad|>", *_QWEN)
        Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024}).save_pretrained(path)
        name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
        processor = {"processor_class": f"{name}Processor"}
    elif kind == "gemma3":
        tokenizer = tiny_tokenizer("<image_soft_token>", "<start_of_image>", "<end_of_image>")
        tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
        tokenizer = _with(tokenizer, tokens, "<image_soft_token>", "<start_of_image>")
        Gemma3ImageProcessorPil(size=_SIDE).save_pretrained(path)
        processor = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    else:
        tokenizer = _with(tiny_tokenizer("<image>"), {"image_token": "<image>"}, "<image>", "<image>")
        SiglipImageProcessorPil(size=_SIDE, image_seq_length=16).save_pretrained(path)
        processor = {"processor_class": "PaliGemmaProcessor"}
    tokenizer.save_pretrained(path)
    (path / "processor_config.json").write_text(json.dumps(processor))
    model = _model(kind, tokenizer, seed)
    model.save_pretrained(path)
    return path


def _with(tokenizer: Any, tokens: dict[str, str], image: str, written: str) -> Any:
    """The tokenizer with named tokens, as Gemma's has them, and what stands for an image in its template."""
    chat = tokenizer.chat_template.replace(image, written)
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token, extra_special_tokens=tokens, clean_up_tokenization_spaces=False,
        padding_side="left", model_max_length=512,
    )  # fmt: skip
    made.chat_template = chat
    return made


def _model(kind: str, tokenizer: Any, seed: int) -> tf.PreTrainedModel:
    config = CONFIGS[kind]()
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    text.max_position_embeddings = 512
    if kind == "gemma3":  # else an answer is too far from its image to see it
        text.sliding_window = 512
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(text, name, value)
    of = tokenizer.convert_tokens_to_ids
    named = {
        "image_token_id": "<image>", "image_token_index": "<image>", "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
        "boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>",
    }  # fmt: skip
    image = {"gemma3": "<image_soft_token>"}.get(kind, "<|image_pad|>" if kind.startswith("qwen") else "<image>")
    for name, token in named.items():
        if hasattr(config, name):
            setattr(config, name, of(image if token == "<image>" else token))
    if hasattr(config, "pad_token_id"):
        config.pad_token_id = ids["pad_token_id"]
    torch.manual_seed(seed)
    model = tf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "layrnorm" not in name:
                parameter.normal_(std=0.2)
    for name, value in ids.items():
        setattr(model.generation_config, name, value)
    return model.eval()
