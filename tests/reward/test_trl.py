"""The reward function as TRL calls it, and inside its GRPO trainer."""

import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align.engine import EngineDied
from align.errors import UserError
from align.images import open_image
from reward import load_reward
from reward.asks import Images, read_ask
from reward.trl import TrlReward, trl_reward, without_images
from tests import tiny
from tests.chat_server import Answer, chat_server
from tests.plain import picture
from tests.reward.candidates import png
from tests.reward.published import skywork
from tests.reward.test_serve import Lengths

RULES = {"reward": "rules", "rules": [{"rule": "exact"}]}


def test_texts_and_messages_with_references() -> None:
    with trl_reward(RULES, reference="answer") as reward:
        said = [{"role": "assistant", "content": "red"}]
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
        found = reward(
            prompts=["Which?", prompt, prompt, "?"],
            completions=["blue", said, said, "x"],
            answer=["red", "red", "green", None],
            trainer_state=None,
            completion_ids=[[1]] * 4,
        )
    assert found == [0.0, 1.0, 0.0, None]
    assert reward.__name__ == "reward"


def test_a_prompt_of_another_shape_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    odd: list[Any] = [["x"], [{"role": "user", "content": ["x"]}], [{"role": "user", "content": [{"type": "text"}]}], 7]
    with trl_reward(RULES, reference="answer") as reward:
        found = reward([*odd, "?"], ["x"] * 5, answer=["x"] * 5, images=np.array([None] * 5))
    assert found == [None] * 4 + [1.0]
    assert "4 of 5 completions have no score, the first: messages[0]" in caplog.text


def test_the_fields_of_a_form_are_a_reference() -> None:
    with trl_reward({"reward": "rules", "rules": [{"rule": "json"}]}, reference="form") as reward:
        assert reward(["?"], ['{"total": "9.00", "date": "x"}'], form=[{"total": "9.00", "date": "y"}]) == [0.5]


def test_a_reference_is_a_text_a_number_or_a_list(caplog: pytest.LogCaptureFixture) -> None:
    """As data sets keep accepted answers, whole numbers as floats included; none of several costs no other."""
    answers = ["12", ["12", "twelve"], 12, 12.0, ["twelve", 12.0], (12,), ["12", None, float("nan")], 12.5, [], None]
    answers += [float("nan"), [None], {"a": {1, 2}}]
    with trl_reward(RULES, reference="answer") as reward:
        found = reward(["?"] * len(answers), ["12"] * len(answers), answer=answers)
    assert found == [1.0] * 7 + [0.0] + [None] * 5
    assert "5 of 13 completions have no score" in caplog.text
    for answer, told in {"dict": {"a": {1, 2}}, "inf": float("inf"), "list": [["12"]]}.items():
        with trl_reward(RULES, reference="answer") as reward:
            assert reward(["?"], ["x"], answer=[told]) == [None]
        assert f"reference: a text or a number is expected, or a list of them, not {answer}" in caplog.text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (np.int64(3), "3"),
        (np.float32(3), "3"),
        (np.float32(3.1), "3.1"),
        (np.float64(-0.25), "-0.25"),
        (np.array(["4", "3"]), "3"),
        (np.array([4.5, 7.0]), "7"),
        (np.array(3), "3"),
        (torch.tensor([5, 8]), "8"),
        (torch.tensor(8), "8"),
        (Decimal("3.00"), "3"),
        (Decimal("12.5"), "12.5"),
        (Fraction(1, 2), "1/2"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (np.datetime64("2024-02-29"), "2024-02-29"),
        (True, "true"),
        (np.bool_(False), "False"),
        (10**400, "1" + "0" * 400),
    ],
)
def test_what_columns_hold_as_a_reference(answer: Any, text: str) -> None:
    """Beside Python's own: NumPy's and PyTorch's, what parquet and SQL give."""
    with trl_reward(RULES, reference="answer") as reward:
        assert reward(["?"] * 2, [text, f"{text}0"], answer=[answer] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("answer", [np.array([np.nan]), np.float32("nan"), Decimal("NaN"), np.array([]), np.inf, b"3"])
def test_what_is_no_reference(answer: Any) -> None:
    with trl_reward(RULES, reference="answer") as reward:
        assert reward(["?"], ["3"], answer=[answer]) == [None]
    with trl_reward({"reward": "rules", "rules": [{"rule": "length", "max": 3}]}) as reward:
        assert reward(["?"], ["3"], answer=[answer]) == [1.0]


def test_images_of_every_kind_reach_the_reward(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png")
    seen = Lengths()
    reward = TrlReward(seen)
    picture = Image.open(path)
    data = {"bytes": Path(path).read_bytes(), "path": None}
    assert reward(["?"] * 3, ["1", "2", "3"], images=[[path], [picture], [data]]) == [1.0, 2.0, 3.0]
    assert reward(["?"], ["4"], image=[picture]) == [4.0]
    assert len(seen.images) == 4
    assert all(found.startswith(b"\x89PNG") for found in seen.images)


def test_a_picture_is_written_once_upright_and_gone_after_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file for one object, and for another with the same pixels; as a path is read, with EXIF's turn."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(1, (40, 24)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    path = str(tmp_path / "turned.jpg")
    expected = open_image(path).tobytes()
    written: list[str] = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, to, *a, **g: (written.append(str(to)), save(self, to, *a, **g))
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    seen = Lengths()
    one = Image.open(path)
    assert TrlReward(seen)(["?"] * 5, list("12345"), images=[[one]] * 4 + [[Image.open(path)]]) == [1, 2, 3, 4, 5]
    assert len(written) == 1
    assert {open_image(data).tobytes() for data in seen.images} == {expected}
    assert open_image(seen.images[0]).size == (24, 40)
    assert not [*(tmp_path / "temporary").iterdir()]


def test_an_outage_of_the_judge_costs_its_batches_alone(caplog: pytest.LogCaptureFixture) -> None:
    status = 200
    with chat_server(lambda _: Answer("4", status=status)) as server:
        engine = {"engine": "server", "model": "m", "base_url": server.base_url, "retries": 0}
        with trl_reward({"reward": "judge", "engine": engine}) as reward:
            assert reward(["?"] * 2, ["a", "b"]) == [0.75, 0.75]
            status = 503
            assert reward(["?"] * 2, ["a", "b"]) == [None, None]
            assert "2 of 2 completions have no score, the first: the server at " in caplog.text
            status = 200
            assert reward(["?"] * 2, ["a", "b"]) == [0.75, 0.75]
    gone = Lengths()
    with pytest.raises(EngineDied):  # for good: there is nothing to wait for
        TrlReward(gone)(["?"], ["die"])


def test_a_row_that_cannot_be_read_has_no_score_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tool = [{"role": "tool", "content": "?"}, {"role": "user", "content": "?"}]
    reward = TrlReward(Lengths())
    print_ = Image.new("CMYK", (4, 4))
    assert reward([tool, "?", "?"], ["1", "22", "3"], images=[[], [print_], [str(tmp_path / "none.png")]]) == [
        None, 22.0, None
    ]  # fmt: skip
    assert "2 of 3 completions have no score, the first: " in caplog.text


@pytest.mark.filterwarnings("ignore")  # TRL's own, about the version of vLLM and the like
def test_grpo_runs_with_it(tmp_path: Path) -> None:
    """On text: the trainer takes the function, and what it logs is the mean of the numbers worked out by hand."""
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    folder = tiny.tiny_llava(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": ["one", "two"] * 2, "answer": ["1", "2"] * 2})
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, num_generations=2, max_completion_length=4,
        max_steps=2, logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    config = {"reward": "rules", "rules": [{"rule": "length", "max": 3}]}
    called: list[list[float]] = []
    with trl_reward(config, reference="answer") as reward:

        def scorer(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            assert [{"one": "1", "two": "2"}[prompt] for prompt in prompts] == columns["answer"]
            called.append([float(len(text.strip()) <= 3) for text in completions if text.strip()])
            return reward(prompts, completions, **columns)

        trainer = GRPOTrainer(
            model=model, reward_funcs=scorer, args=arguments, train_dataset=rows, processing_class=tokenizer
        )
        trainer.train()
    logged = [entry["rewards/scorer/mean"] for entry in trainer.state.log_history if "rewards/scorer/mean" in entry]
    assert logged == pytest.approx([sum(values) / len(values) for values in called])
    assert len(logged) == 2


def test_a_column_that_is_missing_is_named() -> None:
    with (
        trl_reward(RULES, reference="answer") as reward,
        pytest.raises(UserError, match=r"no column 'answer'.*did you mean 'answers'"),
    ):
        reward(["?"], ["x"], answers=["x"])


@pytest.mark.filterwarnings("ignore")  # TRL's own, about the version of vLLM and the like
def test_grpo_on_text_and_image_with_a_trained_scorer(tmp_path: Path) -> None:
    """The policy sees the image, and the scorer the row's own one: its numbers are those that are logged."""
    from datasets import Dataset
    from datasets import Image as ImageColumn
    from trl import GRPOConfig, GRPOTrainer

    from align.models import load

    policy, processor = load(str(tiny.tiny_llava(tmp_path / "tiny")), "float32", "cpu")
    pictures = {"How many bars?": str(tmp_path / "0.png"), "How many?": str(tmp_path / "1.png")}
    for n, path in enumerate(pictures.values()):
        picture(n, (40, 24)).save(path)
    asked = [[{"role": "user", "content": question}] for question in pictures]
    rows = Dataset.from_dict({"prompt": asked, "image": [*pictures.values()]}).cast_column("image", ImageColumn())
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, num_generations=2, max_completion_length=4,
        max_steps=2, logging_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    config = {"reward": "trained", "model": str(skywork(tmp_path / "scorer")), "device": "cpu"}
    called: list[tuple[list[str], list[str], list[float | None]]] = []
    with trl_reward(config) as reward:

        def scorer(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            questions = [without_images(prompt)[-1]["content"][0]["text"].strip() for prompt in prompts]
            texts = [turns[0]["content"] for turns in completions]
            called.append((questions, texts, reward(prompts, completions, **columns)))
            return called[-1][2]

        trainer = GRPOTrainer(
            model=policy, reward_funcs=scorer, args=arguments, train_dataset=rows, processing_class=processor
        )
        trainer.train()
    logged = [entry["rewards/scorer/mean"] for entry in trainer.state.log_history if "rewards/scorer/mean" in entry]
    assert len(logged) == len(called) == 2
    with load_reward(config) as alone:
        for mean, (questions, texts, given) in zip(logged, called, strict=True):
            assert mean == pytest.approx(sum(value or 0.0 for value in given) / len(given), abs=1e-5)
            for question, text, value in zip(questions, texts, given, strict=True):
                scores = {}
                for path in pictures.values():
                    ask = {"prompt": question, "images": [path], "completion": text}
                    (row,) = read_ask(ask, Images(tmp_path, tmp_path), "x").candidates
                    scores[path] = alone.score([row])[0].value
                assert value == pytest.approx(scores.pop(pictures[question]), abs=1e-5)
                assert value != pytest.approx(scores.popitem()[1], abs=1e-4)  # the other row's image
        assert {question for questions, _, _ in called for question in questions} == {*pictures}
