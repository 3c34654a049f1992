"""Trains the demo's byte-level tokenizer and gives it a chat template, one for each of the two families.

In: the demo's own sentences. Out: a PreTrainedTokenizerFast with the special tokens which the family's
processor looks up. Byte level, so that any text survives encoding and decoding and none is unknown.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.demo.charts import COLORS, Part, sample_chart
from pipelines.demo.prompts import Prompts
from pipelines.demo.questions import KINDS, ask, reason
from pipelines.demo.texts import noisy_caption, plain_exchange, system_text

VOCABULARY = 640
"""Upper bound of the vocabulary, special tokens included."""
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Family:
    """The special tokens of a model family; `image` is what the chat template writes for an image."""

    bos: str
    eos: str
    pad: str
    image: str
    others: tuple[str, ...]

    @property
    def specials(self) -> list[str]:
        """All special tokens, the image's last: Mllama has no output logit for the last one."""
        return [self.bos, self.eos, self.pad, *_ROLES, *self.others, self.image]


IDEFICS3 = Family(
    bos="<|begin_of_text|>",
    eos="<end_of_utterance>",
    pad="<|pad|>",
    image="<image>",
    others=("<fake_token_around_image>", "<global-img>"),
)
MLLAMA = Family(
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    image="<|image|>",
    others=("<|python_tag|>",),
)

# Every turn is role, content, end of turn, with nothing between: a prompt rendered for generation is a prefix
# of the same prompt rendered with its answer.
_CHAT_TEMPLATE = """{{- bos_token -}}
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


def chat_template(family: Family) -> str:
    """The family's chat template: system, user and assistant turns, image and text parts."""
    return _CHAT_TEMPLATE.replace("IMAGE", family.image)


def sentences(prompts: Prompts, count: int = 1500) -> Iterator[str]:
    """Sentences of every form that the demo's models read or write."""
    rng = random.Random("tokenizer")
    yield from (f"{color} {color}." for color in COLORS)
    for number in range(count):
        chart = sample_chart(rng, Part.STUDENT)
        qa = ask(rng, chart, KINDS[number % len(KINDS)])
        yield qa.question
        yield reason(chart, qa)
        yield noisy_caption(rng, chart, 0.5)
        yield " ".join(plain_exchange(rng))
        yield system_text(rng)
        yield prompts.ask(qa.kind, 1 + number % 3, chart.text_form())
        yield prompts.answer(qa.question)
        yield prompts.judge(qa.question, reason(chart, qa))
        yield json.dumps([{"question": qa.question, "answer": qa.answer}] * 2)


def train_tokenizer(family: Family, prompts: Prompts | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens and the chat template of `family`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(family.specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(prompts or Prompts()), trainer)
    tokenizer.add_special_tokens(family.specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad,
        additional_special_tokens=[*_ROLES, *family.others, family.image],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    fast.chat_template = chat_template(family)
    return fast
