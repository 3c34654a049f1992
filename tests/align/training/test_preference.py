"""What DPO has beside TRL's losses: terms about the image, a mask of formatting tokens, a reference that moves."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import logsigmoid

from align.adapter import Preset, trainable
from align.artifact import Store, begin
from align.dpo import DPO
from align.families import family_of
from align.images import open_image
from align.models import load
from align.records import Pair
from align.training.encode import Encoder, encode, formatting
from align.training.pictures import CROP, Pictures
from align.training.trainers import Moving
from tests.align.training.corpus import images, keep, pairs, plain_logps, qa, questions, tiny
from tests.align.training.test_loss import awake


def parts(row: Any) -> Any:
    return row.prompt, [row.chosen, row.rejected] if isinstance(row, Pair) else [row.completion]


@pytest.mark.parametrize("path", ["tree", "plain"])
@pytest.mark.parametrize("epochs", [1, 0.5])  # with half an epoch the reference is computed in the step
@pytest.mark.parametrize("family", ["mllama", "llava"])
def test_mdpo_by_hand(family: str, epochs: float, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first loss of [sigmoid, conditional, anchor] from an adapter A, the policy being A moved to B: equations 2, 5
    and 6 of arXiv 2406.11839 over log-probabilities of whole logits, row by row."""
    if path == "plain":
        monkeypatch.setattr("align.tree.vision.why_plain", lambda *_: "for the test")
    base = str(tiny(family, tmp_path))
    rows = pairs(images(Store(tmp_path / "store"), 3), 4)
    beta, weights = 0.3, (1.0, 0.7, 0.4)
    stage = DPO(
        input=keep(Store(tmp_path / "store"), list(rows), Pair), model=base, adapter=Preset(rank=4), batch_size=4,
        epochs=epochs, max_steps=1 if epochs == 1 else None, beta=beta, loss_weights=list(weights), seed=5,
        loss_type=["sigmoid", "mdpo_conditional", "mdpo_anchor"], max_grad_norm=1e9,
    )  # fmt: skip
    if epochs < 1:
        stage = stage.model_copy(update={"batch_size": 2, "epochs": 0.5})

    # the stage's own reference is its fresh adapter (no change to the base); the policy is moved before the first step
    import align.training.run as running

    made = running.make_trainer
    seen: dict[str, Any] = {}

    def moved(*given: Any, **named: Any) -> Any:
        trainer, how = made(*given, **named)
        awake(trainer.model, 2)
        inner = trainer.compute_loss

        def watch(model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
            seen["ids"] = inputs["input_ids"]
            return inner(model, inputs, *more, **options)

        trainer.compute_loss = watch
        return trainer, how

    monkeypatch.setattr(running, "make_trainer", moved)
    with begin(Store(tmp_path / "store"), "dpo", "a") as out:
        metrics = stage.run(out)
    policy, processor = trainable(base, Preset(rank=4), "float32", "cpu", 5)
    reference, _ = load(base)
    awake(policy, 2)
    pictures = Pictures(tmp_path / "pictures", corrupt=True, seed=5)
    said = {processor.tokenizer.decode(row[row != processor.tokenizer.pad_token_id]) for row in seen["ids"]}
    losses = []
    for row in rows:
        if not any(row.chosen[0].content in text and row.prompt[0].content in text for text in said):
            continue
        corrupted = row.model_copy(update={"images": [pictures.cropped(row.images[0])]})

        def ratio(of: Pair, answer: Any) -> torch.Tensor:
            with torch.no_grad():
                own, other = (plain_logps(m, processor, of, answer).sum() for m in (policy, reference))
            return beta * (own - other)

        chosen, rejected, blind = ratio(row, row.chosen), ratio(row, row.rejected), ratio(corrupted, row.chosen)
        assert abs(chosen - blind) > 1e-4
        terms = (-logsigmoid(chosen - rejected), -logsigmoid(chosen - blind), -logsigmoid(chosen))
        losses.append(sum(w * t.item() for w, t in zip(weights, terms, strict=True)))
    assert len(losses) == stage.batch_size
    assert metrics["curve"][0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert "rewards/corrupted" in metrics["curve"][0]


def test_a_crop_is_small_as_large_as_the_image_and_always_the_same(tmp_path: Path) -> None:
    path, *_ = images(Store(tmp_path / "store"))
    gradient = tmp_path / "gradient.png"  # red tells the column, green the row
    Image.merge(
        "RGB", [Image.linear_gradient("L").rotate(90), Image.linear_gradient("L"), Image.new("L", (256, 256))]
    ).save(gradient)
    shares = []
    for seed in range(20):
        made = open_image(Pictures(tmp_path / "a", corrupt=True, seed=seed).cropped(str(gradient)))
        assert made.size == (256, 256)
        red, green, _ = made.getextrema()
        shares.append((red[1] - red[0] + 1) * (green[1] - green[0] + 1) / 256**2)
    assert CROP[0] * 0.5 < min(shares) < max(shares) < CROP[1] * 1.1
    assert len(set(shares)) > 10
    one, two = (Path(Pictures(tmp_path / name, corrupt=True).cropped(path)) for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert open_image(one).size == open_image(path).size


@pytest.mark.parametrize("family", ["mllama", "llava", "idefics3"])
def test_formatting_tokens_are_out_of_the_loss(family: str, tmp_path: Path) -> None:
    model, processor = load(str(tiny(family, tmp_path)))
    rows = questions(images(Store(tmp_path / "store")), 4)
    examples, aside = encode(rows, parts, Encoder(processor, family_of(model.config), True), 400, lambda *_: None)
    assert not aside
    for row, example in zip(rows, examples, strict=True):
        (sequence,) = example.sequences
        ids = sequence.inputs["input_ids"]
        assert processor.tokenizer.decode(ids[sequence.scored]) == row.completion[0].content
        assert int(ids[-1]) == processor.tokenizer.eos_token_id
    tokenizer = processor.tokenizer
    ids = tokenizer("red blue", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    tail = tokenizer(" ", add_special_tokens=False)["input_ids"]
    assert formatting(tokenizer, ids + tail).tolist() == [False] * (len(ids) - 1) + [True] * (1 + len(tail))
    assert formatting(tokenizer, ids[:-1]).tolist() == [False] * (len(ids) - 1)


@pytest.mark.parametrize("path", ["tree", "plain"])
def test_the_masked_loss_by_hand(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reference equal to the policy the preference is log 2, and the likelihood that of the words alone."""
    if path == "plain":
        monkeypatch.setattr("align.tree.vision.why_plain", lambda *_: "for the test")
    base = str(tiny("mllama", tmp_path))
    rows = pairs(images(Store(tmp_path / "store")), 4)
    stage = DPO(
        input=keep(Store(tmp_path / "store"), list(rows), Pair), model=base, batch_size=4, max_steps=1,
        mask_formatting=True,
    )  # fmt: skip
    with begin(Store(tmp_path / "store"), "dpo", "a") as out:
        metrics = stage.run(out)
    model, processor = load(base)
    with torch.no_grad():
        words = torch.cat([plain_logps(model, processor, row, row.chosen)[:-1] for row in rows])
    assert metrics["curve"][0]["loss"] == pytest.approx(math.log(2) - 0.2 * words.mean().item(), rel=1e-5)


def test_a_moving_reference_by_hand() -> None:
    model = torch.nn.Module()
    model.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 1, False), "ref": torch.nn.Linear(1, 1, False)})
    policy, reference = (model.lora_A[name].weight for name in ("default", "ref"))
    moving = Moving(ema=0.75, every=2)

    class State:
        global_step = 0

    reference.data.fill_(0.0)
    for State.global_step, value in enumerate([4.0, 8.0, 100.0, 2.0], start=1):
        policy.data.fill_(value)
        moving.on_step_end(None, State, None, model=model)
    assert reference.item() == 0.75 * (0.25 * 8.0) + 0.25 * 2.0  # after steps 2 and 4


def test_a_moving_reference_moves_the_training(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stage = DPO(
        input=keep(store, list(pairs(images(store), 8)), Pair), model=str(tiny("llava", tmp_path)), batch_size=4,
        epochs=4, learning_rate=3e-3,
    )  # fmt: skip
    curves = []
    for key, reference in (("a", None), ("b", {"ema": 0.1, "every": 2})):
        with begin(store, "dpo", key) as out:
            metrics = DPO.model_validate({**stage.model_dump(), "reference": reference}).run(out)
        curves.append([point["loss"] for point in metrics["curve"]])
    assert "never kept: it moves by EMA 0.1 every 2 steps" in metrics["training"]["reference"]
    assert curves[0][:2] == pytest.approx(curves[1][:2], rel=1e-5)
    assert abs(curves[0][-1] - curves[1][-1]) > 1e-3


def test_a_row_that_is_too_long_gets_a_smaller_image_where_that_is_wanted(tmp_path: Path) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    model, processor = load(str(tiny("idefics3", tmp_path)))
    processor.image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True, do_resize=False
    )
    encoder = Encoder(processor, family_of(model.config))
    paths = images(Store(tmp_path / "store"))
    rows = [qa(0, paths[0], "red ?", "blue"), qa(1, paths[4], "red ?", "blue"), qa(2, paths[0], "red", "blue " * 300)]
    whole, aside = encode(rows[:2], parts, encoder, 2000, lambda *_: None)
    assert not aside
    short, long = (len(example.sequences[0]) for example in whole)
    assert short < long - 5
    kept: dict[str, Any] = {}
    limit = (short + long) // 2
    found, aside = encode(rows, parts, encoder, limit, kept.setdefault)
    assert [e.id for e in found] == ["r0"]
    assert [d.reason for d in aside] == ["too long", "too long"]
    found, aside = encode(rows, parts, encoder, limit, kept.setdefault, Pictures(tmp_path / "made", shrink=True))
    assert [(e.id, e.resized) for e in found] == [("r0", False), ("r1", True)]
    assert len(found[1].sequences[0]) <= limit
    assert found[1].image in kept
    assert open_image(found[1].image).width < open_image(paths[4]).width
    (left,) = aside
    assert left.reason == "too long"
    assert "with its image at 0.125 of its sides" in left.detail


def test_a_stopped_training_continues_with_the_reference_that_had_moved(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stage = DPO(
        input=keep(store, list(pairs(images(store), 8)), Pair), model=str(tiny("llava", tmp_path)), batch_size=4,
        max_steps=6, learning_rate=3e-3, save_steps=1, reference={"ema": 0.5, "every": 2},
    )  # fmt: skip
    inner = Moving.on_step_end

    def stopped(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        inner(self, args, state, control, **more)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with begin(store, "dpo", "a") as whole:
        stage.run(whole)
    with begin(store, "dpo", "b") as out:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Moving, "on_step_end", stopped)
            with pytest.raises(KeyboardInterrupt):
                stage.run(out)
        stage.run(out)
    name = "model/adapter_model.safetensors"
    assert (whole.path / name).read_bytes() == (out.path / name).read_bytes()
