"""The runs of a sweep as arms at learning rates, each with its seeds; which of them to look at first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bnlab.analysis.load import Collection, read_runs
from bnlab.core.errors import UsageError
from bnlab.record.folder import RunFolder
from bnlab.record.runs import Run
from bnlab.report.build import TRAIN_FIRST, studies_in
from bnlab.report.views import Group, Prepared, View, prepare

MOST_SHOWN = 6
"""Runs that are shown at first: what eyes can follow, and TensorBoard has seven colours."""
FEWEST = 2
"""Seeds that make a mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """An arm at a learning rate: `runs` by seed. Runs that have not ended are among them only where fewer than two
    have: a mean over seeds of which one has just begun would reach no further than that one."""

    arm: str
    lr: float
    runs: tuple[Run, ...]
    going: int
    """How many have not ended, whether they are among `runs` or not."""

    @property
    def name(self) -> str:
        """As TensorBoard's run."""
        arm = re.sub(r"[^ \w.=,+-]", "-", self.arm)  # it is a folder's name too
        return f"{arm}/lr={self.lr:.12g}"

    @property
    def diverged(self) -> list[int]:
        """Steps at which seeds diverged."""
        return sorted(int(run.status["step"]) for run in self.runs if run.diverged)

    @property
    def dead(self) -> int:
        """Seeds that ended at chance."""
        return sum(run.finished and not run.trains for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """All of a sweep. `begun` holds the runs that have not ended too, of which figures know nothing."""

    begun: Collection
    ended: Collection
    cells: tuple[Cell, ...]
    shown: tuple[str, ...]
    """Names of the cells to be shown at first, the first of them first."""


def arms_of(root: Path, keep: Sequence[str]) -> Arms:
    """The sweep at `root`, with series of the names in `keep`.

    Raises:
        UsageError: no such directory, no runs, several sweeps, one run, or no arm that has two seeds, unless the
            sweep goes on and will have some.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root), TRAIN_FIRST)
    folders = studies_in(root)
    if not folders:
        raise UsageError("RUNS", "no runs in this directory", str(root), TRAIN_FIRST)
    if RunFolder(root).spec_file.is_file():
        raise UsageError("--compare", "this is one run", str(root), "Give the folder of a sweep over several seeds.")
    if len(folders) > 1:
        raise UsageError("--compare", "several sweeps here", str(root), f"Give one: {', '.join(map(str, folders))}.")
    ended = read_runs(folders[0], keep=keep)
    going = [run for run in ended.unfinished if _has_begun(run)]
    begun = replace(ended, runs=(*ended.runs, *going))
    prepared = prepare(begun) if begun.runs else None
    cells = cells_of(begun, prepared) if prepared else []
    seeds_to_come = bool(going) and ended.study is not None and "seed" in ended.study.axes
    if not cells or not (seeds_to_come or any(len(cell.runs) >= FEWEST for cell in cells)):
        many = "no arm has two seeds at one learning rate, so there is nothing to average"
        raise UsageError("--compare", many, str(root), "Sweep some: bnlab sweep ... 'seed=range(0,6)'.")
    assert prepared is not None
    shown = [name for name in first_look(prepared.views[0], cells) if name]
    return Arms(begun=begun, ended=ended, cells=tuple(cells), shown=tuple(shown))


def cells_of(collection: Collection, prepared: Prepared) -> list[Cell]:
    """In the order of the arms, then of the rates. Of runs of one cell and seed, which differ in their probes, the one
    that measured most."""
    found: dict[tuple[str, float], dict[int, Run]] = {}
    for run in collection.runs:
        seeds = found.setdefault((prepared.arms[run.id], float(run.spec["optim.lr"])), {})
        seed = int(run.spec["seed"])
        if seed not in seeds or _rank(run) > _rank(seeds[seed]):
            seeds[seed] = run
    cells = []
    for arm, lr in sorted(found, key=lambda key: (prepared.order.index(key[0]), key[1])):
        runs = [run for _, run in sorted(found[arm, lr].items())]
        over = [run for run in runs if run.finished or run.diverged]
        kept = over if len(over) >= FEWEST else runs
        cells.append(Cell(arm=arm, lr=lr, runs=tuple(kept), going=len(runs) - len(over)))
    return cells


def first_look(view: View, cells: Sequence[Cell]) -> list[str]:
    """What a researcher would put side by side first: every arm at the largest rate at which all of them train; then,
    where there is room, the two arms that the study contrasts, each at its own best rate."""
    names = {(cell.arm, cell.lr): cell.name for cell in cells}

    def name(group: Group, lr: float | None) -> str:
        arm = ", ".join(part for part in (group.label, view.setting) if part)
        return names.get((arm, lr), "") if lr is not None else ""

    common, _ = view.common_rate()
    found = [name(group, common if common is not None else group.rates[0]) for group in view.groups]
    pair = view.pair[::-1] if view.pair is not None else view.groups[:FEWEST]
    best = [name(group, group.best_rate()) for group in pair]
    found = list(dict.fromkeys(found))[:MOST_SHOWN]
    with_best = list(dict.fromkeys([*found, *best]))
    return with_best if len(with_best) <= MOST_SHOWN else found


def _has_begun(run: Run) -> bool:
    """It has a spec and some of its journal, and did not fail."""
    known = run.status.get("status") in ("running", "interrupted") and "steps" in run.status
    return known and _size(run) > 0


def _rank(run: Run) -> tuple[bool, int]:
    return run.finished or run.diverged, _size(run)


def _size(run: Run) -> int:
    try:
        return RunFolder(run.path).journal_file.stat().st_size
    except OSError:
        return 0
