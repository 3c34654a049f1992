"""The tokenizer: lossless, frequent words whole, and a chat template whose prompt is a prefix of the answer."""

import random

import pytest

from pipelines.demo.charts import COLORS, Part, sample_chart
from pipelines.demo.prompts import Prompts
from pipelines.demo.questions import KINDS, ask, reason
from pipelines.demo.tokenizer import IDEFICS3, MLLAMA, VOCABULARY, Family, train_tokenizer

pytestmark = pytest.mark.parametrize("family", [IDEFICS3, MLLAMA], ids=["idefics3", "mllama"])


def test_any_text_survives(family: Family) -> None:
    tokenizer = train_tokenizer(family)
    assert len(tokenizer) <= VOCABULARY
    for text in ("red 3, blue 7. Answer: 7", "Größe 12 € \n\n  x", "日本語 🦙", '[{"question": "Q?"}]'):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id is None


def test_frequent_words_are_one_token(family: Family) -> None:
    tokenizer = train_tokenizer(family)
    words = [*(f" {color}" for color in COLORS), *(f" {value}" for value in range(1, 10)), " Answer", " bar"]
    for word in words:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word


def test_the_same_tokenizer_every_time(family: Family) -> None:
    assert train_tokenizer(family).get_vocab() == train_tokenizer(family).get_vocab()


def test_the_image_token_comes_last(family: Family) -> None:
    tokenizer = train_tokenizer(family)
    assert tokenizer.convert_tokens_to_ids(family.image) == len(tokenizer) - 1


def test_a_prompt_is_a_prefix_of_prompt_and_answer(family: Family) -> None:
    tokenizer = train_tokenizer(family)
    rng = random.Random(0)
    for kind in KINDS:
        chart = sample_chart(rng, Part.TEACHER)
        qa = ask(rng, chart, kind)
        for content in (qa.question, Prompts().ask(kind, 2, chart.text_form())):
            prompt = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": content}]},
            ]
            answer = [{"role": "assistant", "content": [{"type": "text", "text": reason(chart, qa)}]}]
            asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
            assert whole == asked + reason(chart, qa) + tokenizer.eos_token
            assert asked.count(family.image) == 1
            asked_ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
            whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            assert whole_ids[: len(asked_ids)] == asked_ids
            assert whole_ids[-1] == tokenizer.eos_token_id


def test_the_assistants_tokens_are_marked(family: Family) -> None:
    tokenizer = train_tokenizer(family)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "red 3"}]
    rendered = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, on in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(marked) == f"red 3{tokenizer.eos_token}"
