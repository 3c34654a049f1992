"""The demo's language reward model: what it is shown as wrong is wrong, its loss by another way, what it is."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid
from transformers import AutoModelForSequenceClassification

from align.models import load
from pipelines.demo.charts import Part, sample_chart
from pipelines.demo.language_reward import Questions, RewardPlan, _reward_loss, build_language_reward, wrong
from pipelines.demo.questions import KINDS, ask, conclusion, reason
from pipelines.demo.student import StudentPlan, StudentSize, build_student
from pipelines.demo.training import Schedule


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student")
    build_student(out, 0, StudentPlan().scaled(0.001), StudentSize(width=32, heads=4))
    return out


def test_a_wrong_answer_of_every_kind_concludes_otherwise() -> None:
    rng = random.Random(0)
    for _ in range(40):
        chart = sample_chart(rng, Part.STUDENT)
        for kind in KINDS:
            qa = ask(rng, chart, kind)
            assert conclusion(wrong(rng, chart, qa)) != conclusion(reason(chart, qa))


def test_it_begins_as_the_students_language_model(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.demo.language_reward.fit", lambda *_, **__: [])
    build_language_reward(str(student), tmp_path / "reward", 0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    vision_language, processor = load(str(student), "float32", "cpu")
    assert model.score.weight.shape == (1, 32)
    ids = processor.tokenizer("Which bar is the tallest?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model.model(ids).last_hidden_state, vision_language.model(ids).last_hidden_state)


def test_it_learns_and_leaves_the_students_words_alone(student: Path, tmp_path: Path) -> None:
    head = load(str(student), "float32", "cpu")[0].lm_head.weight.clone()
    plan = RewardPlan(text=Schedule(6, lr=0.01, adamw_lr=1e-2), questions=8, wrong=1)
    metrics = build_language_reward(str(student), tmp_path / "reward", 0, plan)
    assert 0 < metrics["loss"] < 20
    assert load(str(student), "float32", "cpu")[0].lm_head.weight.equal(head)
    assert (tmp_path / "reward" / "tokenizer.json").is_file()


def test_the_loss_over_packed_answers_is_that_of_each_alone(student: Path, tmp_path: Path) -> None:
    build_language_reward(str(student), tmp_path / "reward", 0, RewardPlan().scaled(0))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    model.set_attn_implementation("eager")
    vision_language, processor = load(str(student), "float32", "cpu")
    plan = RewardPlan(questions=5, wrong=2)
    with torch.no_grad():
        found = _reward_loss(model, vision_language.lm_head, processor.tokenizer, plan)(random.Random(3))
        pairs, ratings, truths, words, targets = [], [], [], [], []
        for group in Questions(processor.tokenizer, 2).sample(random.Random(3), 5):
            ends = []
            for example in group:
                ids, start = torch.tensor(example.ids), example.learned_from
                hidden = model.model(ids[None]).last_hidden_state[0]
                every = model.score(hidden)[:, 0]
                right = torch.tensor(group[0].ids)
                ends.append(every[-1])
                ratings.append(every[start:])
                truths += [float(example.ids[: n + 1] == group[0].ids[: n + 1]) for n in range(start, len(ids))]
                if example is group[0]:
                    words.append(vision_language.lm_head(hidden[start - 1 : -1]))
                    targets.append(right[start:])
            pairs += [-logsigmoid(ends[0] - end) for end in ends[1:]]
        expected = (
            torch.stack(pairs).mean()
            + binary_cross_entropy_with_logits(torch.cat(ratings), torch.tensor(truths))
            + cross_entropy(torch.cat(words), torch.cat(targets))
        )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
