import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from align.adapter import Preset
from align.families import family_of
from align.models import load
from align.records import QA, Message, Pair
from align.training.collate import Collator, Pixels
from align.training.encode import Encoder, encode
from align.training.trainers import MendedDPO, MendedSFT
from align.tree.trl import TreeCollator, over_trees, tree_collator
from align.tree.vision import Vision
from tests.plain import BUILDERS, adapted, picture

QUESTIONS = ("How many?", "How many are red?", "Which colour?")
ANSWERS = ("three", "thirty or so", "red, I think", "it is a house with a roof")


TreeSFT, TreeDPO = over_trees(MendedSFT), over_trees(MendedDPO)


def _images(folder: Path) -> list[str]:
    for n, size in enumerate(((60, 28), (24, 24))):
        path = folder / f"{n}.png"
        if not path.exists():
            picture(n, size).save(path)
    return [str(folder / f"{n}.png") for n in range(2)]


def _rows(folder: Path, pairs: bool) -> list[Any]:
    made: list[Any] = []
    for q, question in enumerate(QUESTIONS):
        for image in _images(folder):
            prompt = [Message(role="user", content=question)]
            answers = [[Message(role="assistant", content=ANSWERS[(q + k) % 4])] for k in range(2)]
            common = {"id": f"{image} {q}", "images": [image], "prompt": prompt, "image_id": image, "kind": "read"}
            if pairs:
                extra = {"chosen": answers[0], "rejected": answers[1], "chosen_score": 1.0, "rejected_score": 0.0}
                made.append(Pair(**common, **extra, question_id=question))
            else:
                made.append(QA(**common, completion=answers[0], split="train"))
    return made


class Setting:
    """One model with its rows, for trainers that all start from the same weights."""

    def __init__(self, root: Path, family: str, pairs: bool, preset: Preset | None = None) -> None:
        if not (root / family).exists():
            BUILDERS[family][0](root / family)
        model, self.processor = load(str(root / family), "float32", "cpu")
        self._model = adapted(model, preset or Preset(rank=4))
        self.pairs = pairs
        self.rows = _rows(root, pairs)
        self.encoder = Encoder(self.processor, family_of(model.config))
        answers = (lambda r: (r.prompt, [r.chosen, r.rejected])) if pairs else (lambda r: (r.prompt, [r.completion]))
        self.examples, aside = encode(self.rows, answers, self.encoder, 400, lambda *_: None)
        assert not aside
        self.root = root

    def model(self) -> Any:
        return copy.deepcopy(self._model)

    def arguments(self, **extra: Any) -> Any:
        common = {
            "output_dir": str(self.root / "out"), "per_device_train_batch_size": 6, "max_steps": 1, "use_cpu": True,
            "report_to": [], "save_strategy": "no", "logging_steps": 1, "max_length": None, "learning_rate": 1e-3,
            "gradient_checkpointing": False, "dataloader_pin_memory": False, "remove_unused_columns": False,
            "train_sampling_strategy": "sequential", "disable_tqdm": True, "bf16": False, "max_grad_norm": 1e9,
            "lr_scheduler_type": "constant",
        }  # fmt: skip
        return (DPOConfig if self.pairs else SFTConfig)(**{**common, **extra})

    def plain(self, **extra: Any) -> Any:
        """TRL, with rows encoded so that Mllama works."""
        pixels = Pixels(self.encoder.pixels, 1 << 30)
        collator = Collator(self.examples, pixels, self.processor.tokenizer.pad_token_id)
        return self._trainer(MendedDPO if self.pairs else MendedSFT, self.model(), collator, **extra)

    def tree(self, **extra: Any) -> Any:
        model = self.model()
        prompts = {example.image: example.prompt for example in self.examples}
        vision = Vision(model, lambda images: self.encoder.pixels(prompts[images[0]], images[0]))
        collator = TreeCollator(self.examples, vision, self.processor.tokenizer.pad_token_id)
        return self._trainer(TreeDPO if self.pairs else TreeSFT, model, collator, **extra)

    def kept(self, folder: Path, memory: int, **extra: Any) -> tuple[Any, str]:
        """Over trees, with what earlier runs left in `folder`."""
        model = self.model()
        collator, line = tree_collator(
            model, self.processor, Pixels(self.encoder.pixels, memory), self.examples, folder, memory
        )
        return self._trainer(TreeDPO if self.pairs else TreeSFT, model, collator, **extra), line

    def _trainer(self, kind: Any, model: Any, collator: Any, **extra: Any) -> Any:
        columns = {"index": list(range(len(self.examples))), "images": [[e.image] for e in self.examples]}
        return kind(
            model=model, args=self.arguments(**extra), train_dataset=Dataset.from_dict(columns),
            data_collator=collator, processing_class=self.processor,
        )  # fmt: skip

    def bare(self, **extra: Any) -> Any:
        """TRL as it comes: its own trainer, its own collator, conversational rows with images."""
        from datasets import Image, List

        names = ("prompt", "chosen", "rejected") if self.pairs else ("prompt", "completion")
        rows = [{n: [m.model_dump() for m in getattr(r, n)] for n in names} | {"images": r.images} for r in self.rows]
        data = Dataset.from_list(rows).cast_column("images", List(Image()))
        kind = DPOTrainer if self.pairs else SFTTrainer
        return kind(
            model=self.model(), args=self.arguments(**extra), train_dataset=data, processing_class=self.processor
        )


class Catch(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step == 0:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def run(trainer: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The log by step, the first gradients, the adapter at the end."""
    catch = Catch()
    trainer.add_callback(catch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return log, catch.gradients, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.getbasetemp() / "tiny"
    root.mkdir(exist_ok=True)
    return root


LOGGED = (
    "grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "rewards/chosen", "rewards/rejected",
    "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected",
)  # fmt: skip


def same_first_step(plain: Any, tree: Any, tolerance: float = 1e-5) -> None:
    (expected, *_), gradients, _ = run(plain)
    (found, *_), same, _ = run(tree)
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance, abs=tolerance)
    for name in LOGGED:
        if name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4), name
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = gradient.abs().max()
        assert largest > 0
        assert (same[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("pairs", [False, True], ids=["sft", "dpo"])
def test_the_first_step_equals_trl(root, family, pairs):
    setting = Setting(root, family, pairs)
    same_first_step(setting.plain(), setting.tree())


@pytest.mark.parametrize("family", ["llava", "idefics3"])
@pytest.mark.parametrize("pairs", [False, True], ids=["sft", "dpo"])
def test_the_first_step_equals_trl_as_it_comes(root, family, pairs):
    setting = Setting(root, family, pairs)
    same_first_step(setting.bare(), setting.tree())


@pytest.mark.parametrize(
    "extra",
    [
        *({"loss_type": [name]} for name in (
            "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down",
            "discopop", "sft", "sigmoid_norm",
        )),
        {"loss_type": ["exo_pair"], "label_smoothing": 0.01},
        {"loss_type": ["robust"], "label_smoothing": 0.1},
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"f_divergence_type": "js_divergence"},
    ],
    ids=lambda extra: "-".join(str(v) for v in extra.values()),
)  # fmt: skip
def test_all_of_trls_preference_losses(root, extra):
    setting = Setting(root, "llava", pairs=True)
    same_first_step(setting.plain(**extra), setting.tree(**extra), tolerance=3e-5)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("pairs", [False, True], ids=["sft", "dpo"])
def test_twenty_steps_go_the_same_way(root, family, pairs):
    setting = Setting(root, family, pairs)
    more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 20}
    arguments = setting.arguments

    def longer(**extra: Any) -> Any:
        made = arguments(**extra)
        for name, value in more.items():
            setattr(made, name, value)
        return made

    setting.arguments = longer
    expected, _, weights = run(setting.plain())
    found, _, same = run(setting.tree())
    assert len(found) == len(expected) == 20
    for a, b in zip(found, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4, abs=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_kept_features_and_references_change_nothing(root, tmp_path, family, memory):
    setting = Setting(root, family, pairs=True)
    same_first_step(setting.plain(), setting.kept(tmp_path, memory)[0])
    again, line = setting.kept(tmp_path, memory)
    assert line.startswith("vision features")
    again.data_collator.references = again.references(6)
    same_first_step(setting.plain(), again)


def test_a_tower_that_trains_is_never_kept(root, tmp_path):
    setting = Setting(root, "idefics3", pairs=False, preset=Preset(rank=4, tower="lora"))
    trainer, line = setting.kept(tmp_path, 1 << 30)
    assert line == "vision features computed each time: the tower trains"
    same_first_step(setting.plain(), trainer)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_rows_of_an_image_meet_in_a_step_unless_told_otherwise(root):
    setting = Setting(root, "llava", pairs=False)
    images = [example.image for example in setting.examples]
    for size, together in ((6, 1), (16, 2), (24, 3), (80, 3)):  # a step mixes eight images, where it has the rows
        random = {"train_sampling_strategy": "random", "per_device_train_batch_size": size}
        grouped = list(setting.tree(**random)._get_train_sampler())
        assert sorted(grouped) == list(range(6))
        plain = list(setting.plain(**random)._get_train_sampler())
        assert plain == grouped
        runs = [len(list(run)) for _, run in itertools.groupby(images[row] for row in grouped)]
        assert max(runs) >= together
        if together == 3:
            assert runs == [3, 3]
    assert list(setting.tree()._get_train_sampler()) == list(range(6))
