"""Runs the cells of a grid: skips those that have ended, resumes interrupted ones, and trains no run twice.

Several sweeps may work on one folder at once. The lock of a run (folder.py) decides which sweep trains it; the others
use its result when it has ended, or take it over when its process has died. Only a process that trains imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import bnlab
from bnlab.board.tags import FULL_RUNS
from bnlab.core.errors import UsageError
from bnlab.core.registry import READ
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import RunSpec, canonical
from bnlab.core.study import ARM, Cell, Study, varying
from bnlab.grids.task import BUSY, REFUSED, Group, Task, train_group, train_isolated
from bnlab.launch.base import Detaching, Executor, Outcome
from bnlab.record.files import sweep_up
from bnlab.record.folder import ENDED, RunFolder, write_atomically
from bnlab.record.runs import State, Status, flat, state_to_resume

POLL_S = 0.25
"""Seconds between two looks at runs of other processes, once no other cells are left."""

SHARE = 32
"""At most so many cells are a worker's share, unless `launch.lockstep` is a number."""

LOOK_S, LOOK_SHARE = 0.5, 0.05
"""Seconds between two looks at runs that train at once in a process; the share of the time that looks may take, since
the disk may be a slow one that many share."""

DATA_TO_A_STEP = (
    *("name", "seed", "steps", "epochs", "eval_bn", "eval_batch_size", "probes", "launch"),
    *("model.init", "model.init_scale", "model.init_std"),
    *("data.label_noise", "data.normalize", "data.binarize", "data.shift", "data.shift_strength"),
    *("optim.lr", "optim.schedule", "optim.warmup_steps", "optim.drop_at", "optim.drop_factor"),
)
"""Settings in which runs that train at once may differ. That they suit each other is seen when they are set up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a cell. `error` says in one line why it has no result, where that is known."""

    cell: Cell
    folder: RunFolder
    state: State
    status: Status
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.state not in ENDED and self.error is not None

    @property
    def log(self) -> Path | None:
        """Its log, if there is one yet."""
        path = self.folder.path / "log.txt"
        return path if os.path.isfile(path) else None  # also where the folder may not be read


class Sweep:
    """The cells of a grid below `root`. `standings` has the state of each, by run id, in the order of the cells."""

    def __init__(
        self,
        cells: Sequence[Cell],
        root: Path,
        *,
        fresh: bool = False,
        retry_failed: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Reads the state of every cell."""
        self.fresh = fresh
        self.provenance = {"argv": sys.argv, **(provenance or {}), "axes": _axes(cells)}
        self.standings: dict[str, Standing] = {}
        self._has_failed, self._start_s = False, time.time()
        self._again = {cell.spec.id for cell in cells} if fresh else set()
        """Cells that are run although they have ended, unless another sweep has run them since this one started."""
        self._training: dict[int, list[str]] = {}  # the cells of groups that are running
        self._on_change: Callable[[Standing], None] = lambda standing: None
        self._alone: set[str] = set()  # kinds whose runs cannot be trained at once
        self._apart: set[str] = set()  # cells that were running in a process that ended
        self._look_at = 0.0
        for cell in cells:
            folder = RunFolder(root / cell.spec.folder)
            state, status = self._now(cell.spec.id, folder)
            error = str(status.get("error", "failed")) if state == "failed" else None
            if error is not None and retry_failed:
                self._again.add(cell.spec.id)
                state, error = "not started", None
            self.standings[cell.spec.id] = Standing(cell=cell, folder=folder, state=state, status=status, error=error)
        self._left = [key for key, standing in self.standings.items() if standing.state not in (*ENDED, "failed")]

    @property
    def failures(self) -> list[Standing]:
        """Cells that have no result, with the reason."""
        return [standing for standing in self.standings.values() if standing.failed]

    @property
    def recovered(self) -> list[str]:
        """A line for each file of a run that was damaged, and what was used in its place."""
        ran = [(one.folder.path, one.status.get("recovered", ())) for one in self.standings.values()]
        return [f"{path}: {line}" for path, lines in ran for line in lines]

    @property
    def left(self) -> list[Standing]:
        """Cells that wait or run."""
        return [self.standings[key] for key in self._left]

    def run(
        self,
        executor: Executor,
        *,
        fail_fast: bool = False,
        stopped: Callable[[], str | None] = lambda: None,
        tick: Callable[[], None] = lambda: None,
        on_change: Callable[[Standing], None] = lambda standing: None,
        on_wait: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Run the cells that are left, until none is, `stopped` returns a reason, or, with `fail_fast`, a run fails.

        `tick` is called several times a second, `on_change` with every cell whose state changes, and `on_wait` with
        the number of runs that only other processes train.
        """
        self._on_change = on_change

        def stop() -> bool:
            tick()
            self._look()
            return stopped() is not None or (fail_fast and self._has_failed)

        function = train_isolated if executor.isolated else functools.partial(train_group, stopped=stopped)
        while self._left:
            groups = self._groups(executor.workers)
            for outcome in executor.run(function, groups, on_start=self._started, stopped=stop):
                self._take(outcome)
            self._look(last=True)
            others = sum(self.standings[key].state == "running" for key in self._left)
            if others and not stop():
                on_wait(others)
            until = time.monotonic() + (POLL_S if others else 0)
            while self._left and not stop() and time.monotonic() < until:
                time.sleep(POLL_S / 10)
            if stop():
                return

    def submit(self, executor: Detaching) -> None:
        """Have the cells that are left run without this process."""
        executor.submit(train_isolated, self._groups(executor.workers))

    def _groups(self, workers: int) -> Iterator[Group]:
        """The cells that are left, for `workers` processes, in their order: one by one, or those that may train at once
        in equal shares. A share takes every n-th cell, so that workers have as many of every learning rate; and no
        kind is far ahead of another, so that a sweep that is stopped has the first seeds of all."""
        kinds: dict[str, deque[str]] = {}
        order = [(key, key if key in self._apart else self._kind(self.standings[key].cell.spec)) for key in self._left]
        for key, kind in order:
            kinds.setdefault(kind, deque()).append(key)
        for key, kind in order:
            keys, spec = kinds[kind], self.standings[key].cell.spec
            if not keys or keys[0] != key:  # taken already
                continue
            alone = kind in self._alone or spec.launch.lockstep == "off" or spec.device != "cpu"
            share = spec.launch.lockstep if isinstance(spec.launch.lockstep, int) else SHARE
            part = [keys.popleft() for _ in range(1 if alone else min(len(keys), workers * share))]
            for start in range(min(workers, len(part))):
                if tasks := tuple(self._tasks(part[start::workers])):
                    yield Group(tasks)

    def _kind(self, spec: RunSpec) -> str:
        """What the specs of a group have in common."""
        tree = spec.tree()
        for path in DATA_TO_A_STEP:
            *groups, name = path.split(".")
            inner = functools.reduce(lambda part, group: part[group], groups, tree)
            inner.pop(name, None)
        for name in ("momentum", "weight_decay"):  # an update has the term or not
            if name in tree["optim"]:
                tree["optim"][name] = bool(tree["optim"][name])
        return canonical(tree)

    def _tasks(self, keys: Sequence[str]) -> Iterator[Task]:
        """Cells that are left and that no other process trains. Each state is read again right before its task."""
        for key in keys:
            standing = self.standings[key]
            if key not in self._left:
                continue
            state, status = self._now(key, standing.folder)
            if state in (*ENDED, "failed"):
                self._settle(key, state, status, str(status.get("error", "failed")) if state == "failed" else None)
            elif state == "running":
                self._set(key, state, status)
            else:
                yield Task(
                    spec=standing.cell.spec,
                    folder=standing.folder,
                    fresh=self.fresh and key in self._again,
                    since=self._start_s,
                    plugins=dict(READ),
                    provenance=self.provenance,
                    profile="light" if len(self.standings) > FULL_RUNS else "full",
                )

    def _now(self, key: str, folder: RunFolder) -> tuple[State, Status]:
        """The state; for a cell to be run again, only a run since the start of this sweep counts."""
        if key in self._again and not folder.begun_since(self._start_s):
            return ("running" if folder.alive() else "not started"), {}
        return state_to_resume(folder)

    def _started(self, group: Group) -> None:
        keys = [task.spec.id for task in group.tasks if task.spec.id in self._left]
        if keys:
            self._training[id(group)] = keys
            self._set(keys[0], "running", {})

    def _look(self, *, last: bool = False) -> None:
        """Note what has become of the runs of groups that are still running; the `last` time, of all that were begun
        and have no outcome."""
        if not last and time.monotonic() < self._look_at:
            return
        start = time.monotonic()
        for key in itertools.chain.from_iterable(keys for keys in self._training.values() if last or len(keys) > 1):
            standing = self.standings[key]
            if key not in self._left:
                continue
            state, status = self._now(key, standing.folder)
            if state in (*ENDED, "failed"):
                self._settle(key, state, status, str(status.get("error", "failed")) if state == "failed" else None)
            elif state != standing.state:
                self._set(key, state, status)
        end = time.monotonic()
        self._look_at = end + max(LOOK_S, (end - start) / LOOK_SHARE)
        if last:
            self._training.clear()

    def _take(self, outcome: Outcome[Group]) -> None:
        tasks = outcome.item.tasks
        self._training.pop(id(outcome.item), None)
        found: dict[str, Status] = outcome.value or {}
        if 0 < len(found) < len(tasks) and outcome.error is None:
            self._alone.add(self._kind(tasks[0].spec))
        now = {key: self._now(key, task.folder) for task in tasks if (key := task.spec.id) in self._left}
        begun = [key for key, (state, _) in now.items() if state not in (*ENDED, "failed", "not started")]
        suspects = begun or [tasks[0].spec.id]
        for key, (state, status) in now.items():
            if key in found:
                self._take_one(key, found[key])
            elif state in (*ENDED, "failed"):
                self._settle(key, state, status, str(status.get("error", "failed")) if state == "failed" else None)
            elif outcome.error is None:
                self._set(key, state, status)
            elif outcome.whole or suspects == [key]:
                self._settle(key, state, status, outcome.error)
            else:  # where several were running, each goes on alone: which of them ended the process is seen then
                self._apart.update(suspects)
                self._set(key, state, status)

    def _take_one(self, key: str, found: Status) -> None:
        ended = found["status"]
        if ended == BUSY:
            self._set(key, "running", {})
        elif ended == REFUSED:
            self._settle(key, "not started", {}, found["error"])
        elif ended == "interrupted":
            self._again.discard(key)
            self._set(key, "interrupted", found)
        else:
            self._settle(key, ended, found, found.get("error"))

    def _settle(self, key: str, state: State, status: Status, error: str | None) -> None:
        """Remove the cell from those that are left."""
        self._left.remove(key)
        self._again.discard(key)
        self._has_failed |= error is not None
        self._set(key, state, status, error)

    def _set(self, key: str, state: State, status: Status, error: str | None = None) -> None:
        before = self.standings[key]
        self.standings[key] = Standing(cell=before.cell, folder=before.folder, state=state, status=status, error=error)
        self._on_change(self.standings[key])


def _axes(cells: Sequence[Cell]) -> list[str]:
    """The keys in which cells differ; of named arms, the settings that they stand for."""
    axes = varying(cell.values for cell in cells)
    if ARM not in axes:
        return axes
    return list(
        dict.fromkeys([*(key for key in axes if key != ARM), *varying(flat(cell.spec.tree()) for cell in cells)])
    )


def seconds(status: Status) -> float | None:
    """How many seconds the run took, if it has ended."""
    timing = status.get("timing")
    return timing.get("run_s") if isinstance(timing, Mapping) else None


STALE_S = 600.0
"""A part of a file beside the runs that is older was left by a sweep that was killed."""


def write_study(root: Path, study: Study, line: str, ids: Iterable[str]) -> None:
    """Write `study.yaml` beside the runs: the study, the command line, the ids of the runs of its grid, and other seeds
    that it had in earlier sweeps.

    Raises:
        UsageError: the file cannot be written.
    """
    grid = list(ids)
    provenance = {"bnlab": bnlab.__version__, "line": line, "claims": digests(study), "grid": " ".join(grid)}
    if earlier := _earlier_seeds(root / "study.yaml", study, grid):
        provenance["earlier_seeds"] = earlier
    text = yaml.safe_dump({**study.tree(), "provenance": provenance}, sort_keys=False, allow_unicode=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        sweep_up(root, older_s=STALE_S)
        write_atomically(root / "study.yaml", text.encode())
    except OSError as error:
        raise UsageError("--runs", (error.strerror or str(error)).lower(), str(root)) from None


def study_differs(file: Path, study: Study, ids: Iterable[str]) -> bool:
    """Whether `study.yaml` is not there, or has another grid, other claims, figures or titles than the study has now;
    of one that cannot be read, the report will say so."""
    if not file.is_file():
        return True
    try:
        tree = safe_yaml(file.read_bytes())
        grid = tree.pop("provenance", {}).get("grid")
        before = Study.from_tree(tree)
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    there = dataclasses.replace(before, axes={}, overrides={}), grid
    return there != (dataclasses.replace(study, axes={}, overrides={}), " ".join(ids))


def _earlier_seeds(file: Path, study: Study, ids: Iterable[str]) -> list[str]:
    """The seeds of the study's earlier sweeps, as they were written, where they were not these; a part of the grid
    before adds none."""
    try:
        tree = safe_yaml(file.read_bytes())
        made = tree.get("provenance", {})
        part = {*ids} <= {*str(made.get("grid", "")).split()}
        before = [*made.get("earlier_seeds", []), *([] if part else [tree["axes"]["seed"]])]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []
    return [seeds for seeds in dict.fromkeys(map(str, before)) if seeds != study.axes.get("seed")]


def digests(study: Study) -> dict[str, str]:
    """A digest of each claim. A run keeps those of its start, so that a claim edited later is recognized."""
    return {claim.name: claim.digest for claim in study.claims}
