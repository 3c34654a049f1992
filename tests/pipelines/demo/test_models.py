"""The two builds: who learns when, what is saved, and that a killed build ends where an uninterrupted one does."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from align.config import shipped
from pipelines.demo.charts import Part, draw, sample_chart
from pipelines.demo.prompts import Prompts
from pipelines.demo.questions import KINDS, ask, conclusion
from pipelines.demo.student import (
    StudentPlan,
    StudentSize,
    TextExamples,
    build_student,
    make_processor,
    make_student,
    pixel_batch,
    train_only,
)
from pipelines.demo.teacher import (
    SkillExamples,
    TeacherPlan,
    TeacherSize,
    build_teacher,
    make_teacher,
    wrong_answer,
)
from pipelines.demo.teacher import make_processor as make_teacher_processor
from pipelines.demo.tokenizer import IDEFICS3, MLLAMA, train_tokenizer
from pipelines.demo.training import Schedule, pack

SMALL = StudentSize(width=16, heads=2, text_layers=3, cross_layers=(1,), vision_layers=1)
SMALL_TEACHER = TeacherSize(width=16, heads=2, text_layers=2, vision_layers=1)
FEW = StudentPlan(text=Schedule(3), noisy=Schedule(3), clean=Schedule(2), chats=4, captions=3)
FEW_TEACHER = TeacherPlan(Schedule(3), charts=2)


def test_vision_steps_leave_the_language_model_alone(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(MLLAMA)
    model = make_student(SMALL, tokenizer)
    train_only(model, "vision")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in frozen
    assert "model.language_model.embed_tokens.weight" in frozen
    assert "lm_head.weight" in frozen
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "model.language_model.layers.1.cross_attn.q_proj.weight" in learning
    assert "model.language_model.layers.1.mlp.up_proj.weight" in learning
    assert "model.multi_modal_projector.weight" in learning
    assert any("vision_model" in name for name in learning)
    train_only(model, "language")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == frozen

    text_only = StudentPlan(text=FEW.text, noisy=Schedule(0), clean=Schedule(0), chats=4, captions=3)
    build_student(tmp_path / "text", 0, text_only, SMALL)
    build_student(tmp_path / "all", 0, FEW, SMALL)
    first = AutoModelForImageTextToText.from_pretrained(tmp_path / "text").state_dict()
    last = AutoModelForImageTextToText.from_pretrained(tmp_path / "all").state_dict()
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed
    assert changed <= learning
    assert any("cross_attn" in name for name in changed)


def test_the_image_reaches_the_students_answer(tmp_path: Path) -> None:
    build_student(tmp_path, 0, FEW, SMALL)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    rng = random.Random(0)
    chart, other = (sample_chart(rng, Part.PIPELINE) for _ in range(2))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the chart."}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    logits = []
    for image in (draw(chart), draw(other)):
        inputs = processor(images=[[image]], text=[prompt], add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    assert not torch.allclose(logits[0], logits[1])
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]


def test_the_processors_pass_the_pixels_that_were_trained_on() -> None:
    rng = random.Random(0)
    charts = [sample_chart(rng, Part.TEACHER) for _ in range(2)]
    expected = pixel_batch(charts)
    images = [[draw(chart)] for chart in charts]
    student = make_processor(train_tokenizer(MLLAMA)).image_processor(images, return_tensors="pt")
    torch.testing.assert_close(student["pixel_values"][:, 0, 0], expected)
    teacher = make_teacher_processor(train_tokenizer(IDEFICS3), TeacherSize())
    torch.testing.assert_close(teacher.image_processor(images, return_tensors="pt")["pixel_values"][:, 0], expected)


def test_the_teachers_processor_writes_the_prompts_that_were_trained_on() -> None:
    tokenizer = train_tokenizer(IDEFICS3)
    size = TeacherSize()
    processor = make_teacher_processor(tokenizer, size)
    chart = sample_chart(random.Random(0), Part.TEACHER)
    text = Prompts().ask("read", 2)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[[draw(chart)]], text=[prompt], add_special_tokens=False, return_tensors="pt")
    examples = SkillExamples(tokenizer, size.image_tokens, Prompts())
    trained = examples.chat("", True, text, "[]")
    assert inputs["input_ids"][0].tolist() == trained.ids[: trained.learned_from]


@pytest.mark.parametrize("kill_after", [1, 4, 7])
def test_a_killed_student_build_ends_with_the_same_weights(tmp_path: Path, kill_after: int) -> None:
    class Kill(Exception):
        pass

    def kill(done: int, _total: int) -> None:
        if done == kill_after:
            raise Kill

    expected = build_student(tmp_path / "whole", 3, FEW, SMALL)
    with pytest.raises(Kill):
        build_student(tmp_path / "parts", 3, FEW, SMALL, progress=kill)
    torch.manual_seed(1234)
    assert build_student(tmp_path / "parts", 3, FEW, SMALL) == expected
    whole = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert whole == (tmp_path / "parts" / "model.safetensors").read_bytes()


def test_a_finished_model_is_not_trained_again_when_the_other_one_was_killed(tmp_path: Path) -> None:
    expected = build_teacher(tmp_path, 3, FEW_TEACHER, SMALL_TEACHER)
    whole = (tmp_path / "model.safetensors").read_bytes()
    steps: list[tuple[int, int]] = []
    assert build_teacher(tmp_path, 3, FEW_TEACHER, SMALL_TEACHER, progress=lambda *step: steps.append(step)) == expected
    assert steps == [(3, 3)]
    assert (tmp_path / "model.safetensors").read_bytes() == whole


def test_the_seed_decides_the_teacher(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    build_teacher(tmp_path / "a", 1, FEW_TEACHER, SMALL_TEACHER, progress=lambda *step: steps.append(step))
    build_teacher(tmp_path / "b", 1, FEW_TEACHER, SMALL_TEACHER)
    build_teacher(tmp_path / "c", 2, FEW_TEACHER, SMALL_TEACHER)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_every_part_of_the_teacher_learns() -> None:
    tokenizer = train_tokenizer(IDEFICS3)
    model = make_teacher(SMALL_TEACHER, tokenizer)
    rng = random.Random(0)
    charts = [sample_chart(rng, Part.TEACHER) for _ in range(4)]
    examples = SkillExamples(tokenizer, SMALL_TEACHER.image_tokens, Prompts())
    groups = [[examples.chat("", True, "Describe the chart.", chart.table())] for chart in charts]
    batch = pack(groups, tokenizer.pad_token_id)
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        pixel_values=pixel_batch(charts)[:, None],
        use_cache=False,
    ).last_hidden_state
    model.lm_head(hidden).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_wrong_answer_concludes_wrongly() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for _ in range(50):
            chart = sample_chart(rng, Part.TEACHER)
            qa = ask(rng, chart, kind)
            assert conclusion(wrong_answer(rng, chart, qa)) != qa.answer


def test_text_training_never_shows_an_image() -> None:
    tokenizer = train_tokenizer(MLLAMA)
    image = tokenizer.convert_tokens_to_ids(MLLAMA.image)
    for example in TextExamples(tokenizer).sample(random.Random(0), 100):
        assert image not in example.ids


def test_prompts_are_rendered_from_the_templates() -> None:
    chart = sample_chart(random.Random(0), Part.TEACHER)
    form = chart.text_form()
    prompts = Prompts()
    assert prompts.ask("read", 2, form + "\n") == f"{form}\n{prompts.ask('read', 2)}"
    assert prompts.judge("Q?", "A") == "Q?\nRate: A"
    assert prompts.answer("Q?") == "Q?"


def test_both_models_know_the_prompts_that_they_were_built_with(tmp_path: Path) -> None:
    """Of templates in a folder of the user's: the tokenizer has their words, and the teacher trains on their text."""
    folder = shutil.copytree(shipped(Prompts().folder), tmp_path / "prompts")
    (folder / "judge.jinja").write_text("Zyzzyva zyzzyva {{ question }} {{ answer }}")
    prompts = Prompts(str(folder))
    build_teacher(tmp_path / "teacher", 0, replace(FEW_TEACHER, schedule=Schedule(0)), SMALL_TEACHER, prompts=prompts)
    few = StudentPlan(text=Schedule(0), noisy=Schedule(0), clean=Schedule(0), chats=4, captions=3)
    build_student(tmp_path / "student", 0, few, SMALL, prompts=prompts)
    for model in ("teacher", "student"):
        tokenizer = AutoProcessor.from_pretrained(tmp_path / model).tokenizer
        assert len(tokenizer(" zyzzyva", add_special_tokens=False)["input_ids"]) == 1
    examples = SkillExamples(train_tokenizer(IDEFICS3, prompts), 1, prompts)
    rng, tokenizer = random.Random(0), AutoProcessor.from_pretrained(tmp_path / "teacher").tokenizer
    groups = [examples.group(rng, sample_chart(rng, Part.TEACHER))[0] for _ in range(8)]
    assert any("Zyzzyva zyzzyva" in tokenizer.decode(example.ids) for group in groups for example in group)
