"""Run folders -> facts and series of their journals.

Keys of a run are flat: `seed`, `optim.lr`, `data.batch_size`. A group's choice stands under the group's own name:
`norm` is `batch`, `optim` is `sgd`; so studies write their axes and contrasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnlab.analysis.base import Value
from bnlab.analysis.metrics import METRICS
from bnlab.core.errors import UsageError
from bnlab.core.spec import canonical
from bnlab.core.study import Study
from bnlab.record.folder import find_runs
from bnlab.record.runs import Run, read_run

STUDY_FILE = "study.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The runs below `root`. `runs` have ended, finished or diverged, in the order of their paths, each id once;
    `unfinished` are running, failed, interrupted or unreadable; `copies` are further folders of a run."""

    root: Path
    study: Study | None
    study_provenance: Mapping[str, Any]
    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...]
    copies: tuple[Run, ...]
    keep: frozenset[str]
    _values: dict[tuple[str, str, str], Value] = field(default_factory=dict, repr=False)

    def value(self, run: Run, name: str, options: Mapping[str, Any]) -> Value:
        """The run metric of that name; computed once."""
        key = (run.id, name, canonical(options))
        if key not in self._values:
            self._values[key] = METRICS[name].figure(run, **options)
        return self._values[key]

    def place(self, run: Run) -> str:
        """The run's path below the root, with slashes."""
        return run.path.relative_to(self.root).as_posix()


def read_runs(root: Path, *, keep: Iterable[str] = ()) -> Collection:
    """Every run at or below `root`, and the study of `root` if it has one. `keep` names series of journals beside
    those that metrics read, to be read along with them.

    Raises:
        UsageError: no such directory, or a study.yaml that is none.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root))
    study, provenance = read_study(root / STUDY_FILE)
    runs: list[Run] = []
    unfinished: list[Run] = []
    copies: list[Run] = []
    known: set[str] = set()
    names = frozenset(keep) | METRICS.reads()
    for folder in find_runs(root):
        run = read_run(folder, names)
        if not run.ended:
            unfinished.append(run)
        elif run.id in known:
            copies.append(run)
        else:
            known.add(run.id)
            runs.append(run)
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


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
