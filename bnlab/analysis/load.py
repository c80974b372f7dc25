"""Run folders -> facts and series of their journals.

Keys of a run are flat: `seed`, `optim.lr`, `data.batch_size`. A group's choice stands under the group's own name:
`norm` is `batch`, `optim` is `sgd`; so studies write their axes and contrasts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from bnlab.analysis.base import NOTHING, Figure, MeasuredRun, RunFacts, Series
from bnlab.analysis.metrics import METRICS
from bnlab.errors import UsageError
from bnlab.folder import ENDED, RunFolder, find_runs
from bnlab.spec import GROUPS, NOT_HASHED, canonical
from bnlab.study import Study

STUDY_FILE = "study.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The runs below `root`. `runs` have ended, finished or diverged, in the order of their paths, each id once;
    `unfinished` are running, failed, interrupted or unreadable; `copies` are further folders of a run."""

    root: Path
    study: Study | None
    study_provenance: Mapping[str, Any]
    runs: tuple[RunFacts, ...]
    unfinished: tuple[RunFacts, ...]
    copies: tuple[RunFacts, ...]
    keep: frozenset[str]
    _read: dict[str, MeasuredRun] = field(default_factory=dict, repr=False)
    _figures: dict[tuple[str, str, str], Figure] = field(default_factory=dict, repr=False)

    def measured(self, run: RunFacts) -> MeasuredRun:
        """The run with its series of the names in `keep`; its journal is read once."""
        if run.id not in self._read:
            journal = columns(RunFolder(run.path).journal_file, self.keep)
            self._read[run.id] = MeasuredRun(facts=run, journal=journal)
        return self._read[run.id]

    def series(self, run: RunFacts, name: str) -> Series:
        """One name of the run's journal. One that is not in `keep` costs a look at the whole file."""
        if name in self.keep:
            return self.measured(run).series(name)
        return columns(RunFolder(run.path).journal_file, {name}).get(name, NOTHING)

    def figure(self, run: RunFacts, name: str, options: Mapping[str, Any]) -> Figure:
        """The run metric of that name; computed once."""
        key = (run.id, name, canonical(options))
        if key not in self._figures:
            self._figures[key] = METRICS[name].figure(self.measured(run), **options)
        return self._figures[key]

    def place(self, run: RunFacts) -> str:
        """The run's path below the root, with slashes."""
        return run.path.relative_to(self.root).as_posix()

    def varying(self) -> dict[str, list[Any]]:
        """The keys that two runs differ in, and their values; not those that say where and how a run runs."""
        found: dict[str, dict[str, Any]] = {}
        for key in sorted({key for run in self.runs for key in run.spec}):
            values = {canonical(run.spec.get(key)): run.spec.get(key) for run in self.runs}
            if len(values) > 1:
                found[key] = values
        return {key: [values[text] for text in sorted(values)] for key, values in found.items()}


def load(root: Path, *, keep: Iterable[str] = ()) -> Collection:
    """Every run at or below `root`, and the study of `root` if it has one. `keep` names series of journals beside
    those that metrics read, to be read along with them.

    Raises:
        UsageError: no such directory, or a study.yaml that is none.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root))
    study, provenance = read_study(root / STUDY_FILE)
    runs: list[RunFacts] = []
    unfinished: list[RunFacts] = []
    copies: list[RunFacts] = []
    known: set[str] = set()
    for folder in find_runs(root):
        run = facts(folder)
        if run.status.get("status") not in ENDED or "steps" not in run.status:
            unfinished.append(run)
        elif run.id in known:
            copies.append(run)
        else:
            known.add(run.id)
            runs.append(run)
    names = frozenset(keep) | METRICS.reads()
    return Collection(
        root=root,
        study=study,
        study_provenance=provenance,
        runs=tuple(runs),
        unfinished=tuple(run for run in unfinished if run.id not in known),
        copies=tuple(copies),
        keep=names,
    )


def find_studies(root: Path) -> list[Path]:
    """The folders of studies at or below `root`, in the order of their paths."""
    return [file.parent for file in sorted(root.rglob(STUDY_FILE))]


def read_study(file: Path) -> tuple[Study | None, dict[str, Any]]:
    """The study and where it came from; None if there is no such file.

    Raises:
        UsageError: the file is not a study.
    """
    if not file.is_file():
        return None, {}
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError:
        raise UsageError(str(file), "not YAML", remedy="Sweep the study again.") from None
    if not isinstance(tree, dict):
        raise UsageError(str(file), "not a study", tree, "Sweep the study again.")
    provenance = tree.pop("provenance", None) or {}
    return Study.from_tree(tree), provenance


def facts(folder: RunFolder) -> RunFacts:
    """What the small files of a run say; a file that cannot be read says nothing, and the run counts as unfinished."""
    try:
        tree = yaml.load(folder.spec_file.read_text(encoding="utf-8"), Loader=_LOADER)
        status = json.loads(folder.status_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        tree, status = {}, {}
    tree = tree if isinstance(tree, dict) else {}
    provenance = tree.pop("provenance", None)
    return RunFacts(
        path=folder.path,
        id=run_id(folder.path, tree),
        spec=flat(tree),
        provenance=provenance if isinstance(provenance, dict) else {},
        status=status if isinstance(status, dict) and tree else {},
    )


def run_id(path: Path, tree: Mapping[str, Any]) -> str:
    """The id that the folder's name ends in, else a hash of the spec, so that a copy is known for one whatever its
    folder is called."""
    if found := re.fullmatch(r"seed=\d+-([0-9a-f]{10})", path.name):
        return found[1]
    hashed = {key: value for key, value in tree.items() if key not in NOT_HASHED}
    return hashlib.sha256((canonical(hashed) if hashed else str(path)).encode()).hexdigest()[:10]


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """
    >>> flat({"seed": 3, "norm": {"name": "batch", "eps": 1e-5}, "launch": {"checkpoint_s": 30}})
    {'seed': 3, 'norm': 'batch', 'norm.eps': 1e-05}
    """
    found: dict[str, Any] = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            else:
                found[f"{prefix}{key}"] = value

    walk({key: value for key, value in tree.items() if key not in NOT_HASHED}, "")
    return {key.removesuffix(".name") if key.removesuffix(".name") in GROUPS else key: found[key] for key in found}


def columns(file: Path, names: Iterable[str]) -> dict[str, Series]:
    """The series of these names that the journal has, in one pass.

    A record is flat, its step comes first, and few of its names are wanted: to look for those costs a fifth of
    parsing them all.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    data = data[: data.rfind(b"\n") + 1]  # what a kill left of a last line is no record
    step = b"0"
    steps: dict[bytes, list[bytes]] = {}
    values: dict[bytes, list[bytes]] = {}
    for name, text in _wanted(frozenset(names)).findall(data):
        if name == b"step":
            step = text
        else:
            steps.setdefault(name, []).append(step)
            values.setdefault(name, []).append(text)
    return {
        name.decode(): Series(np.array(_numbers(steps[name]), np.int64), np.array(_numbers(values[name]), np.float64))
        for name in values
    }


@cache
def _wanted(names: frozenset[str]) -> re.Pattern[bytes]:
    either = b"|".join(re.escape(name.encode()) for name in sorted(names))
    return re.compile(rb'"(step|%s)"\s*:\s*(\[[^\]]*\]|[^,}\n]*)' % either)


def _numbers(texts: list[bytes]) -> list[Any]:
    """As JSON has them; null is None, and NaN in an array."""
    numbers: list[Any] = orjson.loads(b"[" + b",".join(texts) + b"]")
    return numbers


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
