"""Trainers in two processes under `accelerate launch` (gloo) against one with the whole batch, where the second of them
gets text alone; `tests/pipelines/test_two_ranks.py` has the stages, which set such rows aside."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
CASES = [("mllama", "dpo"), ("mllama", "sft"), ("llava", "sft")]
SCRIPT = """
import gc, json, sys
from dataclasses import replace
from pathlib import Path
from torch import distributed
from align.training.encode import Encoded
from tests.align.tree.test_trl import Setting, run
found = {}
for family, kind in json.loads(sys.argv[3]):
    setting = Setting(Path(sys.argv[1]), family, kind == "dpo")
    tokenizer = setting.processor.tokenizer
    for n, example in enumerate(setting.examples):
        if n >= 3:
            text = "<|begin|><|user|>" + "How many? " * n + "<|assistant|>three"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            sequence = Encoded({name: ids[name][0] for name in ("input_ids", "attention_mask")}, 4)
            setting.examples[n] = replace(example, image="", sequences=(sequence,) * len(example.sequences))
    size = int(sys.argv[2])
    extra = {"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if size < 6 else {}
    trainer = setting.tree(per_device_train_batch_size=size, max_steps=3, **extra)
    log, _, weights = run(trainer)
    found[f"{family} {kind}"] = {
        "processes": trainer.accelerator.num_processes,
        "log": [[entry["loss"], entry["grad_norm"]] for entry in log],
        "weights": {name: weight.flatten().tolist() for name, weight in weights.items()},
    }
if trainer.accelerator.is_main_process:
    Path(sys.argv[4]).write_text(json.dumps(found))
if distributed.is_initialized():  # as the stages do: else gloo's threads may be ended with the interpreter, by an abort
    del trainer
    gc.collect()
    distributed.destroy_process_group()
"""


def _train(root: Path, processes: int, out: Path) -> dict:
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # without a GPU this is torch's launcher with gloo; `--cpu` would want MPI
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}", "--num_machines=1"]
    launcher += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={port}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script)]
    given = [str(root), str(6 // processes), json.dumps(CASES), str(out)]
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [*command, *given], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path_factory, tmp_path):
    root = tmp_path_factory.getbasetemp() / "tiny"
    root.mkdir(exist_ok=True)
    alone, both = (_train(root, processes, tmp_path / f"{processes}.json") for processes in (1, 2))
    assert alone.keys() == both.keys() == {f"{family} {kind}" for family, kind in CASES}
    for case, one in alone.items():
        two = both[case]
        assert (one["processes"], two["processes"]) == (1, 2)
        for (loss, norm), (other_loss, other_norm) in zip(one["log"], two["log"], strict=True):
            assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-5), case
            assert other_norm == pytest.approx(norm, rel=1e-4), case
        for name, weight in one["weights"].items():
            assert two["weights"][name] == pytest.approx(weight, abs=1e-5), (case, name)
