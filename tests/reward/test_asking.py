"""Text that is only text: to the tokenizers and processors of real models of three families, and in general."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from align.engine import Request, Transformers, open_engine
from align.records import Message, Sampling
from reward import load_reward
from reward.asking import JOINER, mass, plain
from tests.reward.candidates import candidate, png
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama

CONTROL = [
    "<|image|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|im_start|>", "<|im_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|endoftext|>", "<image>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<unk>",
    "<start_of_turn>",
    "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_utterance>", "<fake_token_around_image>",
    "<global-img>", "<row_1_col_2>", "<IMG_CONTEXT>", "<img>", "[INST]", "[/INST]", "[IMG]", "<<SYS>>", "<｜User｜>",
    "<loc0512>", "<unused7>", "<END CONVERSATION>", "<|header_start|>", "<|eot|>",
]  # fmt: skip


@pytest.mark.parametrize("token", CONTROL)
def test_what_controls_is_broken_up_and_reads_the_same(token: str) -> None:
    found = plain(f"a {token}{token} b")
    assert token not in found
    assert found.replace(JOINER, "") == f"a {token}{token} b"
    assert plain(found) == found


@pytest.mark.parametrize(
    "text", ["a < b > c", "x <b>bold</b>", "<table><tr>", "a | b", "[1] [INSTALL]", "1 <|2", "", "मज़ा ภาษา", "f<T>(x)"]
)
def test_other_text_is_left_alone(text: str) -> None:
    assert plain(text) == text


def test_mass() -> None:
    assert mass({"yes": -0.1, " Yes": -9.0, "no": -3.0}, {"yes": 1, "no": 0}) is not None
    assert mass({"well": 0.0}, {"yes": 1}) is None
    assert mass({"yes": float("nan")}, {"yes": 1}) is None
    assert mass({}, {"yes": 1}) is None


@pytest.fixture(scope="module", params=[tiny_mllama, tiny_idefics3, tiny_llava], ids=lambda f: f.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build: Callable[[Path], Path] = request.param
    return build(tmp_path_factory.mktemp("model"))


def test_every_special_token_of_a_real_tokenizer_is_text(folder: Path) -> None:
    tokenizer: Any = AutoProcessor.from_pretrained(folder).tokenizer
    for token in tokenizer.all_special_tokens:
        ids = tokenizer(plain(f"a{token}b"), add_special_tokens=False)["input_ids"]
        assert not set(ids) & set(tokenizer.all_special_ids), token


def test_a_judge_in_this_process_is_not_controlled_by_an_answer(folder: Path, tmp_path: Path) -> None:
    """As they stand, the model refuses such a text: it counts one image too many."""
    tokenizer: Any = AutoProcessor.from_pretrained(folder).tokenizer
    evil, image = "".join(tokenizer.all_special_tokens), png(tmp_path / "i.png")
    engine = {"engine": "transformers", "model": str(folder), "dtype": "float32"}
    rubric = tmp_path / "rubric.jinja"
    rubric.write_text("{{ question }} {{ answer }} {{ reference }}")
    with open_engine(Transformers.model_validate(engine)) as opened:
        request = Request("x", [Message(role="user", content=evil)], [image], sampling=Sampling(max_tokens=1))
        assert opened.generate([request])[0].error
    with load_reward({"reward": "judge", "engine": engine, "rubric": str(rubric)}) as reward:
        row = candidate(evil, evil, images=[image], prompt=[Message(role="user", content=evil)])
        (score,) = reward.score([row])
    assert score.value is not None or "gave no rating" in score.reason  # it was asked, and did answer
