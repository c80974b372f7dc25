"""Plain lines: ten of a run, at the tenths, whatever the number of steps."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest

from bnlab.terminal import signs
from bnlab.terminal.progress import PlainLines


class Clock:
    """A second a step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def lines_of(clock: Clock, steps: int, first: int = 0, status: str = "finished") -> list[str]:
    """What a run of `steps` steps from `first` prints."""
    out = io.StringIO()
    progress = PlainLines("title", steps, lambda: first, out)
    for step in range(first, steps):
        progress.tick()
        progress.listen({"step": step, "train_loss": 1 / (step + 1)})
        clock.now += 1
    progress.finish({"status": status, "step": steps})
    progress.close()
    return out.getvalue().splitlines()


def test_ten_lines_at_the_tenths(clock: Clock) -> None:
    assert lines_of(clock, 20) == [
        "title",
        "step  2/20  loss 0.5 at 1  1/s  eta 0:18",
        "step  4/20  loss 0.25 at 3  1/s  eta 0:16",
        "step  6/20  loss 0.1667 at 5  1/s  eta 0:14",
        "step  8/20  loss 0.125 at 7  1/s  eta 0:12",
        "step 10/20  loss 0.1 at 9  1/s  eta 0:10",
        "step 12/20  loss 0.08333 at 11  1/s  eta 0:08",
        "step 14/20  loss 0.07143 at 13  1/s  eta 0:06",
        "step 16/20  loss 0.0625 at 15  1/s  eta 0:04",
        "step 18/20  loss 0.05556 at 17  1/s  eta 0:02",
        "step 20/20  loss 0.05 at 19  1/s  eta 0:00",
    ]


def test_a_measurement_of_the_step_itself_needs_no_step(clock: Clock) -> None:
    out = io.StringIO()
    progress = PlainLines("title", 10, lambda: 0, out)
    progress.tick()
    progress.listen({"step": 0, "train_loss": 2.0, "test_accuracy": 0.5})
    progress.listen({"step": 1, "train_loss": 1.0})
    clock.now += 1
    progress.tick()
    assert out.getvalue().splitlines()[-1] == "step  1/10  loss 1  test accuracy 0.5 at 0  1/s  eta 0:09"


def test_a_resumed_run_says_where_it_resumes(clock: Clock) -> None:
    assert [line.split("  ")[0] for line in lines_of(clock, 20, first=17)] == (
        ["title", "resuming at step 17 of 20", "step 18/20", "step 20/20"]
    )


def test_a_run_that_did_not_finish_has_no_last_line(clock: Clock) -> None:
    assert lines_of(clock, 20, status="diverged")[-1].startswith("step 18/20")


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 99, 101, 1234])
def test_there_are_never_more_than_ten_lines(steps: int, clock: Clock) -> None:
    marks = [int(line.split("/")[0].removeprefix("step")) for line in lines_of(clock, steps)[1:]]
    assert len(marks) == min(10, steps)
    assert marks == sorted(set(marks))
    assert marks[-1] == steps
    assert all(abs(mark - steps * (index + 1) / len(marks)) < 1 for index, mark in enumerate(marks))


def test_signs_that_the_output_cannot_show_become_question_marks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    signs.say("seed ✕", out)
    assert raw.getvalue() == b"seed ?\n"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    signs.print_json({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": None}})
    assert capsys.readouterr().out == '{"a": null, "b": [1.5, null], "c": {"d": null}}\n'


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_screen_is_a_terminal_that_can_move_its_cursor(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert signs.is_screen(Terminal())
    assert not signs.is_screen(io.StringIO())
    monkeypatch.setenv("TERM", term)
    assert not signs.is_screen(Terminal())


def test_what_is_waited_for_stands_on_a_screen_until_it_is_there(screen_of: Callable[..., Any]) -> None:
    out = screen_of(40, 3)
    with signs.waiting("loading ...", out):
        assert out.lines == ["loading ..."]
    assert out.lines == [""]
    signs.say("done", out)
    assert out.lines == ["done"]
    pipe = io.StringIO()
    with signs.waiting("loading ...", pipe):
        pass
    assert pipe.getvalue() == ""
