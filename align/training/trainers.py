"""TRL's SFT and DPO trainers with what they lack for this work, in one place. Imported by a running stage alone.

In: a PEFT model, encoded examples, TRL's arguments. Out: the trained adapter in the model, the log history, and
checkpoints from which a killed training continues to the same weights.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from align.adapter import name_base
from align.artifact import write_json
from align.errors import UserError
from align.progress import progress

ADAPTER = "default"
"""PEFT's name of the adapter that trains; TRL's DPO calls its frozen copy "ref"."""
_COMPLETE = "complete.json"


def save_adapter(model: PeftModel, folder: Path) -> None:
    """The adapter that trains: its config and its weights. PEFT would ask the hub whether the base's embedding has
    grown, and adds a model card of blanks."""
    model.save_pretrained(str(folder), selected_adapters=[ADAPTER], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    name_base(folder, model.get_base_model().name_or_path)


class Mended(Trainer):  # type: ignore[misc]
    """What every trainer here needs."""

    def _send_telemetry(self) -> None:
        """Nothing is sent: TRL reports every training to its makers (trl 1.16, base_trainer.py)."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL writes a card into every checkpoint."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The trained adapter alone. transformers adds the processor, and its arguments as a pickle; PEFT adds DPO's
        frozen copy in a sub-folder, and where there is one, transformers (5.19) restores nothing else."""
        save_adapter(self.model, Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint is whole once its last file is there; transformers writes straight into its folder, so one cut
        short by a kill looks whole."""
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        write_json(folder / _COMPLETE, {"step": self.state.global_step})


class MendedSFT(Mended, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT over encoded prompt-completion rows."""

    def references(self, examples: int) -> None:
        """None: there is no reference."""


class MendedDPO(Mended, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO over encoded pairs; the reference is the model as it comes in, frozen."""

    def references(self, examples: int) -> torch.Tensor:
        """The reference's log-probabilities [examples, 2] (chosen, rejected), float32 on the CPU; from here on the
        loss takes them from the batch. TRL refuses to compute them beforehand for images (trl 1.16) and runs the
        reference again in every epoch. Always the same batches: a resumed training sees the same numbers."""
        self.model.eval()
        size = self.args.per_device_train_batch_size
        found = []
        with progress(examples, "reference") as bar:
            for start in range(0, examples, size):
                features = [{"index": i} for i in range(start, min(start + size, examples))]
                batch = self._prepare_inputs(self.data_collator(features))
                found.append(torch.stack(self.compute_ref_log_probs(self.model, batch), dim=1).float().cpu())
                bar.update(len(features))
        self.precompute_ref_logps = True
        return torch.cat(found)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Moves the progress bar, logs the last step, and stops a training whose loss is no number any more."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.update(1)
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                rate = f"{args.learning_rate:g}"
                raise UserError(f"{name} is {logs[name]} at step {state.global_step}: lower learning_rate, now {rate}")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint below `folder`, None where there is none; those cut short by a kill are removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            whole[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


__all__ = [
    "ADAPTER",
    "DPOConfig",
    "Mended",
    "MendedDPO",
    "MendedSFT",
    "SFTConfig",
    "Watch",
    "last_checkpoint",
    "save_adapter",
]
