"""Stage `filter`: an ordered list of filters, each with its own config, over rows of questions.

In: `QA` rows. Out: `kept`; a row that a filter sets aside is written to `dropped` with the filter's name as reason and
says in its detail what was wrong. Rows stream through the filters in turn, each seeing what those before it let pass.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from align.artifact import Batch, Out, count_rows, rows
from align.config import shipped
from align.engine import Engine, EngineConfig, Reply, Request, check_engine, open_engine
from align.errors import UserError
from align.metrics import exact, final_answer, reference_answer, relaxed
from align.progress import progress
from align.records import QA, Dropped, Message, Row, Sampling, read_parquet, row_seed, text_of
from align.stage import RUNTIME, FileRef, Metrics, Ref, Stage
from align.templates import check_shows, render
from data_gen import predicates
from data_gen.dedup import Decontaminate, ImageDuplicates, TextDuplicates
from data_gen.predicates import Format, Length, Step


class Blind(predicates.Filter):
    """Questions that a model answers rightly without the image: they teach and measure nothing about seeing. Kinds with
    few possible answers are left alone: of those a guesser would remove the answers it likes best and skew the rest."""

    filter: Literal["blind"] = "blind"
    engine: EngineConfig
    prompt: FileRef = "configs/prompts/default/blind.jinja"  # variable question
    samples: PositiveInt = 4
    drop_at_share_right: Annotated[float, Field(gt=0, le=1)] = 0.5
    skip_kinds: list[str] = ["yesno", "compare", "unanswerable"]
    answer_after: str | None = None  # the answer is what stands behind the last such marker
    temperature: Annotated[float, Field(ge=0)] = 0.7
    max_tokens: PositiveInt = 64
    shard: Annotated[PositiveInt, RUNTIME] = 256

    def check(self) -> None:
        check_shows(self.prompt, "question")
        check_engine(self.engine)

    def apply(self, rows: Iterable[QA], step: Step) -> Iterator[QA]:
        """Asks shard by shard, so that a stop loses one shard at most."""
        out = Out(step.folder, step.store)
        with ExitStack() as stack:
            engines: list[Engine] = []

            def work(chunk: list[QA]) -> Batch[QA]:
                asked = [row for row in chunk if row.kind not in self.skip_kinds]
                if asked and not engines:
                    engines.append(stack.enter_context(open_engine(self.engine)))
                requests = [self._request(row, step.seed) for row in asked]
                replies = {r.id: r for r in (engines[0].generate(requests) if asked else [])}
                batch: Batch[QA] = Batch({"kept": []})
                for row in chunk:
                    why = self._why(row, replies.get(row.id)) if row.kind not in self.skip_kinds else ""
                    if why:
                        batch.dropped.append(self.dropped(row, why))
                    else:
                        batch.rows["kept"].append(row)
                return batch

            ports: dict[str, type[Row]] = {"kept": QA}
            out.map_rows(rows, step.total, work, ports, shard=self.shard, label="asked blind")
        for aside in read_parquet(sorted((out.path / "dropped").glob("part-*.parquet")), Dropped):
            step.aside(aside)
        yield from read_parquet(sorted((out.path / "kept").glob("part-*.parquet")), QA, step.store.blobs)

    def _request(self, row: QA, seed: int) -> Request:
        prompt = render(shipped(self.prompt), question=text_of(row.prompt))
        return Request(
            id=row.id,
            messages=[Message(role="user", content=prompt)],
            n=self.samples,
            sampling=Sampling(temperature=self.temperature, max_tokens=self.max_tokens),
            seed=row_seed(seed, row.id, "blind"),
        )

    def _why(self, row: QA, reply: Reply | None) -> str:
        if reply is None or reply.error or not reply.texts:
            return f"the model did not answer: {reply.error if reply else 'no reply'}"
        right = sum(is_right(text, text_of(row.completion), self.answer_after) for text in reply.texts)
        if right / len(reply.texts) < self.drop_at_share_right:
            return ""
        return f"{right} of {len(reply.texts)} answers are right without the image"


FilterConfig = Annotated[
    Format | Length | TextDuplicates | ImageDuplicates | Blind | Decontaminate, Field(discriminator="filter")
]
"""The one list of filters."""


class Filter(Stage):
    """Runs the filters in their order."""

    NAME = "filter"
    OUTPUTS = {"kept": QA}

    input: Annotated[str, Ref(QA)]
    filters: list[FilterConfig] = [Format(), Length(), TextDuplicates()]

    def check(self) -> None:
        problems = []
        for n, each in enumerate(self.filters):
            try:
                each.check()
            except UserError as error:
                problems.append(f"filters[{n}]: {error}")
        if problems:
            raise UserError("\n".join(problems))

    def run(self, out: Out) -> Metrics:
        aside: list[Dropped] = []
        dropped_by = [0] * len(self.filters)
        kinds: Counter[str] = Counter()
        total = count_rows(self.input)

        def taken() -> Iterator[QA]:
            with progress(total, "questions") as bar:
                for row in rows(self.input, QA):
                    out.rows_in += 1
                    bar.update()
                    yield row

        def step(n: int) -> Step:
            def put(row: Dropped) -> None:
                aside.append(row)
                dropped_by[n] += 1

            return Step(put, out.path / "steps" / str(n), out.store, self.seed, total)

        stream: Iterator[QA] = taken()
        for n, each in enumerate(self.filters):
            stream = each.apply(stream, step(n))

        def kept() -> Iterator[QA]:
            for row in stream:
                kinds[row.kind] += 1
                yield row

        out.write("kept", QA, kept())
        out.drop(aside)
        shutil.rmtree(out.path / "steps", ignore_errors=True)
        return {"kinds": dict(kinds), "filters": report([f.filter for f in self.filters], out.rows_in, dropped_by)}


def report(names: list[str], rows_in: int, dropped_by: list[int]) -> list[dict[str, Any]]:
    """What each filter saw and what it set aside."""
    found = []
    for name, count in zip(names, dropped_by, strict=True):
        found.append({"filter": name, "in": rows_in, "dropped": count})
        rows_in -= count
    return found


def is_right(text: str, answer: str, marker: str | None) -> bool:
    """Whether a text gives the answer: equal but for case and closing punctuation, or a number within 5 %."""
    said, right = final_answer(text, marker), reference_answer(answer, marker)
    return said is not None and bool(exact(said, right) or relaxed(said.rstrip("."), right.rstrip(".")))
