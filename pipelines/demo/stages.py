"""The demo's three stages: draw the charts, build the teacher, build the student.

In: seeds and sizes alone. Out: a folder of images with their tables, and two model folders. Everything after
them in the demo's pipeline is the ordinary stages, which do not know that it is a demo.
"""

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from align.progress import progress
from align.stage import Metrics, PortType, Stage

if TYPE_CHECKING:
    from tqdm import tqdm

    from align.artifact import Out


class DrawCharts(Stage):
    """Draws bar charts: `images` and `fields`, each with `train` and `eval` below, and `questions/eval.jsonl`."""

    NAME: ClassVar[str] = "draw-charts"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"images": "folder", "fields": "folder", "questions": "folder"}

    train: PositiveInt = 150
    evaluation: PositiveInt = 60

    def run(self, out: "Out") -> Metrics:
        from pipelines.demo.charts import draw_charts

        with progress(self.train + self.evaluation, "charts") as bar:
            counts = draw_charts(
                out.path, self.train, self.evaluation, self.seed, lambda done, _: _to(bar, done)
            )
        return dict(counts)


class BuildTeacher(Stage):
    """Trains the teacher: it asks, answers and judges."""

    NAME: ClassVar[str] = "build-teacher"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"model": "model"}

    steps: PositiveInt = 700

    def run(self, out: "Out") -> Metrics:
        from pipelines.demo.teacher import TeacherPlan, build_teacher
        from pipelines.demo.training import Schedule

        plan = TeacherPlan(Schedule(self.steps))
        with progress(self.steps, "teacher") as bar:
            metrics = build_teacher(
                out.folder("model"), self.seed, plan, progress=lambda done, _: _to(bar, done)
            )
        return dict(metrics)


class BuildStudent(Stage):
    """Trains the student's base: text alone, then noisy captions, then clean ones, the language model frozen."""

    NAME: ClassVar[str] = "build-student"
    OUTPUTS: ClassVar[dict[str, PortType]] = {"model": "model"}

    text_steps: PositiveInt = 650
    noisy_steps: PositiveInt = 300
    clean_steps: PositiveInt = 80

    def run(self, out: "Out") -> Metrics:
        from dataclasses import replace

        from pipelines.demo.student import StudentPlan, build_student

        default = StudentPlan()
        plan = replace(
            default,
            text=replace(default.text, steps=self.text_steps),
            noisy=replace(default.noisy, steps=self.noisy_steps),
            clean=replace(default.clean, steps=self.clean_steps),
        )
        with progress(self.text_steps + self.noisy_steps + self.clean_steps, "student") as bar:
            metrics = build_student(
                out.folder("model"), self.seed, plan, progress=lambda done, _: _to(bar, done)
            )
        return dict(metrics)


def _to(bar: "tqdm[None]", done: int) -> None:
    bar.update(done - bar.n)
