"""The demo's two stages: draw the charts, build the models.

In: seeds and sizes alone. Out: a folder of images with their tables, and two model folders. Everything after
them in the demo's pipeline is the ordinary stages, which do not know that it is a demo.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from align.progress import progress
from align.stage import Metrics, PortType, Stage

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
    OUTPUTS: ClassVar[dict[str, PortType]] = {"teacher": "model", "student": "model"}

    effort: float = Field(1.0, gt=0)  # share of the default steps: a tenth shows the way, the whole makes it good

    def run(self, out: "Out") -> Metrics:
        from pipelines.demo.build import MODELS, build_all

        folders = {name: out.folder(name) for name in MODELS}
        out.discard(*(f"{name}/checkpoints" for name in MODELS))
        with progress(1000, "building the models, permille") as bar:
            return dict(build_all(folders, self.seed, self.effort, lambda done: _to(bar, int(1000 * done))))


def _to(bar: "tqdm[Any]", done: int) -> None:
    bar.update(done - bar.n)
