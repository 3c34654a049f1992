"""An adapter names its base so that a folder of runs can be moved or copied."""

import shutil
from pathlib import Path

import pytest
import torch

from align.adapter import Preset, attach, describe, trainable_report
from align.errors import UserError
from align.models import base_of, check_model, load, read_json
from align.training.trainers import save_adapter
from tests.tiny import tiny_mllama


def saved(base: Path, folder: Path) -> Path:
    """An adapter on `base`, saved where a running stage saves it, and made visible."""
    model, _ = load(str(base))
    adapted = attach(model, Preset(rank=2, tower="lora"), seed=1) if not hasattr(model, "peft_config") else model
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    partial = folder.with_name(f"{folder.name}.partial") / "model"
    partial.mkdir(parents=True)
    save_adapter(adapted, partial)
    partial.parent.rename(folder)
    return folder / "model"


def test_runs_can_be_moved_and_copied(tmp_path: Path) -> None:
    store = tmp_path / "here" / "runs" / "store" / "artifacts"
    base = tiny_mllama(store / "build-1" / "student")
    sft = saved(base, store / "sft-1")
    dpo = saved(sft, store / "dpo-1")  # what continues from an adapter names the same base
    assert read_json(sft / "adapter_config.json")["base_model_name_or_path"] == "../../build-1/student"
    before = {n: p.clone() for n, p in load(str(sft))[0].named_parameters()}
    shutil.copytree(tmp_path / "here" / "runs", tmp_path / "elsewhere" / "deep" / "down" / "runs")
    shutil.rmtree(tmp_path / "here")
    for adapter in (sft, dpo):
        moved = tmp_path / "elsewhere" / "deep" / "down" / adapter.relative_to(tmp_path / "here")
        check_model(str(moved))
        assert Path(base_of(moved)) == moved.parent.parent / "build-1" / "student"
        model, _ = load(str(moved))
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_base_outside_of_the_runs_keeps_its_name(tmp_path: Path) -> None:
    base = tiny_mllama(tmp_path / "models" / "student")
    adapter = saved(base, tmp_path / "work" / "runs" / "store" / "artifacts" / "sft-1")
    assert base_of(adapter) == str(base)
    beside = saved(
        tiny_mllama(tmp_path / "work" / "mine"), tmp_path / "work" / "runs" / "store" / "artifacts" / "sft-2"
    )
    (tmp_path / "work").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / beside.relative_to(tmp_path / "work")
    assert base_of(moved) == str(tmp_path / "moved" / "mine")


def test_an_adapter_is_described_with_its_base(tmp_path: Path) -> None:
    store = tmp_path / "runs" / "store" / "artifacts"
    adapter = saved(tiny_mllama(store / "build-1" / "student"), store / "sft-1")
    found = describe(str(adapter))
    model, _ = load(str(adapter))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert found == trainable_report(model)
    assert found["parts"]["tower"]["trainable"] > 0
    assert found["parts"]["language"]["trainable"] == 0
    with pytest.raises(UserError, match="leave the keys out"):
        describe(str(adapter), Preset(rank=3))
