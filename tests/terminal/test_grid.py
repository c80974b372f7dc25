"""The live grid of a sweep on emulated screens, and how long the rest takes."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnlab import config
from bnlab.core.study import Cell
from bnlab.grids.run import Standing
from bnlab.record.folder import RunFolder
from bnlab.terminal.grid import LiveGrid
from bnlab.terminal.progress import Tally, TallyLines

SIZES = [(100, 30), (60, 16), (44, 16)]
CONFIGS = Path(__file__).parent.parent / "configs"
RATES = "optim.lr=0.01,0.0562,0.316,1.78,10"
InTerminal = Callable[..., Any]


@functools.cache
def cells_of(*overrides: str) -> list[Cell]:
    return config.load_study("mlp_digits", overrides)[1]


def grid(*overrides: str) -> list[Standing]:
    """The cells of a grid, none begun."""
    cells = cells_of(*overrides)
    return [
        Standing(cell=cell, folder=RunFolder(Path("runs") / cell.spec.folder), state="not started", status={})
        for cell in cells
    ]


def ended(standing: Standing, state: Any = "finished", loss: float | None = None, run_s: float = 2.0) -> Standing:
    metrics = {"train_loss": loss if loss is not None else 1 + standing.cell.spec.optim.lr}
    status = {"metrics": metrics, "timing": {"run_s": run_s}}
    return changed(standing, state, status)


def changed(standing: Standing, state: Any, status: Any = None, error: str | None = None) -> Standing:
    return Standing(cell=standing.cell, folder=standing.folder, state=state, status=status or {}, error=error)


def norm_of(standing: Standing) -> str:
    return standing.cell.spec.norm.name


Shown = Callable[..., tuple[LiveGrid, Any]]


@pytest.fixture
def shown(screen_of: Callable[..., Any], clock: Any) -> Iterator[Shown]:
    """`shown(standings, columns, rows)`: a display that has begun, and its screen."""
    displays: list[LiveGrid] = []

    def begin(standings: list[Standing], columns: int, rows: int, encoding: str = "utf-8") -> tuple[LiveGrid, Any]:
        out = screen_of(columns, rows, encoding)
        display = LiveGrid(standings, 2, out)
        displays.append(display)
        return display, out

    yield begin
    for display in displays:
        display.close()


def halfway(display: LiveGrid, standings: list[Standing], clock: Any) -> None:
    """`none` diverges at the two largest rates, `batch` is running its last one."""
    for standing in standings:
        clock.now += 0.5
        lr, seed = standing.cell.spec.optim.lr, standing.cell.spec.seed
        if norm_of(standing) == "none" and lr > 1:
            display.tell(ended(standing, "diverged"))
        elif norm_of(standing) == "batch" and lr == 10:
            state = {0: "finished", 1: "running", 2: "not started"}[seed]
            display.tell(ended(standing) if state == "finished" else changed(standing, state))
        elif norm_of(standing) == "layer" and lr == 0.01 and seed == 0:
            display.tell(changed(standing, "failed", {}, "RuntimeError: broken"))
        else:
            display.tell(ended(standing, loss=1 / lr if norm_of(standing) == "batch" else None))
        display.tick()
    clock.now += 1
    display.tick()


def test_a_frame_of_100_by_30(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    display, out = shown(standings, 100, 30)
    halfway(display, standings, clock)
    assert out.lines == [
        "sweep  mlp_digits  43/45 runs, 6 diverged, 1 failed, 24 s, eta 1 s",
        "",
        "norm   0.01         0.0562       0.316        1.78         10",
        "─" * 70,
        "none   ●●● 1.01     ●●● 1.06     ●●● 1.32     ✕✕✕          ✕✕✕",
        "batch  ●●● 100      ●●● 17.8     ●●● 3.16     ●●● 0.562*   ●◐· 11",
        "layer  !●● 1.01     ●●● 1.06     ●●● 1.32     ●●● 2.78     ●●● 11",
        "",
        "● finished  ◐ running  ✕ diverged  ! failed  · not started  * best mean loss",
    ]
    assert out.style(4) >= {("red", False), ("green", False)}
    assert ("green", True) in out.style(5)
    assert ("red", True) in out.style(6)


def test_a_frame_of_60_by_16_fits(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    display, out = shown(standings, 60, 16)
    halfway(display, standings, clock)
    assert out.lines[2] == "lr      none         batch        layer"
    assert out.lines[-2:] == ["● finished  ◐ running  ✕ diverged  ! failed  · not started", "* best mean loss"]


def test_a_narrow_screen_has_the_grid_the_other_way_round(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    display, out = shown(standings, 44, 16)
    halfway(display, standings, clock)
    assert out.lines[2:9] == [
        "lr      none      batch      layer",
        "─" * 37,
        "0.01    ●●● 1.01  ●●● 100    !●● 1.01",
        "0.0562  ●●● 1.06  ●●● 17.8   ●●● 1.06",
        "0.316   ●●● 1.32  ●●● 3.16   ●●● 1.32",
        "1.78    ✕✕✕       ●●● 0.562* ●●● 2.78",
        "10      ✕✕✕       ●◐· 11     ●●● 11",
    ]


def test_where_no_seed_has_room_there_is_one_sign_for_all(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer,rms", RATES, "seed=range(8)")
    display, out = shown(standings, 44, 16)
    for standing in standings:
        bad = norm_of(standing) == "none" and standing.cell.spec.seed == 3
        display.tell(ended(standing, "diverged" if bad else "finished"))
    clock.now += 1
    display.tick()
    assert out.lines[2:8] == [
        "norm   0.01    0.0562  0.316   1.78    10",
        "─" * 43,
        "none   ✕ 1.01  ✕ 1.06  ✕ 1.32  ✕ 2.78  ✕ 11",
        "batch  ● 1.01* ● 1.06  ● 1.32  ● 2.78  ● 11",
        "layer  ● 1.01  ● 1.06  ● 1.32  ● 2.78  ● 11",
        "rms    ● 1.01  ● 1.06  ● 1.32  ● 2.78  ● 11",
    ]


LEGENDS = {
    100: ["● finished  ◐ running  ✕ diverged  ! failed  ○ interrupted  · not started  * best mean loss"],
    60: [
        "● finished  ◐ running  ✕ diverged  ! failed  ○ interrupted",
        "· not started  * best mean loss  one sign: the worst seed",
    ],
    44: ["● finished  ◐ running  ✕ diverged  ! failed", "○ interrupted  · not started  * best loss"],
}
GRIDS = {
    100: [
        "sweep  mlp_digits  191/216 runs, 12 diverged, 1 failed, 0 s, eta 25 s",
        "3 runs are running in another process",
        "lr       none            batch           layer           rms",
        "─" * 71,
        "0.001    ○●●●●● 0.00123* ●●●●●● 0.00123  ●●●●●· 0.00123  ●●●●●◐ 0.00123",
    ],
    60: [
        "sweep  191/216 runs, 12 diverged, 1 failed, 0 s, eta 25 s",
        "3 runs are running in another process",
        "lr       none       batch      layer      rms",
        "─" * 51,
        "0.001    ○ 0.00123* ● 0.00123  · 0.00123  ◐ 0.00123",
    ],
    44: [
        "sweep  191/216 runs, 12 ✕, 1 !, eta 25 s",
        "3 runs are running in another process",
        "lr       none    batch   layer   rms",
        "─" * 39,
        "0.001    ○●●●●●* ●●●●●●  ●●●●●·  ●●●●●◐",
    ],
}


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_legend_head_and_norms_stay_on_every_screen(columns: int, rows: int, shown: Shown, clock: Any) -> None:
    """Four norms, nine rates and six seeds, in every state that a run may have."""
    standings = grid("norm=none,batch,layer,rms", "optim.lr=logspace(1e-3,10,9)", "seed=range(6)")
    display, out = shown(standings, columns, rows)
    for index, standing in enumerate(standings[:192]):
        if norm_of(standing) == "none" and standing.cell.spec.optim.lr > 1:
            display.tell(ended(standing, "diverged"))
        elif index == 0:
            display.tell(changed(standing, "interrupted"))
        elif index == 100:
            display.tell(changed(standing, "failed", {}, "RuntimeError: broken"))
        else:
            display.tell(ended(standing, loss=1.2345 * standing.cell.spec.optim.lr))
    (last,) = [one for one in standings[207:] if one.cell.spec.optim.lr < 0.002]
    display.tell(changed(last, "running"))
    display.wait(3)
    display.frames.draw()
    assert out.lines[:5] == GRIDS[columns]
    assert out.lines[-len(LEGENDS[columns]) :] == LEGENDS[columns]
    assert sum(line.startswith(("0.", "1", "3.16")) for line in out.lines) in (9, 7)
    assert out.screen.cursor.y < rows
    assert not out.screen.history.top


@pytest.mark.parametrize(("columns", "rows"), [*SIZES, (30, 8), (20, 5)])
def test_no_frame_wraps_scrolls_or_moves(columns: int, rows: int, shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer,rms", "model.depth=2,3", "optim.lr=logspace(1e-3,10,9)", "seed=0,1")
    display, out = shown(standings, columns, rows)
    for index, standing in enumerate(standings[:40]):
        display.tell(ended(standing, loss=1.2345e-21 if index % 3 else 9.87e20))
        clock.now += 0.3
        display.tick()
        assert out.screen.display[0].startswith("sweep"[:columns])
        assert out.screen.cursor.y < rows
        assert not out.screen.history.top


def test_a_narrow_screen_has_the_facts_that_count(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    for columns, line in (
        (67, "sweep  mlp_digits  43/45 runs, 6 diverged, 1 failed, 24 s, eta 1 s"),
        (65, "sweep  43/45 runs, 6 diverged, 1 failed, 24 s, eta 1 s"),
        (53, "sweep  43/45 runs, 6 diverged, 1 failed, eta 1 s"),
    ):
        display, out = shown(standings, columns, 16)
        halfway(display, standings, clock)
        assert out.lines[0] == line


def test_long_names_of_arms_are_cut_in_the_middle(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch_reference", "model.activation=relu,sigmoid", "optim.lr=0.1,1", "seed=0,1")
    _, out = shown(standings, 60, 16)
    assert [line[:32].rstrip() for line in out.lines[4:8]] == [
        "none activation=relu", "none activation=sigmoid",
        "batch_reference activation=relu", "batch_reference activation=sigmoid"[:32],
    ]  # fmt: skip
    _, out = shown(standings, 49, 16)
    assert [line.split("  ")[0] for line in out.lines[4:8]] == [
        "none activation=relu", "none activation=sigmoid", "batch_refere…vation=relu", "batch_refere…ion=sigmoid",
    ]  # fmt: skip


def test_columns_stay_where_they_are(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    display, out = shown(standings, 100, 30)
    head = out.lines[2]
    for standing in standings:
        display.tell(ended(standing, loss=0.0123))
        clock.now += 1
        display.tick()
        assert out.lines[2] == head


def test_there_are_at_most_four_frames_a_second(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch", "seed=range(3)")
    display, out = shown(standings, 60, 16)
    for _ in range(1000):
        clock.now += 0.01
        display.tick()
        display.tell(standings[0])
    assert 36 <= out.written.count("\x1b[?2026h") <= 41


def test_arms_differ_by_everything_that_varies(shown: Shown, clock: Any) -> None:
    _, out = shown(grid("model.depth=2,3", "norm=none,batch", "seed=0,1", "optim.lr=0.1"), 60, 16)
    assert [line.split("  ")[0] for line in out.lines[2:8]] == [
        "norm", "─" * 25, "none depth=2", "batch depth=2", "none depth=3", "batch depth=3",
    ]  # fmt: skip
    _, out = shown(grid("model.depth=2,3", "seed=0,1"), 60, 16)
    assert [line.split()[0] for line in out.lines[2:6]] == ["depth", "─" * 17, "2", "3"]


def test_a_rate_at_which_a_seed_diverged_is_not_the_best(shown: Shown, clock: Any) -> None:
    standings = grid("optim.lr=0.1,1", "seed=0,1")
    display, out = shown(standings, 60, 16)
    for standing, (state, loss) in zip(
        standings, [("finished", 2.0), ("diverged", 9.0), ("finished", 3.0), ("finished", 1.0)], strict=True
    ):
        display.tell(ended(standing, state, loss))
    clock.now += 1
    display.tick()
    assert out.lines[4].split() == ["batch", "●●", "2.5*", "✕●", "1"]


def test_ascii_terminals_get_ascii(shown: Shown, clock: Any) -> None:
    standings = grid("norm=none,batch,layer", RATES, "seed=range(3)")
    display, out = shown(standings, 100, 30, "ascii")
    halfway(display, standings, clock)
    display.close()
    assert out.written.isascii()
    assert out.lines[5] == "batch  ooo 100      ooo 17.8     ooo 3.16     ooo 0.562*   o>. 11"


# -- how long the rest takes -------------------------------------------------------------------------------------------


def test_the_time_left_is_that_of_runs_alike(clock: Any) -> None:
    """Two workers. `none` takes 10 s at 0.1 and 20 s at 1; of `batch` nothing is known but what all take."""
    standings = grid("norm=none,batch", "optim.lr=0.1,1", "seed=0,1")
    tally = Tally(standings, 2, io.StringIO())
    assert tally.eta_s() is None
    for standing in standings[:2]:
        assert norm_of(standing) == "none"
        tally.tell(ended(standing, run_s=10.0 * (1 if standing.cell.spec.optim.lr == 0.1 else 2)))
    left = 2 * 15 + 10 + 20 + 2 * 15  # batch and none of each seed
    assert tally.eta_s() == left / 2
    (begun,) = [one for one in standings if one.cell.values == {"norm": "none", "optim.lr": 0.1, "seed": 1}]
    tally.tell(changed(begun, "running"))
    clock.now += 4
    assert tally.eta_s() == (left - 4) / 2
    clock.now += 400  # longer than expected: nothing is left of it, not less than nothing
    assert tally.eta_s() == (left - 10) / 2


def test_the_time_left_is_measured_where_a_queue_says_how_many_run_at_once(clock: Any) -> None:
    """Runs of 20 s. One ended before the sweep began to look; then in 100 s four end."""
    first, *others = grid("seed=range(11)")
    tally = Tally([first, *others], None, io.StringIO())
    clock.now += 1
    tally.tell(ended(first, run_s=20.0))
    assert tally.eta_s() is None
    clock.now += 99
    for standing in others[:4]:
        tally.tell(ended(standing, run_s=20.0))
    assert tally.eta_s() == 6 / 4 * 100
    clock.now += 30
    tally.tell(changed(others[4], "running"))
    assert tally.eta_s() == 120
    clock.now += 300
    assert tally.eta_s() == 0


def test_plain_lines_tell_each_tenth(clock: Any) -> None:
    standings = grid("seed=range(40)")
    out = io.StringIO()
    tally = TallyLines([ended(one) if index < 4 else one for index, one in enumerate(standings)], 2, out)
    for index, standing in enumerate(standings[4:]):
        clock.now += 1
        tally.tell(changed(standing, "running"))
        tally.tell(ended(standing, "diverged" if index == 9 else "finished"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "4 of 40 runs have ended already"
    assert [line[:9] for line in lines[1:]] == [f"run {count:>2}/40" for count in range(8, 41, 4)]
    assert lines[1] == "run  8/40  0:04  eta 0:32"
    assert lines[-1] == "run 40/40  1 diverged  0:36  eta 0:00"


# -- the command in a pseudo-terminal ----------------------------------------------------------------------------------

SWEEP = ["sweep", "--config", "tiny", "--config-dir", str(CONFIGS), "seed=0,1,2", "launch.workers=2"]


@pytest.mark.parametrize("size", [(60, 24), (44, 24)])
def test_a_sweep_on_a_terminal(size: tuple[int, int], tmp_path: Path, in_terminal: InTerminal) -> None:
    found = in_terminal(tmp_path, SWEEP, size, FORCE_COLOR="1")
    lines = [line.rstrip() for line in found.screen.display]
    assert found.code == 0
    assert not found.screen.cursor.hidden
    first = next(index for index, line in enumerate(lines) if line.startswith("sweep  ") and "12/12 runs, " in line)
    assert lines[first + 2].split()[0] in ("norm", "lr")
    assert re.search(r"^(none|0\.05) +●●● \d", "\n".join(lines), re.M)
    assert "12 runs: 12 finished" in lines
    frames = found.raw.split(b"\x1b[?2026h")[1:]
    assert frames
    assert all(b"\x1b[?2026l" in frame for frame in frames)


def test_ctrl_c_says_how_to_resume(tmp_path: Path, in_terminal: InTerminal) -> None:
    words = [*SWEEP, "steps=100000"]
    found = in_terminal(tmp_path, words, (100, 30), press=b"\x03\x03", when="◐".encode())
    text = "\n".join(line.rstrip() for line in found.screen.display)
    assert found.code == 130
    assert not found.screen.cursor.hidden
    assert "Traceback" not in text
    assert "resume  bnlab sweep --config tiny seed=0,1,2" in text
    assert "^C" not in text
    assert text.count("sweep  ") == 1


def test_plain_lines_where_the_process_is_shared(tmp_path: Path, in_terminal: InTerminal) -> None:
    """A breakpoint in a run needs the terminal for itself."""
    words = [word for word in SWEEP if not word.startswith("launch")]
    found = in_terminal(tmp_path, [*words, "launch=inline", "norm=none"], (100, 30))
    assert found.code == 0
    begun = found.raw.rpartition(b" ...\r\x1b[K")[2]  # after what is waited for before it
    assert not re.search(rb"\x1b\[[\d;?]*[^\d;?m]", begun)  # colours, but nothing that moves the cursor
    assert found.raw.count(b"\nrun ") + found.raw.startswith(b"run ") == 6
