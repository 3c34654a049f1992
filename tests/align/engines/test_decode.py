from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.generation.logits_process import TopPLogitsWarper

from align.engines.decode import Loop, Row, draw, uniforms
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama

STEPS = 10


@pytest.fixture(scope="module", params=[tiny_mllama, tiny_idefics3, tiny_llava], ids=lambda f: f.__name__)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    build: Callable[[Path], Path] = request.param
    folder = build(tmp_path_factory.mktemp("model"))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return model, AutoProcessor.from_pretrained(folder)


def batch_of(processor: Any, questions: list[str]) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (len(questions), 32, 40, 3), dtype=np.uint8)
    images = [[Image.fromarray(p)] for p in pixels]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in questions
    ]
    made = processor(
        text=texts, images=images, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
    )
    return dict(made)


def answers_of(model: Any, inputs: dict[str, Any], rows: list[Row], **settings: Any) -> Loop:
    loop = Loop(rows, [model.generation_config.eos_token_id])
    model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, custom_generate=loop, **settings)
    return loop


def greedy(prompt: int, tokens: int = STEPS) -> Row:
    return Row(prompt, seed=0, temperature=0.0, top_p=1.0, max_tokens=tokens)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}])
def test_greedy_is_generate_token_for_token(loaded: tuple[Any, Any], settings: dict[str, Any]) -> None:
    model, processor = loaded
    inputs = batch_of(processor, ["what?", "how many red bars are there?", "why", "is it?"])
    length, eos = inputs["input_ids"].shape[1], model.generation_config.eos_token_id
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, **settings)[:, length:].tolist()
    expected = [row[: row.index(eos)] if eos in row else row for row in whole]
    order = [3, 0, 0, 1, 2, 2, 2]  # prompts repeated, and not in their order
    drawn = answers_of(model, inputs, [greedy(p) for p in order], **settings).drawn
    assert drawn is not None
    assert drawn.tokens == [expected[p] for p in order]
    assert drawn.ended == [eos in whole[p] for p in order]
    assert len({tuple(e) for e in expected}) == 4  # images and questions do reach the answers


def test_rows_end_at_their_own_length_and_leave_the_batch(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = batch_of(processor, ["what?", "how many?"])
    full = answers_of(model, inputs, [greedy(0), greedy(1)]).drawn
    lengths = [1, STEPS, 2, 3, 1, STEPS]
    drawn = answers_of(model, inputs, [greedy(i % 2, n) for i, n in enumerate(lengths)]).drawn
    assert full is not None
    assert drawn is not None
    assert drawn.tokens == [full.tokens[i % 2][:n] for i, n in enumerate(lengths)]


def test_what_a_row_draws_depends_on_its_seed_alone(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = batch_of(processor, ["what?", "how many?"])
    rows = [Row(i % 2, seed=100 + i, temperature=0.6 + 0.1 * i, top_p=0.95, max_tokens=STEPS - i) for i in range(6)]
    together = answers_of(model, inputs, rows).drawn
    assert together is not None
    assert len({tuple(t) for t in together.tokens}) == 6
    for row, tokens in zip(rows, together.tokens, strict=True):
        alone = answers_of(model, inputs, [row]).drawn
        assert alone is not None
        assert alone.tokens == [tokens]


def test_first_logprobs_are_those_of_a_plain_forward(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    inputs = batch_of(processor, ["what?", "how many?"])
    drawn = answers_of(model, inputs, [Row(1, 5, 1.3, 0.5, 3)]).drawn
    with torch.no_grad():
        positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = model(**inputs, position_ids=positions).logits[:, -1]
    assert drawn is not None
    torch.testing.assert_close(drawn.first, torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-5)


def test_later_logprobs_are_those_of_the_first_token_that_is_not_blank(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    eos = model.generation_config.eos_token_id
    inputs = batch_of(processor, ["how many?"])
    plain = answers_of(model, inputs, [greedy(0)]).drawn
    assert plain is not None
    blank = plain.tokens[0][0]
    loop = Loop([greedy(0, 1), greedy(0)], [eos], blank=lambda token: token == blank)
    model.generate(**inputs, do_sample=False, max_new_tokens=STEPS, custom_generate=loop)
    assert loop.drawn is not None
    made = loop.drawn.tokens[1]
    step = next(i for i, token in enumerate(made) if token != blank)
    forced = torch.tensor([made[:step]])
    with torch.no_grad():
        longer = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], forced], -1),
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(forced)], -1),
        }
        if "cross_attention_mask" in longer:
            mask = longer["cross_attention_mask"]
            longer["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, step, -1, -1)], 1)
        logits = model(**longer).logits[0, -1]
    assert list(loop.drawn.later) == [1]  # the other row ended on a blank
    torch.testing.assert_close(loop.drawn.later[1], torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.9), (1.0, 1e-9)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Over evenly spread numbers every token comes up as often as transformers' own warped softmax says."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    count = 20_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    expand = torch.ones(count, dtype=torch.float64)
    tokens = draw(logits.expand(count, -1), expand * temperature, expand * top_p, numbers)
    warped = TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits / temperature) if top_p < 1 else logits / temperature
    expected = torch.softmax(warped, -1)[0] * count
    assert (torch.bincount(tokens, minlength=12) - expected).abs().max() < 1.5


def test_temperature_zero_is_argmax_beside_rows_that_draw() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    ones = torch.ones(2, dtype=torch.float64)
    tokens = draw(logits, torch.tensor([0.0, 1.0], dtype=torch.float64), ones, ones * 0.01)
    assert tokens.tolist() == [1, 0]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 1.0, float("-inf"), 2.0, float("-inf")]])
    for number in (0.0, 0.3, 1 - 2**-53):
        one = torch.ones(1, dtype=torch.float64)
        assert draw(logits, one, one, one * number).item() in (1, 3)


def test_streams_of_numbers_begin_alike_whatever_their_length() -> None:
    assert torch.equal(uniforms(7, 5), uniforms(7, 9)[:5])
    assert not torch.equal(uniforms(7, 5), uniforms(8, 5))
