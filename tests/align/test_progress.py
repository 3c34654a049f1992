import io

import pytest

from align import progress as module
from align.progress import progress, progress_to


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", lambda: clock.now)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


def test_without_a_terminal_a_plain_line_comes_now_and_then(clock: Clock) -> None:
    stream = io.StringIO()
    with progress_to(stream), progress(1000, "questions", done=100) as bar:
        for _ in range(80):
            clock.now += 1
            bar.update(10)
    assert stream.getvalue().splitlines() == [
        "  questions: 400 of 1000, 10/s, 01:00 left",
        "  questions: 700 of 1000, 10/s, 00:30 left",
    ]
    assert bar.n == 900


def test_where_nobody_knows_how_many_there_are_neither_that_nor_the_time_left_is_said(clock: Clock) -> None:
    stream = io.StringIO()
    with progress_to(stream), progress(0, "images") as bar:
        for _ in range(40):
            clock.now += 1
            bar.update(10)
    assert stream.getvalue().splitlines() == ["  images: 300, 10/s"]


def test_the_first_few_say_nothing_about_the_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    with progress_to(stream), progress(1000, "steps") as bar:
        for _ in range(5):
            clock.now += 31
            bar.update()
    assert stream.getvalue().splitlines() == [f"  steps: {n} of 1000" for n in range(1, 6)]


def test_short_work_says_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    with progress_to(stream), progress(10, "rows") as bar:
        for _ in range(10):
            clock.now += module.EVERY_S / 11
            bar.update()
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress_to(stream), progress(3, "rows") as bar:
        bar.update(3)
        bar.refresh()
    assert "3/3" in stream.getvalue()
    assert "\r" in stream.getvalue()
