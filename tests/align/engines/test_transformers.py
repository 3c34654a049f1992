from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from align.engine import Request, Transformers, open_engine
from align.engines.transformers import Prompt, TransformersEngine, batches
from align.errors import UserError
from align.images import open_image
from align.records import Message, Sampling
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama

GREEDY = Sampling(temperature=0, max_tokens=8)
WARM = Sampling(temperature=1.0, top_p=0.9, max_tokens=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(4)]
    random = np.random.default_rng(0)
    for i, path in enumerate(paths):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32 + 40 * (i % 2), 32)).save(path)  # one tile and two
    return [str(p) for p in paths]


@pytest.fixture(scope="module", params=[tiny_mllama, tiny_idefics3, tiny_llava], ids=lambda f: f.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build: Callable[[Path], Path] = request.param
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    with opened(folder, 5) as found:
        yield found


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_mllama(tmp_path_factory.mktemp("mllama"))


def opened(folder: Path, batch_size: int) -> Any:
    return open_engine(Transformers(engine="transformers", model=str(folder), batch_size=batch_size))


def ask(i: int, images: list[str], sampling: Sampling = GREEDY, **more: Any) -> Request:
    messages = [
        Message(role="system", content="Be brief."),
        Message(role="user", content=f"what is {'it ' * (i % 3)}{i}?"),
    ]
    return Request(str(i), messages, [images[i % len(images)]] if images else [], sampling=sampling, **more)


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def by_generate(folder: Path, request: Request, adapted: Any = None) -> str:
    """The greedy answer of transformers itself, one prompt at a time and from pixels."""
    model, processor = loaded(folder)
    model = adapted or model
    first, *rest = [{"role": m.role, "content": [{"type": "text", "text": m.content}]} for m in request.messages]
    rest[0]["content"] = [{"type": "image"}] * len(request.images) + rest[0]["content"]
    text = processor.apply_chat_template([first, *rest], add_generation_prompt=True)
    pictures = [[open_image(p) for p in request.images]] if request.images else None
    inputs = processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=request.sampling.max_tokens)
    return str(processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def test_greedy_answers_are_those_of_generate(engine: Any, folder: Path, images: list[str]) -> None:
    requests = [ask(i, images) for i in range(9)] + [ask(9, []), ask(10, [])]
    replies = engine.generate(requests)
    assert [r.id for r in replies] == [r.id for r in requests]
    assert [r.error for r in replies] == [""] * 11
    assert [r.texts for r in replies] == [[by_generate(folder, r)] for r in requests]
    assert len({r.texts[0] for r in replies}) > 8


def test_two_images_in_one_prompt(engine: Any, folder: Path, images: list[str]) -> None:
    both = Request("1", ask(1, images).messages, images[:2], sampling=GREEDY)
    other = Request("2", both.messages, images[1:3], sampling=GREEDY)
    replies = engine.generate([both, ask(2, images), other])
    assert [r.error for r in replies] == [""] * 3
    assert replies[0].texts == [by_generate(folder, both)]
    assert replies[0].texts != replies[2].texts


def test_samples_depend_on_their_seed_and_on_nothing_else(engine: Any, folder: Path, images: list[str]) -> None:
    requests = [ask(i, images, WARM, n=3, seed=10 * i) for i in range(6)]
    together = engine.generate(requests)
    assert len({t for r in together for t in r.texts}) > 15
    with opened(folder, 64) as wide:
        assert wide.generate(requests[::-1])[::-1] == together
    single = engine.generate([ask(2, images, WARM, seed=22)])
    assert single[0].texts == [together[2].texts[2]]  # sample i of a request is the one drawn with seed + i


def test_finish_says_why_an_answer_ended(engine: Any, images: list[str]) -> None:
    long = Sampling(temperature=1.5, max_tokens=60)
    replies = engine.generate([ask(i, images, long, seed=i, n=4) for i in range(8)])
    assert {f for r in replies for f in r.finish} == {"stop", "length"}
    assert all(len(t.encode()) >= 20 for r in replies for t, f in zip(r.texts, r.finish, strict=True) if f == "length")


def test_a_bad_request_fails_alone(engine: Any, images: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(images[0]).read_bytes()[:60])
    token = engine._processor.image_token
    odd = [
        Request("broken", ask(0, images).messages, [str(broken)]),
        Request("missing", ask(0, images).messages, [str(tmp_path / "none.png")]),
        Request("token", [Message(role="user", content=f"what is {token}?")], [images[0]]),
        Request("long", [Message(role="user", content="x" * 600)], [images[0]]),
    ]
    requests = [ask(1, images), *odd, ask(2, images)]
    replies = {r.id: r for r in engine.generate(requests)}
    assert replies["broken"].error.startswith("image: ")
    assert replies["missing"].error.startswith("image: missing")
    assert replies["token"].error
    assert "512 positions" in replies["long"].error
    assert [replies[i].error for i in ("1", "2")] == ["", ""]


def test_a_template_that_refuses_is_that_requests_error(engine: Any, images: list[str]) -> None:
    own = engine._processor.chat_template
    engine._processor.chat_template = "{{ raise_exception('no system') if messages|length > 1 }}" + own
    try:
        refused, taken = engine.generate([ask(1, images), Request("2", ask(1, images).messages[1:], images[:1])])
    finally:
        engine._processor.chat_template = own
    assert refused.error == "chat template: no system"
    assert not taken.error


def test_answers_stop_where_the_model_has_no_more_positions(engine: Any, images: list[str]) -> None:
    text = "x" * 440  # a byte a token, of 512 positions
    endless = Sampling(temperature=0, max_tokens=10_000)
    (reply,) = engine.generate([Request("1", [Message(role="user", content=text)], images[:1], sampling=endless)])
    assert not reply.error
    assert len(reply.texts[0]) < 80


def test_logprobs_of_the_first_token(engine: Any, images: list[str]) -> None:
    (reply,) = engine.generate([ask(1, images, WARM, n=2, top_logprobs=400)])
    first, second = reply.first_logprobs
    assert first == second
    assert list(first.values()) == sorted(first.values(), reverse=True)
    (few,) = engine.generate([ask(1, images, WARM, top_logprobs=9)])
    assert few.first_logprobs[0] == dict(list(first.items())[: len(few.first_logprobs[0])])
    assert 1 < len(few.first_logprobs[0]) <= 9  # bytes that are no character have one text


def test_mllama_encodes_an_image_once(mllama: Path, images: list[str]) -> None:
    with opened(mllama, 4) as engine:
        engine.generate([ask(i, images, WARM, n=5) for i in range(12)])
        assert engine._mllama.encoded == len(images)


def test_mllama_keeps_no_more_states_than_their_bytes_allow(
    mllama: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.engines.mllama.KEPT_BYTES", 0)
    with opened(mllama, 4) as engine:
        for _ in range(2):
            assert not engine.generate([ask(0, images)])[0].error
            assert not engine._mllama._states
        assert engine._mllama.encoded == 2


def test_gates_are_open_so_the_image_moves_the_answer(mllama: Path, images: list[str]) -> None:
    with opened(mllama, 4) as engine:
        messages = ask(1, images).messages
        replies = engine.generate([Request(p, messages, [p], sampling=GREEDY) for p in images])
    assert len({r.texts[0] for r in replies}) == len(images)


def test_an_adapter_folder_answers_as_peft_does(mllama: Path, images: list[str], tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(mllama).eval()
    torch.manual_seed(1)
    target = r".*cross_attn\.(q|k|v|o)_proj"
    adapted = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=64, target_modules=target, init_lora_weights=False)
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    requests = [ask(i, images) for i in range(4)]
    expected = [by_generate(mllama, r, adapted) for r in requests]
    with opened(tmp_path / "adapter", 4) as engine, opened(mllama, 4) as plain:
        texts = [r.texts[0] for r in engine.generate(requests)]
        assert texts == expected
        assert texts != [r.texts[0] for r in plain.generate(requests)]


def test_a_batch_that_does_not_fit_in_memory_is_split(
    mllama: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(i, images, WARM, n=5, seed=i) for i in range(3)]
    with opened(mllama, 16) as engine:
        whole = engine.generate(requests)
    genuine = TransformersEngine._draw

    def narrow(self: TransformersEngine, batch: list[Prompt], *rest: Any) -> None:
        if sum(len(p.answers) for p in batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        genuine(self, batch, *rest)

    monkeypatch.setattr(TransformersEngine, "_draw", narrow)
    with opened(mllama, 16) as engine:
        assert engine.generate(requests) == whole


def test_a_model_without_a_chat_template_is_refused(mllama: Path, tmp_path: Path) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(mllama), AutoProcessor.from_pretrained(mllama)
    processor.chat_template = processor.tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no chat template"), opened(tmp_path, 4):
        pass


def test_batches_hold_so_many_answers_of_prompts_with_as_many_images() -> None:
    prompts = [
        Prompt("a", (), [(0, 0), (0, 1)]),
        Prompt("b", (), [(1, j) for j in range(7)]),
        Prompt("c", ("x",), [(2, 0)]),
    ]
    found = list(batches(prompts, 4))
    assert [[(p.text, len(p.answers)) for p in batch] for batch in found] == [
        [("a", 2), ("b", 2)],
        [("b", 4)],
        [("b", 1)],
        [("c", 1)],
    ]
    assert [a for batch in found for p in batch for a in p.answers] == [a for p in prompts for a in p.answers]
