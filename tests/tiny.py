"""Tiny random models of three families, saved as whole folders, for tests that need a real model and no download.

Each builder writes model, tokenizer, PIL image processor and chat template with save_pretrained and returns the
folder. The weights are wide enough (`initializer_range`) that greedy answers differ from image to image and from
question to question; Mllama's cross-attention gates are open, or it would be blind.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.processing_utils import ProcessorMixin

SIDE = 32
"""Side of an image in pixels."""
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SPREAD = 0.15
"""Standard deviation of the random weights."""

# Every turn is role, content, end of turn, with nothing between: a prompt rendered for generation is a prefix of the
# same prompt rendered with its answer.
CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}
{{- eos_token -}}
{%- endgeneration -%}
{%- else -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- 'IMAGE' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{- eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def tiny_tokenizer(image: str, *others: str) -> PreTrainedTokenizerFast:
    """Bytes and special tokens, nothing merged: any text survives. `image` is the last id, as Mllama needs it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [BOS, EOS, PAD, "<|system|>", "<|user|>", "<|assistant|>", *others, image]
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=specials[3:],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE.replace("IMAGE", image)
    return fast


def tiny_mllama(path: Path, seed: int = 0) -> Path:
    """MllamaForConditionalGeneration, up to 2 tiles an image, cross-attention at layers 1 and 3 of 4, gates at 0.7."""
    tokenizer = tiny_tokenizer("<|image|>", "<|python_tag|>")
    ids = _special_ids(tokenizer)
    image_id = tokenizer.convert_tokens_to_ids("<|image|>")
    text = MllamaTextConfig(
        vocab_size=image_id,  # as published: the image token has an embedding and no logit
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[1, 3],
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=SPREAD,
        **ids,
    )
    vision = MllamaVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        intermediate_layers_indices=[0],
        vision_output_dim=2 * 32,
        initializer_range=SPREAD,
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "gate_proj" not in name:
                parameter.fill_(0.7)
    images = MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=2)
    return _save(path, model, MllamaProcessor(images, tokenizer, chat_template=tokenizer.chat_template))


def tiny_idefics3(path: Path, seed: int = 0) -> Path:
    """Idefics3ForConditionalGeneration, 4 tokens an image, images never split; vLLM serves it on a CPU."""
    tokenizer = tiny_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    ids = _special_ids(tokenizer)
    vision = Idefics3VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        initializer_range=SPREAD,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=_llama(len(tokenizer), ids),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=ids["pad_token_id"],
        tie_word_embeddings=False,
        initializer_range=SPREAD,
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    return _save(path, model, processor)


def tiny_llava(path: Path, seed: int = 0) -> Path:
    """LlavaForConditionalGeneration with a CLIP tower, 16 tokens an image."""
    tokenizer = tiny_tokenizer("<image>")
    ids = _special_ids(tokenizer)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=32,
        initializer_range=SPREAD,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_llama(len(tokenizer), ids),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // 8) ** 2,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return _save(path, model, processor)


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _llama(vocabulary: int, ids: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 32: the smallest that vLLM's CPU attention takes
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
        **ids,
    )


def _save(path: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Path:
    for name, value in _special_ids(processor.tokenizer).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path
