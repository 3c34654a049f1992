"""A tiny reward model in the layout in which Skywork-VL-Reward is published: Qwen2.5-VL in shards, with its processor's
files and chat template, and the value head in a file of its own under TRL's names."""

from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import save_file
from transformers import Qwen2VLImageProcessorPil

from tests.tiny import tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen publishes, less its numbering of images and its videos."""


def skywork(path: Path, seed: int = 0) -> Path:
    """Write the model below `path`."""
    names = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
    tokenizer = tiny_tokenizer("<|image_pad|>", *names)
    start, end, video, _, eos = tokenizer.convert_tokens_to_ids(list(names))
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "out_hidden_size": 32,
            "intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 16,
        },
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"), video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end, bos_token_id=tokenizer.bos_token_id, eos_token_id=eos,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = tf.Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(path, max_shard_size="60KB")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096}).save_pretrained(path)
    head = {"v_head.summary.weight": torch.randn(1, 32) / 4, "v_head.summary.bias": torch.randn(1)}
    save_file(head, path / "value_head.safetensors")
    return path
