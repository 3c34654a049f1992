import sys
from collections.abc import Callable
from pathlib import Path as FilePath

import pytest
import torch

sys.path.insert(0, str(FilePath(__file__).parent))
from plain import Case, adapted, gradients, picture, plain_log_probs

from align.adapter import Preset
from align.models import load
from align.tree import forward
from align.tree.forward import score
from tests import tiny

TOLERANCE = 1e-5
BUILDERS: dict[str, tuple[Callable[[FilePath], FilePath], str]] = {
    "mllama": (tiny.tiny_mllama, "<|image|>"),
    "llava": (tiny.tiny_llava, "<image>"),
    "idefics3": (tiny.tiny_idefics3, "<image>"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family: str) -> FilePath:
        if family not in made:
            made[family] = BUILDERS[family][0](tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def rows(image: str) -> list[tuple[tuple[str, ...], str, str]]:
    """Two images with questions and answers that share beginnings, in mixed order; one whole row twice."""
    begin, end = tiny.BOS, tiny.EOS

    def prompt(question: str, system: str = "") -> str:
        return f"{begin}{system}<|user|>{image}{question}{end}<|assistant|>"

    return [
        (("wide",), prompt("How many?"), f"three{end}"),
        (("tall",), prompt("Which colour?"), f"red{end}"),
        (("wide",), prompt("How many?"), f"thirty or more{end}"),
        (("wide",), prompt("How much?"), f"a lot{end}"),
        (("tall",), prompt("Which colour?"), f"reddish, I think{end}"),
        (("wide",), prompt("How many?"), f"three{end}"),
        (("wide",), prompt("How many?", f"<|system|>Be brief.{end}"), f"3{end}"),
    ]


def case(folders, family: str, preset: Preset | None = None) -> Case:
    model, processor = load(str(folders(family)), "float32", "cpu")
    images = {"wide": picture(1, (60, 28)), "tall": picture(2, (24, 24))}
    return Case(adapted(model, preset or Preset(rank=4)), processor, images, rows(BUILDERS[family][1]))


def compare(case: Case, tolerance: float = TOLERANCE) -> None:
    """Log-probabilities, last hidden states and every adapter gradient of the tree equal those of the plain path."""
    order = case.order()
    draw = torch.Generator().manual_seed(3)
    weights = [torch.rand(len(case.labels(row)) - 1, generator=draw) for row in order]
    plain = [plain_log_probs(case, row) for row in order]
    sum((w * lp).sum() for w, (lp, _) in zip(weights, plain, strict=True)).backward()
    expected = gradients(case.model)
    trees = case.trees()
    assert sum(len(tree.layout) for tree in trees) < 0.8 * sum(len(case.labels(row)) for row in order)
    scores = score(case.model, trees, case.vision())
    for p, (log_probs, hidden) in enumerate(plain):
        length = len(log_probs)
        torch.testing.assert_close(scores.log_probs[p, :length], log_probs, atol=tolerance, rtol=0)
        assert not scores.log_probs[p, length:].any()
        torch.testing.assert_close(scores.last_hidden[p], hidden, atol=tolerance, rtol=tolerance)
        assert scores.label_mask[p, :length].equal(case.labels(order[p])[1:] >= 0)
    sum((w * scores.log_probs[p, : len(w)]).sum() for p, w in enumerate(weights)).backward()
    found = gradients(case.model)
    assert found.keys() == expected.keys()
    assert found
    for name, gradient in expected.items():
        largest = gradient.abs().max().item()
        assert largest > 1e-3, name
        difference = (found[name] - gradient).abs().max().item()
        assert difference <= tolerance * largest, f"{name}: {difference} of {largest}"


@pytest.mark.parametrize("family", BUILDERS)
def test_the_tree_equals_the_plain_path(folders, family):
    compare(case(folders, family))


@pytest.mark.parametrize("family", BUILDERS)
def test_with_the_tower_and_the_whole_connector_trained(folders, family):
    compare(case(folders, family, Preset(connector="full", tower="lora", rank=4)))


@pytest.mark.parametrize("family", BUILDERS)
def test_with_the_tower_trained_too(folders, family):
    trained = case(folders, family, Preset(tower="lora", rank=4))
    assert not trained.vision().frozen
    compare(trained)


@pytest.mark.parametrize("family", BUILDERS)
def test_eager_attention_takes_the_mask_too(folders, family):
    eager = case(folders, family)
    eager.model.get_base_model().set_attn_implementation("eager")
    compare(eager)


@pytest.mark.parametrize("family", BUILDERS)
def test_text_alone_and_several_images_beside_single_ones(folders, family):
    mixed = case(folders, family)
    image = BUILDERS[family][1]
    question = f"{tiny.BOS}<|user|>{{}}What differs?{tiny.EOS}<|assistant|>"
    for answer in ("much", "nothing"):
        mixed.rows.append((("wide", "tall"), question.format(image + "and" + image), answer))
        mixed.rows.append(((), question.format(""), answer))
    compare(mixed)


def test_text_alone_teaches_cross_attention_nothing(folders):
    text = case(folders, "mllama")
    text.rows = [((), f"{tiny.BOS}Two and two is", answer) for answer in ("four", "five")]
    scores = score(text.model, text.trees(), text.vision())
    for p in range(2):
        expected, _ = plain_log_probs(text, p)
        torch.testing.assert_close(scores.log_probs[p, : len(expected)], expected, atol=TOLERANCE, rtol=0)
    assert not scores.log_probs.requires_grad


@pytest.mark.parametrize("family", ["mllama", "llava"])
def test_a_head_in_pieces_gives_the_same(folders, family, monkeypatch):
    monkeypatch.setattr(forward, "HEAD_CHUNK", 7)
    compare(case(folders, family))


def test_the_numbers_beside_the_log_probabilities(folders):
    told = case(folders, "llava")
    scores = score(told.model, told.trees(), told.vision())
    for p, row in enumerate(told.order()):
        logits = told.model(**told.inputs(row)).logits[0, :-1]
        targets = told.labels(row)[1:]
        on = targets >= 0
        every = torch.distributions.Categorical(logits=logits[on])
        at = torch.cat([on, torch.zeros(scores.log_probs.shape[1] - len(on), dtype=torch.bool)])
        torch.testing.assert_close(scores.entropy[p, at], every.entropy(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(scores.mean_logits[p, at], logits[on].mean(-1), atol=1e-4, rtol=1e-4)
        assert scores.is_top1[p, at].equal(logits[on].argmax(-1) == targets[on])
        squares = every.probs.square().sum(-1).log()
        torch.testing.assert_close(scores.log_sum_sq_probs[p, at], squares, atol=1e-4, rtol=1e-4)


def test_mllama_reads_the_tiles_that_only_fill_up(folders):
    """Why features keep all tiles: what stands before <|image|> has its row masked whole, so it reads every tile."""
    filled = case(folders, "mllama")
    inputs = filled.inputs(1)
    assert inputs["aspect_ratio_mask"].tolist() == [[[1, 0]]]
    backbone = filled.model.get_base_model().model
    states = backbone.multi_modal_projector(filled.vision().features(("tall",))["hidden"])
    given = {n: inputs[n] for n in ("input_ids", "attention_mask", "cross_attention_mask")}

    def answer(tiles: torch.Tensor) -> torch.Tensor:
        return backbone(**given, cross_attention_states=tiles).last_hidden_state[0, -1]

    other = states.clone()
    other[:, 1] += 1
    assert (answer(other) - answer(states)).abs().max() > 1e-3
