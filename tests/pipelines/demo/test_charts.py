"""Charts: what is drawn agrees with the table, and no chart serves two parts."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.demo.charts import (
    BACKGROUND,
    BASELINE,
    COLORS,
    SLOT_WIDTH,
    UNIT_HEIGHT,
    Bar,
    Chart,
    Part,
    corrupt,
    distinct_charts,
    draw,
    draw_charts,
    sample_chart,
)
from pipelines.demo.questions import KINDS


def read_back(image: Image.Image) -> Chart:
    """The table of a chart, read from its pixels alone."""
    names = {rgb: name for name, rgb in COLORS.items()}
    array = np.asarray(image.convert("RGB"))
    bars: list[Bar] = []
    for slot in range(array.shape[1] // SLOT_WIDTH):
        column = array[:BASELINE, slot * SLOT_WIDTH + SLOT_WIDTH // 2]
        inked = [tuple(int(v) for v in pixel) for pixel in column if tuple(pixel) != BACKGROUND]
        if inked:
            assert len(set(inked)) == 1
            bars.append(Bar(names[inked[0]], len(inked) // UNIT_HEIGHT))
    return Chart(tuple(bars))


def test_drawn_pixels_agree_with_the_table() -> None:
    rng = random.Random(0)
    for part in Part:
        for _ in range(50):
            chart = sample_chart(rng, part)
            assert read_back(draw(chart)) == chart


def test_every_chart_has_one_part_and_samples_keep_to_it() -> None:
    rng = random.Random(1)
    drawn = {part: set(distinct_charts(rng, part, 400)) for part in Part}
    for part, charts in drawn.items():
        assert {chart.part for chart in charts} == {part}
        for other in set(Part) - {part}:
            assert not charts & drawn[other]


def test_a_corrupted_chart_is_wrong_and_stays_in_its_part() -> None:
    rng = random.Random(2)
    for _ in range(200):
        chart = sample_chart(rng, Part.TEACHER)
        wrong = corrupt(rng, chart)
        assert wrong != chart
        assert wrong.part is Part.TEACHER
        assert len({bar.color for bar in wrong.bars}) == len(wrong.bars)


def test_draw_charts_writes_images_tables_and_questions(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    counts = draw_charts(tmp_path, train=3, evaluation=2, seed=5, progress=lambda *step: seen.append(step))
    assert counts == {"train": 3, "evaluation": 2, "questions": 2 * len(KINDS)}
    assert seen[-1] == (5, 5)
    for split, part in (("train", Part.PIPELINE), ("eval", Part.EVALUATION)):
        for path in sorted((tmp_path / "images" / split).glob("*.png")):
            chart = read_back(Image.open(path))
            assert (tmp_path / "tables" / split / f"{path.stem}.txt").read_text() == f"Bars: {chart.table()}.\n"
            assert chart.part is part
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(KINDS)
    for row in rows:
        assert (tmp_path / "images" / row["image"]).is_file()


def test_the_same_seed_draws_the_same_charts(tmp_path: Path) -> None:
    draw_charts(tmp_path / "a", 2, 2, seed=1)
    draw_charts(tmp_path / "b", 2, 2, seed=1)
    draw_charts(tmp_path / "c", 2, 2, seed=2)
    a, b, c = ((tmp_path / name / "questions.jsonl").read_text() for name in "abc")
    assert a == b != c


def test_counts_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive"):
        draw_charts(tmp_path, 0, 1, seed=0)
