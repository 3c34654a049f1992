"""The demo's own stages: draw the charts, build the models.

In: seeds and sizes, and the prompts that the teacher is to be sent. Out: a folder of images with their tables, and
model folders. Everything after them in the demo's pipeline is the ordinary stages, which do not know that it is a demo.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from align.config import shipped
from align.errors import UserError
from align.models import read_json
from align.progress import progress
from align.stage import FolderRef, Metrics, ModelRef, PortType, Stage
from pipelines.demo.prompts import FOLDER, Prompts

if TYPE_CHECKING:
    from tqdm import tqdm

    from align.artifact import Out


class DrawCharts(Stage):
    """Draws bar charts: `images` and `tables` with `train` and `eval` below, and questions on the held-out ones."""

    NAME: ClassVar[str] = "draw-charts"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"images": "folder", "tables": "folder", "questions.jsonl": "file"}

    # There are some 30,000 charts for the one and 15,000 for the other.
    train: int = Field(150, ge=1, le=10_000)
    evaluation: int = Field(60, ge=1, le=5_000)

    def run(self, out: "Out") -> Metrics:
        from pipelines.demo.charts import draw_charts

        with progress(self.train + self.evaluation, "charts") as bar:
            counts = draw_charts(out.path, self.train, self.evaluation, self.seed, lambda done, _: _to(bar, done))
        out.rows_out["images"] = counts["train"] + counts["evaluation"]
        return dict(counts)


class BuildModels(Stage):
    """Trains the teacher, which asks, answers and judges, and the student's base, which never saw a question."""

    NAME: ClassVar[str] = "build-models"
    ON_DEMAND: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    OUTPUTS: ClassVar[dict[str, PortType]] = {"teacher": "model", "student": "model"}

    prompts: FolderRef = FOLDER  # what the teacher trains on, and is sent later
    effort: float = Field(1.0, gt=0)  # share of the default steps: a tenth shows the way, the whole makes it good

    def check(self) -> None:
        if shipped(self.prompts).is_dir():  # else a stage above has yet to make it
            try:
                Prompts(self.prompts).check()
            except UserError as error:
                raise UserError(f"prompts: {error}") from None

    def run(self, out: "Out") -> Metrics:
        from pipelines.demo.build import MODELS

        return _build(out, {name: name for name in MODELS}, self.seed, self.effort, self.prompts)


class BuildLanguageReward(Stage):
    """Trains a reward model for text: right answers from wrong ones, where the chart stands in the text."""

    NAME: ClassVar[str] = "build-language-reward"
    ON_DEMAND: ClassVar[bool] = True
    OUTPUTS: ClassVar[dict[str, PortType]] = {"model": "model"}

    student: ModelRef  # an Mllama, whose language model it begins as
    effort: float = Field(1.0, gt=0)

    def check(self) -> None:
        folder = Path(self.student)
        if folder.is_dir() and read_json(folder / "config.json").get("model_type") != "mllama":
            raise UserError(f"student: {self.student} is no whole Mllama model")

    def run(self, out: "Out") -> Metrics:
        return _build(out, {"language-reward": "model"}, self.seed, self.effort, self.student)


def _build(out: "Out", ports: dict[str, str], seed: int, effort: float, source: str) -> Metrics:
    """Models by name into their ports."""
    from pipelines.demo.build import build_all

    folders = {name: out.folder(port) for name, port in ports.items()}
    out.discard(*(f"{port}/checkpoints" for port in ports.values()))
    with progress(1000, "building the models, permille") as bar:

        def moved(done: float) -> None:
            _to(bar, int(1000 * done))

        return dict(build_all(folders, seed, effort, moved, source))


def _to(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)
