"""Small random models at which the shape of the work is that of the large ones: most of it in language and tower.

In: a folder. Out: model, processor, images and rows, the same for the same seed. Mllama's gates are open, or it would
be blind.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from align.records import QA, Message, Pair

VOCABULARY, SIDE, HIDDEN = 8192, 224, 256
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "<eos> {% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def _tokenizer(image: str) -> Any:
    names = ["<unk>", "<pad>", "<bos>", "<eos>", image, "user", ":", "assistant"]
    names += [f"w{i}" for i in range(VOCABULARY - len(names))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=[image],
    )  # fmt: skip


_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_attention_heads": 4, "pad_token_id": 1, "bos_token_id": 2,
    "eos_token_id": 3, "max_position_embeddings": 4096,
}  # fmt: skip


def llava() -> tuple[Any, Any]:
    """8 layers, 256 image tokens."""
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = tf.LlavaProcessor(
        images, _tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    vision = tf.CLIPVisionConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4, image_size=SIDE,
        patch_size=14, projection_dim=192,
    )  # fmt: skip
    text = tf.LlamaConfig(**_TEXT, intermediate_size=704, num_hidden_layers=8, num_key_value_heads=4)
    config = tf.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=(SIDE // 14) ** 2,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.LlavaForConditionalGeneration(config).eval(), processor


def mllama() -> tuple[Any, Any]:
    """10 layers, 2 of them cross-attention to 4 tiles of 257 tokens."""
    images = MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=4)
    chat = TEMPLATE.replace("IMAGE", "<|image|>")
    processor = tf.MllamaProcessor(images, _tokenizer("<|image|>"), chat_template=chat)
    vision = tf.models.mllama.MllamaVisionConfig(
        hidden_size=160, num_hidden_layers=8, num_global_layers=2, attention_heads=2, intermediate_size=640,
        vision_output_dim=480, image_size=SIDE, patch_size=14, intermediate_layers_indices=[2, 5], max_num_tiles=4,
    )  # fmt: skip
    text = tf.models.mllama.MllamaTextConfig(
        **_TEXT, intermediate_size=896, num_hidden_layers=10, num_key_value_heads=1, cross_attention_layers=[3, 8],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    model = tf.MllamaForConditionalGeneration(
        tf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=4)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "gate_proj" not in name:
                parameter.fill_(0.5)
    return model.eval(), processor


def rows(folder: Path, images: int, each: int, pairs: bool, question: int, low: int, high: int) -> list[Any]:
    """`each` rows for each of `images` JPEGs of 640 x 480; questions and answers of that many words."""
    draw, noise = random.Random(0), np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY - 20)}" for _ in range(count))

    def answer() -> list[Message]:
        return [Message(role="assistant", content=words(draw.randint(low, high)))]

    made: list[Any] = []
    for n in range(images):
        path = folder / f"{n}.jpg"
        small = Image.fromarray(noise.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        for k in range(each):
            common = {
                "id": f"{n}-{k}", "images": [str(path)], "image_id": str(n), "kind": "read",
                "prompt": [Message(role="user", content=words(question))],
            }  # fmt: skip
            if pairs:
                scores = {"chosen_score": 1.0, "rejected_score": 0.0, "question_id": f"{n}-{k}"}
                made.append(Pair(**common, **scores, chosen=answer(), rejected=answer()))
            else:
                made.append(QA(**common, completion=answer(), split="train"))
    return made
