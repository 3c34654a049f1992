"""Direct preference optimization of the vision adapter (arXiv 2305.18290).

In: pairs of a chosen and a rejected answer, and a model. Out: a PEFT adapter. The reference is the model as it comes
in, its adapter included, frozen. The default loss is the published recipe's: DPO with beta 0.1 and the negative
log-likelihood of the chosen answer with weight 0.2 (Llama 3, arXiv 2407.21783, section 4.1.4).
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.artifact import Out, rows
from align.errors import UserError
from align.records import Message, Pair
from align.stage import Metrics, Ref
from align.training.options import Training

LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class DPO(Training):
    """Train on preferences with TRL's DPOTrainer."""

    NAME: ClassVar[str] = "dpo"

    input: Annotated[str, Ref(Pair)]
    learning_rate: float = Field(1e-5, gt=0)
    beta: float = Field(0.1, gt=0)
    loss_type: list[LossType] = Field(["sigmoid", "sft"], min_length=1)  # "sft" is the chosen answer's likelihood
    loss_weights: list[float] = [1.0, 0.2]  # one a loss type
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    def check(self) -> None:
        super().check()
        if len(self.loss_weights) != len(self.loss_type):
            raise UserError(
                f"loss_weights: {len(self.loss_weights)} weights for {len(self.loss_type)} of loss_type; give one each"
            )
        if "exo_pair" in self.loss_type and self.label_smoothing == 0:
            raise UserError("label_smoothing: exo_pair needs a value above 0, such as 0.001")

    def run(self, out: Out) -> Metrics:
        from functools import partial

        from align.training.run import Task, train
        from align.training.trainers import DPOConfig, MendedDPO

        arguments = partial(
            DPOConfig,
            beta=self.beta,
            loss_type=list(self.loss_type),
            loss_weights=self.loss_weights,
            label_smoothing=self.label_smoothing,
        )
        return train(self, list(rows(self.input, Pair)), Task("dpo", _parts, MendedDPO, arguments), out)


def _parts(row: Pair) -> tuple[list[Message], list[list[Message]]]:
    return row.prompt, [row.chosen, row.rejected]
