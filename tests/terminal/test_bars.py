"""How many of many: a bar on a screen, lines elsewhere, nothing for what is soon over."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from bnlab.terminal.progress import Bars


def counted(out: Any, clock: Any, total: int, each_s: float, *, plain: bool = False) -> None:
    with Bars(out, plain=plain) as count:
        count("answer", 0, total)
        for done in range(1, total + 1):
            clock.now += each_s
            count("answer", done, total)


def test_lines_tell_each_tenth_once_it_takes_long(clock: Any) -> None:
    out = io.StringIO()
    counted(out, clock, 40, 0.5)
    assert out.getvalue().splitlines() == [
        f"answer {done}/40  0:{done // 2:02d}  eta 0:{(40 - done) // 2:02d}" for done in range(12, 41, 4)
    ]


@pytest.mark.parametrize("columns", [100, 44])
def test_a_screen_has_a_bar_that_leaves_nothing_behind(columns: int, screen_of: Callable[..., Any], clock: Any) -> None:
    out = screen_of(columns, 16)
    print("before", file=out)
    with Bars(out, plain=False) as count:
        count("answer", 0, 40)
        for done in range(1, 21):
            clock.now += 0.5
            count("answer", done, 40)
        assert re.fullmatch(r"answer ━+[╸━╺]*━* 20/40 eta \S+", out.lines[1])
        assert out.screen.cursor.hidden
    print("after", file=out)
    assert out.lines == ["before", "after"]
    assert not out.screen.cursor.hidden


def test_what_is_soon_over_has_neither(screen_of: Callable[..., Any], clock: Any) -> None:
    out = screen_of(100, 16)
    counted(out, clock, 9, 0.1)
    counted(out, clock, 40, 0.1, plain=True)
    assert out.written == ""


def test_there_are_at_most_four_frames_a_second(screen_of: Callable[..., Any], clock: Any) -> None:
    out = screen_of(100, 16)
    counted(out, clock, 1000, 0.01)
    assert 30 <= out.written.count("eta") <= 40
