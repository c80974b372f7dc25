"""The runs and the study in a folder, and a table of them.

Keys of a run are flat: `seed`, `optim.lr`, `data.batch_size`. A group's choice has the group's own name: `norm` is
`batch`, `optim` is `sgd`; studies write their axes and contrasts in the same way.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.analysis.metrics import CONTROL, METRICS, MetricError, Value, about_answers, reads
from bnlab.core.conditions import DEFAULTS, Condition, conditions, of_run
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import digest, load_plugins
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import canonical
from bnlab.core.study import ARM, Study, varying
from bnlab.core.text import count
from bnlab.record.folder import find_runs, runs_below, write_atomically
from bnlab.record.runs import Run, read_run

if TYPE_CHECKING:
    from polars import DataFrame

STUDY_FILE = "study.yaml"
VERDICTS_FILE = "verdicts.json"
"""Verdicts as the last report found them; written, and not read by any report."""
FIRST_COLUMNS = ("norm", "optim.lr", "seed")
"""Of a spec, in a table of runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """The runs below `root`. `runs` have ended, finished or diverged, in the order of their paths, each id once;
    `unfinished` are running, failed, interrupted or unreadable; `copies` are further folders of a run; `others` counts
    runs in the study's folder that are not of the grid that was swept last. `no_plugins` says why plugins of the runs
    could not be loaded, `edited` which metrics and figures are others than runs began with. `asked` has each of `runs`
    once for each condition of the study's `ask`, or without one of its answers, with that condition in its spec;
    `unanswered` counts the answers that are missing."""

    root: Path
    study: Study | None = None
    study_provenance: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...] = ()
    copies: tuple[Run, ...] = ()
    others: int = 0
    no_plugins: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    asked: tuple[Run, ...] = ()
    unanswered: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    """By metric: why the summary lacks values of it."""
    _values: dict[tuple[str, str, str], Value] = field(default_factory=dict, repr=False)

    def value(self, run: Run, name: str, options: Mapping[str, Any]) -> Value:
        """The run metric of that name; computed once."""
        key = (run.id, name, canonical(options))
        if key not in self._values:
            self._values[key] = METRICS[name].value(run, **options)
        return self._values[key]

    def about(self, metric: str, options: Mapping[str, Any]) -> Collection:
        """With the runs that the metric is of: those that were asked, or each once."""
        return replace(self, runs=self.asked) if about_answers(metric, options) else self

    @property
    def apart(self) -> list[str]:
        """A line that counts `others`, if there are any."""
        what = f"{count(self.others, 'other run')} here, not of the grid that was swept last: bnlab runs {self.root}"
        return [what] if self.others else []

    @property
    def damage(self) -> list[str]:
        """A line for each run with a file that cannot be read, or of whose journal something was left out."""
        unread = [run.problem for run in self.unfinished if run.problem]
        return [*unread, *(f"{self.place(run)}/{line}" for run in self.runs for line in dict.fromkeys(run.damage))]

    def place(self, run: Run) -> str:
        """The run's path below the root, with slashes."""
        return run.path.relative_to(self.root).as_posix()


def read_runs(root: Path, *, keep: Iterable[str] = (), plugins: Iterable[str] = ()) -> Collection:
    """Every run at or below `root`, and the study of `root` if it has one. `keep` names measurements that are read from
    the journals together with those that metrics read. `plugins` are files whose code may run, since they bring
    metrics. No other code runs: not that of the plugins that a run names, nor that of the copies that it keeps.

    Raises:
        UsageError: no such directory, or a study.yaml that is not a study.
    """
    if not root.is_dir():
        raise UsageError("RUNS", "no such directory", str(root))
    study, provenance = read_study(root / STUDY_FILE)
    found = [read_run(folder) for folder in find_runs(root)]
    grid = provenance.get("grid")  # not in a study.yaml of an older bnlab
    ids = frozenset(grid.split()) if isinstance(grid, str) else None
    here = [run for run in found if ids is None or run.id in ids]
    others, found = len(found) - len(here), here
    no_plugins, edited = _load_plugins(found, plugins)
    names = frozenset(keep) | reads()  # after plugins, whose metrics read too
    found = [replace(run, keep=names) for run in found]
    if study and study.arms:
        found = [replace(run, spec={**run.spec, ARM: study.arm_of(run.spec)}) for run in found]
    runs: dict[str, Run] = {}
    for run in found:
        if run.ended:
            runs.setdefault(run.id, run)
    asked = [one for run in runs.values() for one in _asked(run, conditions(study.ask) if study else [])]
    return Collection(
        root=root,
        study=study,
        study_provenance=provenance,
        runs=tuple(runs.values()),
        unfinished=tuple(run for run in found if run.id not in runs),
        copies=tuple(run for run in found if run.ended and run is not runs[run.id]),
        others=others,
        no_plugins=no_plugins,
        edited=edited,
        asked=tuple(asked),
        unanswered=tuple(_unanswered(root, asked)),
    )


def _asked(run: Run, each: Sequence[Condition]) -> Iterator[Run]:
    """The run under each of the conditions, with its answer if it is there; without conditions, its answers."""
    known = run.folder.answers()
    wanted = of_run(run.spec, each or [{key: answer[key] for key in DEFAULTS} for answer in known.values()])
    for key, found in wanted.items():
        answer = known.get(key, {}).get("metrics")
        yield replace(run, id=f"{run.id} {key}", spec={**run.spec, **found}, answer=answer)


def _unanswered(root: Path, asked: Sequence[Run]) -> Iterator[str]:
    """A line that counts the missing answers of finished runs."""
    missing = [run for run in asked if run.answer is None and run.finished]
    if missing:
        place, checkpoint = missing[0].path.relative_to(root).as_posix(), missing[0].folder.checkpoint_file
        why = "not asked, sweep the study again" if checkpoint.is_file() else "not measured, it has no checkpoint"
        yield f"{len(missing)} of {count(len(asked), 'answer')} are missing; first {place}: {why}"


def _load_plugins(runs: Sequence[Run], plugins: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Load those of `plugins` that runs name, wherever they are now, and those of installed packages. Why others could
    not be loaded; a line for each that brings metrics or figures and is not what its runs were made with."""
    given = {Path(file).name: file for file in plugins}
    made_with: dict[str, list[str | None]] = {}
    for run in runs:
        digests = run.provenance.get("plugins") or ()
        for index, file in enumerate(map(str, run.spec.get("plugins") or ())):
            made_with.setdefault(file, []).append(digests[index] if index < len(digests) else None)
    problems, edited = [], []
    for name in ("", *made_with):
        file = given.get(Path(name).name, "")
        if name and not file:
            problems.append(f"{name}: no code that runs name is run; to run it, give --plugin {name}.")
            continue
        try:
            brought = load_plugins([file] if file else [])
        except UsageError as error:
            problems.append(str(error))
            continue
        others = sum(known not in (None, digest(file)) for known in made_with.get(name, ()))
        if others and any(registry.group in ("metric", "figure") for registry, _ in brought):
            of = f"{others} of {count(len(made_with[name]), 'run')}"
            edited.append(f"{name}: {of} began with another content of it; the report uses {file} as it is now")
    return tuple(problems), tuple(edited)


def read_study(file: Path) -> tuple[Study | None, dict[str, Any]]:
    """The study and where it came from; None if there is no such file.

    Raises:
        UsageError: the file is not a study.
    """
    if not file.is_file():
        return None, {}
    remedy = "Remove it, and sweep the study again."
    try:
        tree = safe_yaml(file.read_bytes())
        if not isinstance(tree, dict):
            raise UsageError(str(file), "not a study", tree, remedy)
        provenance = tree.pop("provenance", None) or {}
        return Study.from_tree(tree), provenance if isinstance(provenance, dict) else {}
    except UsageError as error:
        own = str(error).startswith(str(file))
        raise error if own else UsageError(str(file), str(error).rstrip("."), remedy=remedy) from None
    except ValueError as error:
        raise UsageError(str(file), f"not YAML: {error}", remedy=remedy) from None


def summary(collection: Collection) -> DataFrame:
    """A row for each run that ended, in the order of their paths: `run`, `id`, the keys they differ in, `status`,
    `dead`, `step`, `steps`, every metric of a run, and readings of the clock under `*_s`. A metric whose options a
    claim gives has them in its name: `steps_to(of=train_loss,smooth=5,target=0.2)`. Not measured is null. Where a value
    is a bound, a column `NAME.bound` says which.
    """
    import polars as pl  # slow to import, and only reports need it

    differing = sorted(set(varying(run.spec for run in collection.runs)) - set(FIRST_COLUMNS))
    metrics = _metric_columns(collection)
    rows = []
    for run in collection.runs:
        row: dict[str, Any] = {"run": collection.place(run), "id": run.id}
        row |= {key: _plain(run.spec.get(key)) for key in (*FIRST_COLUMNS, *differing)}
        row |= {
            "status": "diverged" if run.diverged else run.status["status"],
            "dead": bool(run.status.get("dead", False)),
        }
        row |= {"step": run.status.get("step"), "steps": run.status["steps"]}
        for column, (name, options) in metrics.items():
            try:
                value = collection.value(run, name, options)
            except MetricError as error:
                value = NOT_MEASURED
                collection.failed[name] = str(error)
            row[column] = value.value if math.isfinite(value.value) else None
            row[f"{column}.bound"] = value.bound
        row |= {key: value for key, value in run.status.get("timing", {}).items() if key.endswith("_s")}
        rows.append(row)
    frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    bounds = [name for name in (f"{column}.bound" for column in metrics) if name in frame.columns]
    return frame.drop([name for name in bounds if frame[name].null_count() == len(frame)])


def load(path: Path | str, plugins: Sequence[str] = ()) -> DataFrame:
    """A row for each run below `path` that has ended: the keys in which runs differ, status, every metric of a run, and
    times under `*_s`, as in summary.parquet of a report. Not measured is null.

    Raises:
        NoRunsError: no such directory, or no runs in it.
    """
    runs_below(Path(path))
    return summary(read_runs(Path(path), plugins=plugins))


def journals(path: Path | str, measurements: Iterable[str] | None = None) -> DataFrame:
    """A row for each value in the journals below `path`: `run` (its path), `step`, `site` (counted from 0; null where
    there is one value a step), `measurement`, `value`. `measurements` are names as `bnlab list measurements` has them;
    None: the losses.

    Raises:
        NoRunsError: no such directory, or no runs in it.
        UsageError: no run here has the measurement.
    """
    import numpy as np
    import polars as pl

    root = Path(path)
    names = ("train_loss", "test_loss") if measurements is None else tuple(measurements)
    runs = [read_run(folder, frozenset(names)) for folder in runs_below(root)]
    schema = {"run": pl.String, "step": pl.Int64, "site": pl.Int64, "measurement": pl.String, "value": pl.Float64}
    frames, there = [], set[str]()
    for run in runs:
        for name in names:
            steps, values = run.series(name)
            if not len(steps):
                continue
            there.add(name)
            sites = values.shape[1] if values.ndim > 1 else 1
            columns = {"step": np.repeat(steps, sites), "value": values.ravel()}
            if values.ndim > 1:
                columns["site"] = np.tile(np.arange(sites), len(steps))
            same: dict[str, str | None] = {"run": run.path.relative_to(root).as_posix(), "measurement": name}
            same |= {} if "site" in columns else {"site": None}
            whole = pl.DataFrame(columns).with_columns(**{key: pl.lit(value) for key, value in same.items()})
            frames.append(whole.select(pl.col(key).cast(kind) for key, kind in schema.items()))
    if measurements is not None and (missing := [name for name in names if name not in there]):
        known = {name for run in runs for name in run.measured()}
        raise UsageError("measurements", "no run here has it", missing[0], nearest(missing[0], known))
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


NOT_MEASURED = Value(math.nan)


def write_summary(collection: Collection, file: Path) -> None:
    """summary.parquet: equal runs give equal values in all columns but those of the clock."""
    buffer = io.BytesIO()
    summary(collection).write_parquet(buffer)
    write_atomically(file, buffer.getvalue())


def _metric_columns(collection: Collection) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Column -> run metric and its options: first the usual options, then those of the study's claims."""
    usual = {metric.name: metric.shown_with for metric in METRICS.entries() if metric.of == "run"}
    found = {name: (name, options) for name, options in usual.items() if options is not None}
    for claim in collection.study.claims if collection.study else ():
        name, options = claim.metric, claim.options
        if name in usual and options and canonical(options) != canonical(usual[name] or {}):
            if options.get("target") == CONTROL:  # depends on the control, so one run has no such number
                continue
            words = ",".join(f"{key}={options[key]}" for key in sorted(options))
            found[f"{name}({words})"] = (name, options)
    return found


def _plain(value: Any) -> Any:
    return canonical(value) if isinstance(value, list | dict) else value
