"""transformers' Trainer with the reward model's loss. Imported by a running stage alone.

In: a PEFT model, encoded pairs (chosen answers first in every batch), arguments. Out: the trained adapter in the model
and the head beside it; checkpoints hold both.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import TrainingArguments

from align.training.collate import Collator
from align.training.trainers import ADAPTER, Mended, save_adapter
from reward.model import RewardModel, fresh_head, load_head, save_head


def arguments(**given: Any) -> TrainingArguments:
    """The options that SFT and DPO have too, without TRL's own."""
    del given["max_length"]
    return TrainingArguments(**given)


class WithGaps:
    """A collator whose batches say by how much the scores of their pairs differ."""

    def __init__(self, inner: Collator, gaps: Mapping[str, float]) -> None:
        self.inner = inner
        self.gaps = gaps

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.inner(features)
        del batch["completion_mask"]
        batch["gap"] = torch.tensor([self.gaps[self.inner.examples[f["index"]].id] for f in features])
        return batch


class RewardTrainer(Mended):
    """Bradley-Terry over encoded pairs; `processing_class` is the processor."""

    def __init__(self, model: Any, args: TrainingArguments, data_collator: Collator, **given: Any) -> None:
        self.margin: float = given.pop("margin")
        self.penalty: float = given.pop("penalty")
        collator = WithGaps(data_collator, given.pop("gaps"))
        self.reward_model = RewardModel(model, fresh_head(model, args.seed))
        super().__init__(model=self.reward_model, args=args, data_collator=collator, **given)

    def references(self, examples: int) -> None:
        """None: there is no reference."""

    def compute_loss(
        self, model: Callable[..., Tensor], inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        gap = inputs.pop("gap")
        chosen, rejected = model(inputs).chunk(2)
        loss = -logsigmoid(chosen - rejected - self.margin * gap).mean()
        loss = loss + self.penalty * (chosen.square() + rejected.square()).mean() / 2
        return (loss, {}) if return_outputs else loss

    def save_head(self, folder: Path) -> None:
        """Write the head into a model folder."""
        save_head(self.reward_model.head, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Adapter and head."""
        folder = Path(output_dir or self.args.output_dir)
        save_adapter(self.reward_model.vlm, folder)
        self.save_head(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Adapter and head, every tensor of them."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        folder, vlm, head = Path(resume_from_checkpoint), self.reward_model.vlm, self.reward_model.head
        stored = load_file(folder / "adapter_model.safetensors")
        if set(stored) != set(get_peft_model_state_dict(vlm, adapter_name=ADAPTER, save_embedding_layers=False)):
            raise RuntimeError(f"{folder}: not a checkpoint of this model")
        set_peft_model_state_dict(vlm, stored, adapter_name=ADAPTER)
        head.load_state_dict(load_head(folder, head.in_features).state_dict())
