"""The live display on emulated screens: every frame whole, nothing wraps, and the terminal is left as it was."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bnlab.terminal import live
from bnlab.terminal.live import LiveTable

SIZES = [(100, 30), (60, 16), (44, 16)]
SITES = [f"L{index:02d}_fc" for index in range(20)] + ["L20_out"]


Screen, Clock, InTerminal = Any, Any, Callable[..., Any]
Shown = Callable[..., tuple[LiveTable, Screen]]


@pytest.fixture
def shown(screen_of: Callable[..., Screen], clock: Clock) -> Iterator[Shown]:
    """`shown(columns, rows)`: a display that has begun at step 0 of 1000, and its screen."""
    displays: list[LiveTable] = []

    def begin(columns: int, rows: int, sites: list[str] = SITES, encoding: str = "utf-8") -> tuple[LiveTable, Screen]:
        out = screen_of(columns, rows, encoding)
        display = LiveTable("deep_mlp  batch  lr=0.3  seed=0", 1000, lambda: 0, out, sites)
        displays.append(display)
        display.tick()
        return display, out

    yield begin
    for display in displays:
        display.close()


def record(step: int, sites: int = len(SITES), **more: Any) -> dict[str, Any]:
    """A record as the loop makes it: numpy values, one a site."""
    layers = np.arange(1, sites + 1, dtype=np.float32)
    return {
        "step": step,
        "train_loss": np.float32(2.0 / (step + 1)),
        "test_accuracy": np.float32(0.5),
        "act_mean.pre": -layers / 100,
        "act_var.pre": layers,
        "drift_mean.pre": layers / 1000 * (1 + step % 2),
        "grad_norm": layers * 1e-7,
        **more,
    }


def halfway(display: LiveTable, clock: Clock, **more: Any) -> None:
    """500 steps at 250 a second, 80 records."""
    for step in range(500):
        if step < 80:
            display.listen(record(step, len(display.sites), **more))
        clock.now += 0.004
        display.tick()
    display.draw()


def test_a_frame_of_100_by_30(shown: Shown, clock: Clock) -> None:
    display, out = shown(100, 30)
    halfway(display, clock)
    lines = out.lines
    assert lines[0] == "train  deep_mlp  batch  lr=0.3  seed=0"
    assert lines[1] == "step " + "━" * 34 + "─" * 34 + "  500/1000  250/s  eta 0:02"
    assert re.fullmatch(r"loss 0\.025     best 0\.025     test accuracy 0\.5     █[▁-█]{46}▁", lines[2])
    assert lines[3] == " " * 11 + "─── before the norm ────"
    assert lines[4] == "layer        mean      var    drift     grad  drift, last 54"
    assert lines[5] == "─" * 100
    assert lines[6] == "L00_fc      -0.01        1    0.002     1e-7  " + "▁█" * 27
    assert lines[25] == "L19_fc       -0.2       20     0.04     2e-6  " + "▁█" * 27
    assert lines[26] == "L20_out     -0.21       21    0.042   2.1e-6  " + "▁█" * 27
    assert len(lines) == 27


def test_a_frame_of_60_by_16_is_cut_in_the_middle(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    halfway(display, clock)
    lines = out.lines
    assert lines[1] == "step " + "━" * 14 + "─" * 14 + "  500/1000  250/s  eta 0:02"
    assert lines[3] == " " * 11 + "─── before the norm ────"
    assert lines[4] == "layer        mean      var    drift     grad  drift, last 14"
    assert lines[5] == "─" * 60
    assert [line.split()[0] for line in lines[6:]] == (
        ["L00_fc", "L01_fc", "L02_fc", "L03_fc", "⋮", "L17_fc", "L18_fc", "L19_fc", "L20_out"]
    )
    assert lines[10] == "⋮ 13 more"


def test_a_frame_of_44_by_16_has_fewer_digits_and_no_curve(shown: Shown, clock: Clock) -> None:
    display, out = shown(44, 16)
    halfway(display, clock)
    lines = out.lines
    assert lines[1] == "step " + "━" * 6 + "─" * 6 + "  500/1000  250/s  eta 0:02"
    assert lines[3] == " " * 11 + "── before the norm ──"
    assert lines[4] == "layer       mean     var   drift    grad"
    assert lines[5] == "─" * 40
    assert lines[6] == "L00_fc     -0.01       1   0.002    1e-7"
    assert lines[14] == "L20_out    -0.21      21   0.042  2.1e-6"


@pytest.mark.parametrize(("columns", "rows"), [*SIZES, (30, 5), (20, 3)])
def test_no_frame_wraps_scrolls_or_moves(columns: int, rows: int, shown: Shown, clock: Clock) -> None:
    display, out = shown(columns, rows)
    awkward = {"act_mean.pre": np.full(len(SITES), -1.2345678e-05), "grad_norm": np.full(len(SITES), 9.87654e-21)}
    for step in range(40):
        display.listen(record(step, **(awkward if step % 3 else {})))
        clock.now += 0.3
        display.tick()
        assert out.screen.display[0].startswith("train  deep_mlp" if columns > 30 else "train  deep")
        assert out.screen.display[1].startswith("step ")
        assert out.screen.cursor.y < rows
        assert not out.screen.history.top
    assert out.written.count("\x1b[?2026h") == out.written.count("\x1b[?2026l") == 41


def test_a_frame_is_one_write_over_the_frame_before(shown: Shown, clock: Clock) -> None:
    display, out = shown(100, 30)
    display.listen(record(0))
    halfway(display, clock)
    writes = len(out.writes)
    for step in range(10):
        display.listen(record(step))
        display.draw()
    frames = out.writes[writes:]
    assert len(frames) == 10
    for frame in frames:
        assert frame.startswith("\x1b[?2026h\r\x1b[26A\x1b[1mtrain")
        assert frame.endswith("\r\x1b[?2026l")
        assert not re.search(r"\x1b\[\d*J|\x1b\[[12]K", frame)  # nothing but the rest of a line is erased


def test_a_frame_of_fewer_lines_leaves_none_behind(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16, SITES[:3])
    halfway(display, clock)
    assert len(out.lines) == 9
    display.latest = {"train_loss": 1.0}
    display.draw()
    assert len(out.lines) == 3
    print("below", file=out)
    assert out.screen.cursor.y == 3


def test_output_during_the_display_is_printed_above_it(
    screen_of: Callable[..., Screen], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = screen_of(60, 16)
    monkeypatch.setattr(sys, "stderr", out)
    display = LiveTable("deep_mlp  batch", 1000, lambda: 0, out, SITES[:2])
    display.tick()
    display.listen(record(1, 2))
    print("UserWarning: one", file=sys.stderr)
    print("and", "two", file=sys.stderr)
    assert out.lines[:3] == ["UserWarning: one", "and two", "train  deep_mlp  batch"]
    sys.stderr.write("three")
    display.close()
    assert out.lines[2:4] == ["three", "train  deep_mlp  batch"]
    assert sum("train" in line for line in out.lines) == 1
    assert sys.stderr is out


def test_a_screen_that_is_made_narrower_has_one_frame(
    shown: Shown, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As terminals do that break the lines that have become too long."""
    display, out = shown(60, 16, SITES[:3])
    halfway(display, clock)
    lines = out.lines
    assert len(lines[-1]) > 40
    broken = [line[start : start + 40] for line in lines for start in range(0, max(1, len(line)), 40)]
    out.screen.reset()
    out.screen.resize(16, 40)
    out.write("\n".join(broken) + "\r\x1b[A")
    monkeypatch.setenv("COLUMNS", "40")
    display.frames.console = Console(file=out, force_terminal=True)
    display.draw()
    assert [line.split()[0] for line in out.lines if line] == [
        "train", "step", "loss", "──", "layer", "─" * 39, *SITES[:3]
    ]  # fmt: skip


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_long_names_are_cut_in_the_middle(columns: int, rows: int, shown: Shown, clock: Clock) -> None:
    sites = [f"L{index:02d}_features.{'block.' * 12}conv{index}" for index in range(4)]
    display, out = shown(columns, rows, sites)
    display.title = f"{'an experiment ' * 9}of mine  batch  lr=0.3  seed=0"
    halfway(display, clock)
    assert re.fullmatch(r"train  an .*….* mine  batch  lr=0\.3  seed=0", out.lines[0])
    rows_of_layers = out.lines[6:10]
    assert [bool(re.match(rf"L0{index}_\S*…\S*{index} ", line)) for index, line in enumerate(rows_of_layers)] == [
        True
    ] * 4
    assert all(len(line.split()) >= 5 for line in rows_of_layers)  # and all their figures are there


def test_there_are_at_most_four_frames_a_second(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    for _ in range(1000):
        clock.now += 0.01
        display.tick()
        display.listen(record(3))
    frames = out.written.count("\x1b[?2026h")
    assert 36 <= frames <= 41


def test_slow_frames_are_rarer(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    flush = out.flush

    def slow() -> None:
        clock.now += 0.1
        flush()

    out.flush = slow  # type: ignore[method-assign]
    spent = clock.now
    for _ in range(20_000):
        clock.now += 0.01
        display.tick()
    drawing = clock.now - spent - 200
    assert 0 < drawing <= 0.02 * 200


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_layer_that_is_not_finite_is_bold_red(value: float, shown: Shown, clock: Clock) -> None:
    display, out = shown(100, 30)
    variances = np.ones(len(SITES), dtype=np.float32)
    variances[17] = value
    halfway(display, clock, **{"act_var.pre": variances})
    row = 6 + 17
    assert out.lines[row].split()[:3] == ["L17_fc", "-0.18", str(value)]
    assert out.style(row) == {("red", True)}
    assert out.style(row - 1) == {("default", False), ("cyan", False)}


def test_a_layer_that_is_not_finite_is_not_lost_in_the_cut(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    means = np.zeros(len(SITES))
    means[[8, 9]] = math.nan
    halfway(display, clock, **{"act_mean.pre": means})
    assert out.lines[10] == "⋮ 13 more, 2 of them not finite"
    assert out.style(10) == {("red", True)}


def test_the_layer_that_diverged_first_is_bold_red_in_the_last_frame(shown: Shown, clock: Clock) -> None:
    display, out = shown(100, 40)
    halfway(display, clock)
    display.finish({"status": "diverged", "step": 500, "diverged": {"step": 500, "loss": None, "site": "L03_fc"}})
    display.close()
    assert out.style(6 + 3) == {("red", True)}


@pytest.mark.parametrize(("status", "end"), [("diverged", ""), ("interrupted", ""), ("finished", "  eta 0:00")])
def test_a_run_that_was_stopped_has_no_rest_to_wait_for(status: str, end: str, shown: Shown, clock: Clock) -> None:
    display, out = shown(80, 40)
    halfway(display, clock)
    display.finish({"status": status, "step": 500 if not end else 1000})
    display.close()
    assert re.search(rf"─*  (500|1000)/1000  \d+/s{end}$", out.lines[1])


def test_the_last_frame_leaves_room_for_the_summary(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    halfway(display, clock)
    display.finish({"status": "finished", "step": 1000})
    display.close()
    for _ in range(5):
        print("a line of the summary", file=out)
    lines = out.lines
    assert lines[0] == "train  deep_mlp  batch  lr=0.3  seed=0"
    assert "1000/1000" in lines[1]
    assert [line.split()[0] for line in lines[6:10]] == ["L00_fc", "L01_fc", "⋮", "L20_out"]
    assert lines[10:] == ["a line of the summary"] * 5
    assert not out.screen.cursor.hidden


def test_the_cursor_is_hidden_only_while_it_draws(shown: Shown) -> None:
    display, out = shown(60, 16)
    assert out.screen.cursor.hidden
    display.close()
    assert not out.screen.cursor.hidden


def test_without_layers_there_is_no_table(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)
    display.listen({"step": 0, "train_loss": np.float32(2.5), "train_accuracy": np.float32(0.1)})
    clock.now += 1
    display.tick()
    assert len(out.lines) == 3
    assert out.lines[2].startswith("loss 2.5       best 2.5")


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_the_head_of_the_table_stays_however_many_layers_there_are(
    columns: int, rows: int, shown: Shown, clock: Clock
) -> None:
    display, out = shown(columns, rows, [f"L{index:03d}_fc" for index in range(200)])
    halfway(display, clock)
    lines = out.lines
    assert [line.split()[0] for line in lines[:3]] == ["train", "step", "loss"]
    assert re.fullmatch(r" {11}─+ before the norm ─+", lines[3])
    assert lines[4].split()[:5] == ["layer", "mean", "var", "drift", "grad"]
    assert len(lines[3]) == lines[4].index("drift") + len("drift")
    assert set(lines[5]) == {"─"}
    shown_rows, left_out = rows - 7, 200 - (rows - 8)
    assert len(lines[6:]) == shown_rows
    assert lines[6].startswith("L000_fc ")
    assert lines[6 + shown_rows // 2] == f"⋮ {left_out} more"
    assert lines[-1].startswith("L199_fc ")


def test_the_head_says_where_a_layer_is_measured(screen_of: Callable[..., Screen], clock: Clock) -> None:
    for columns, point, line in (
        (100, "before the norm", " " * 11 + "─── before the norm ────"),
        (44, "before the activation", " " * 10 + "before the activation"),
    ):
        out = screen_of(columns, 16)
        display = LiveTable("deep_mlp", 1000, lambda: 0, out, SITES, point)
        display.tick()
        display.listen(record(0))
        display.draw()
        assert out.lines[3] == line
        display.close()


def test_what_was_not_measured_has_no_column(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16, ["L00_fc", "L01_out"])
    display.listen({"step": 0, "train_loss": 1.0, "batch_mean": np.array([0.5, -2.0]), "batch_var": np.ones(2)})
    clock.now += 1
    display.tick()
    assert out.lines[3:] == [
        " " * 10 + "before the norm",
        "layer        mean      var",
        "─" * 26,
        "L00_fc       +0.5        1",
        "L01_out        -2        1",
    ]


def test_ascii_terminals_get_ascii(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16, encoding="ascii")
    halfway(display, clock)
    display.close()
    assert out.written.isascii()
    assert out.lines[1] == "step " + "#" * 14 + "." * 14 + "  500/1000  250/s  eta 0:02"
    assert out.lines[6].endswith("_#" * 7)


def test_the_memory_of_losses_is_bounded_and_keeps_their_course(shown: Shown) -> None:
    display, _ = shown(60, 16)
    for step in range(10_000):
        display.listen({"step": step, "train_loss": np.float32(step)})
    assert len(display.losses) < 2 * live.LOSSES
    assert display.losses == sorted(display.losses)
    assert display.losses[0] < 20
    assert display.losses[-1] > 9970


def test_a_terminal_that_has_gone_away_does_not_stop_the_run(shown: Shown, clock: Clock) -> None:
    display, out = shown(60, 16)

    def gone(text: str) -> int:
        raise OSError(5, "Input/output error")

    out.write = gone  # type: ignore[method-assign]
    for step in range(10):
        clock.now += 1
        display.listen(record(step))
        display.tick()
    display.close()


# -- the command in a pseudo-terminal --------------------------------------------------------------------------------


def lines_of(terminal: Any) -> list[str]:
    """All lines: those that have left the screen, and the screen's."""
    past = ["".join(cell.data for _, cell in sorted(line.items())) for line in terminal.screen.history.top]
    return [line.rstrip() for line in [*past, *terminal.screen.display]]


TINY = ["train", "--config", "deep_mlp", "steps=40", "model.width=8"]


@pytest.mark.parametrize("size", SIZES)
def test_a_run_on_a_terminal(size: tuple[int, int], tmp_path: Path, in_terminal: InTerminal) -> None:
    found = in_terminal(tmp_path, [*TINY, "model.depth=20"], size, FORCE_COLOR="1")
    assert found.code == 0
    assert not found.screen.cursor.hidden
    lines = lines_of(found)  # with many findings the table leaves a small screen
    text = "\n".join(lines)
    assert "40/40" in text or size == (44, 16)
    assert "L20_out" in text
    shown = [line.split("  ")[0] for line in lines]
    for label in ("finished", "run", "steepest", "measuring", "next"):
        assert label in shown
    frames = found.raw.split(b"\x1b[?2026h")[1:]
    assert frames
    assert all(b"\x1b[?2026l" in frame for frame in frames)
    assert b"\x1b[2J" not in found.raw
    assert sum(line.startswith("train  ") for line in lines) == 1  # and no other frame is left behind


def test_ctrl_c_saves_and_gives_the_cursor_back(tmp_path: Path, in_terminal: InTerminal) -> None:
    words = ["train", "--config", "deep_mlp", "steps=200000", "model.depth=3", "model.width=8"]
    found = in_terminal(tmp_path, words, (100, 30), press=b"\x03\x03", when=b"L03_out")
    assert found.code == 130
    assert not found.screen.cursor.hidden
    text = "".join(line.rstrip() + "\n" for line in found.screen.display)
    assert re.search(r"^interrupted  loss \S+; step \d+/200000$", text, re.M)
    assert re.search(rf"^resume       bnlab {' '.join(words)}$", text, re.M)
    assert "Traceback" not in text
    assert "^C" not in text
    assert text.startswith("train  deep_mlp  batch  lr=0.3  seed=0\nstep ")


def test_no_color_is_respected(tmp_path: Path, in_terminal: InTerminal) -> None:
    found = in_terminal(tmp_path, TINY, (60, 16), NO_COLOR="1")
    assert found.code == 0
    assert b"\x1b[?25l" in found.raw
    assert not re.search(rb"\x1b\[[\d;]*3[0-7]m|\x1b\[[\d;]*38;", found.raw)


@pytest.mark.parametrize(("words", "term"), [(["--plain"], "xterm-256color"), ([], "dumb")])
def test_plain_lines_on_a_terminal_that_cannot_or_shall_not_draw(
    words: list[str], term: str, tmp_path: Path, in_terminal: InTerminal
) -> None:
    found = in_terminal(tmp_path, [*TINY, *words], (100, 30), TERM=term)
    assert found.code == 0
    assert b"\x1b" not in found.raw
    assert len(re.findall(rb"^step ", found.raw, re.M)) == 10


def test_an_ascii_terminal_gets_ascii(tmp_path: Path, in_terminal: InTerminal) -> None:
    found = in_terminal(tmp_path, TINY, (60, 16), PYTHONIOENCODING="ascii")
    assert found.code == 0
    assert found.raw.isascii()
    assert re.search(rb"step (\x1b\[0m)?(\x1b\[35m)?#", found.raw)
