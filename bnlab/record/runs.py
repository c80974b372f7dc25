"""Reads runs from their folders, and decides the state of a run. No torch here.

Keys of a run's spec are flat: `seed`, `optim.lr`, `data.batch_size`. The choice of a group has the group's name: `norm`
is `batch`, `optim` is `sgd`. Axes and contrasts of studies use the same keys.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bnlab.core.spec import GROUPS, NEWER, NOT_HASHED, canonical
from bnlab.core.study import varying
from bnlab.core.text import leaves, typed
from bnlab.record.folder import ENDED, BrokenError, RunFolder, find_runs
from bnlab.record.journal import NOTHING, Series, columns, first_record, last_record

State = Literal["not started", "running", "interrupted", "failed", "finished", "diverged", "unreadable"]
Status = Mapping[str, Any]


DIVERGED_ABOVE = 1e3
"""A loss that is not finite, or above this many times the first step's, is a divergence (as in Bjorck et al. 2018)."""


def is_divergence(loss: float | None, first: float) -> bool:
    """Whether a loss shows that training has diverged; `first` is that of the first step."""
    return loss is None or not math.isfinite(loss) or loss > DIVERGED_ABOVE * first


def state_of(folder: RunFolder) -> tuple[State, Status]:
    """The current state of a run, and its last written status. `finished` and `diverged` runs have ended. A run with a
    living owner is `running`, whatever its status says; one whose process has died is `interrupted`."""
    try:
        status = folder.status()
    except BrokenError:
        return "unreadable", {}
    written: Any = status.get("status")
    if written in ENDED:
        return written, status
    if folder.alive():
        return "running", status
    if written == "failed":
        return "failed", status
    if written in ("running", "interrupted"):
        return "interrupted", status
    return ("unreadable" if status else "not started"), status


def state_to_resume(folder: RunFolder) -> tuple[State, Status]:
    """The same, for who has the spec: a run whose status or spec cannot be read counts as interrupted, since training
    it again from its last checkpoint writes both as they were."""
    state, status = state_of(folder)
    if state == "unreadable" or (state in ENDED and folder.problem()):
        return ("running" if folder.alive() else "interrupted"), {}
    return state, status


@dataclass(frozen=True, kw_only=True, eq=False)  # without slots, for `diverged`
class Run:
    """A run as read from its folder: `spec` flat, `status` as last written. `keep` names the series that are read from
    the journal together, in one pass."""

    path: Path
    id: str
    spec: Mapping[str, Any]
    provenance: Mapping[str, Any]
    status: Status
    keep: frozenset[str] = frozenset()
    problem: str | None = None
    """Why it cannot be read."""
    damage: list[str] = field(default_factory=list, repr=False)
    """What of its journal was left out."""
    answer: Mapping[str, Any] | None = None
    """What the net answers under the conditions that `spec` has, such as `test_accuracy`, of a run as it was asked."""
    _series: dict[str, Series] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def state(self) -> State:
        """Its current state."""
        return state_of(self.folder)[0]

    @property
    def finished(self) -> bool:
        return self.status.get("status") == "finished" and not self.diverged

    @cached_property
    def diverged(self) -> bool:
        """Training diverged, or the final loss is a divergence: earlier versions call such a run finished."""
        if self.status.get("status") != "finished":
            return self.status.get("status") == "diverged"
        metrics, first = self.status.get("metrics") or {}, self.series("train_loss").values
        return "train_loss" in metrics and is_divergence(metrics["train_loss"], first[0] if len(first) else math.inf)

    @property
    def ended(self) -> bool:
        """It finished or diverged: it has a result."""
        return self.status.get("status") in ENDED and "steps" in self.status

    @property
    def dead(self) -> bool:
        """It finished, and is no better than chance."""
        return self.finished and bool(self.status.get("dead", False))

    @property
    def trains(self) -> bool:
        """It finished, and is better than chance."""
        return self.finished and not self.dead

    @property
    def steps(self) -> int:
        """Its budget of training steps."""
        return int(self.status["steps"])

    @property
    def step(self) -> int:
        """Training steps done."""
        return int(self.status.get("step", self.steps))

    @property
    def lr(self) -> float:
        return float(self.spec["optim.lr"])

    @property
    def seed(self) -> int:
        return int(self.spec["seed"])

    def final(self, name: str) -> float:
        """A final measurement of status.json, such as `test_accuracy`; NaN if there is none."""
        value = (self.status.get("metrics") or {}).get(name)
        return math.nan if value is None else float(value)

    def series(self, name: str) -> Series:
        """One measurement of the journal; empty if it was not measured. One that is not in `keep` costs a pass over the
        whole file."""
        if name not in self._series:
            wanted = self.keep if name in self.keep else frozenset({name})
            found = columns(self.folder.journal_file, wanted, self.damage)
            self._series.update({each: found.get(each, NOTHING) for each in wanted})
        return self._series[name]

    def spaced(self, name: str) -> Series:
        """The same, at the equally spaced steps alone: the first steps are measured more densely, and a median over all
        would count them more than the rest."""
        raw, points = self.series(name), self.spec.get("probes.points")
        kept = raw.steps % math.ceil(self.steps / points) == 0 if isinstance(points, int) else raw.steps >= 0
        return Series(raw.steps[kept], raw.values[kept])

    def measured(self, prefix: str = "") -> list[str]:
        """The names in the first record of its journal that begin with `prefix`, in the record's order."""
        return [name for name in first_record(self.folder.journal_file) if name.startswith(prefix)]


def read_run(folder: RunFolder, keep: frozenset[str] = frozenset()) -> Run:
    """The run in a folder. A file that cannot be read counts as empty, and the run as not ended."""
    state, status = state_of(folder)
    try:
        tree, problem = folder.read_spec(), folder.problem() if state == "unreadable" else None
    except BrokenError as error:
        tree, problem = {}, str(error)
    newer = {f"{group}.{key}": value for group, key, value in NEWER if group in tree}
    provenance = tree.pop("provenance", None)
    return Run(
        path=folder.path,
        id=run_id(folder.path, tree),
        spec=newer | flat(tree),
        provenance=provenance if isinstance(provenance, dict) else {},
        status=status if tree else {},
        keep=keep,
        problem=problem,
    )


def run_id(path: Path, tree: Mapping[str, Any]) -> str:
    """The id at the end of the folder's name, else a hash of the spec, so that a copy is recognized under any folder
    name."""
    if found := re.fullmatch(r"seed=\d+-([0-9a-f]{10})", path.name):
        return found[1]
    hashed = {key: value for key, value in tree.items() if key not in NOT_HASHED}
    return hashlib.sha256((canonical(hashed) if hashed else str(path)).encode()).hexdigest()[:10]


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with dotted keys, without those that are not part of a run's identity.

    >>> flat({"seed": 3, "norm": {"name": "batch", "eps": 1e-5}, "launch": {"checkpoint_s": 30}})
    {'seed': 3, 'norm': 'batch', 'norm.eps': 1e-05}
    """
    found = dict(leaves({key: value for key, value in tree.items() if key not in NOT_HASHED}))
    return {key.removesuffix(".name") if key.removesuffix(".name") in GROUPS else key: found[key] for key in found}


def other_than(folder: RunFolder, tree: Mapping[str, Any], ids: Collection[str] = ()) -> str | None:
    """That a run which has not started is another one than the run most like it beside it, of the same arm, rate and
    seed, and by what; None where there is none. Runs of these `ids` do not count."""
    mine, found = flat(tree), []
    for other in find_runs(folder.path.parent) if not os.path.exists(folder.spec_file) else []:
        if run_id(other.path, {}) in ids:
            continue
        theirs = flat(other.spec())
        keys = [key for key in varying([mine, theirs]) if key != "plugins" and key in mine and key in theirs]
        if theirs.get("seed") == mine["seed"]:
            words = ", ".join(f"{key}={typed(theirs[key])}" for key in keys[:3]) + ", ..." * (len(keys) > 3)
            found.append((len(keys), f"another run than {other.path}, which has {words or 'other plugins'}"))
    return min(found)[1] if found else None


def progress_of(folder: RunFolder) -> dict[str, Any]:
    """The step and training loss of the last record, for a run that has not ended."""
    last = last_record(folder.journal_file)
    return {name: last[name] for name in ("step", "train_loss") if name in last}


def age_s(folder: RunFolder) -> float:
    """Seconds since the run last wrote."""
    times = []
    for file in (folder.status_file, folder.journal_file, folder.spec_file):
        try:
            times.append(os.stat(file).st_mtime)
        except OSError:
            continue
    return max(0.0, time.time() - max(times, default=time.time()))
