"""What the commands `train` and `sweep` do, for scripts and notebooks, and for the commands, which add displays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.record.folder import ENDED, NoRunsError, RunFolder
from bnlab.record.journal import Record
from bnlab.record.runs import Run, read_run, state_to_resume

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.core.conditions import Condition
    from bnlab.core.spec import RunSpec
    from bnlab.core.study import Cell, Study
    from bnlab.grids.ask import Asking
    from bnlab.grids.run import Standing, Sweep
    from bnlab.launch.base import Executor
    from bnlab.report.write import Built
    from bnlab.run.setup import Setup

Tick = Callable[[], str | None]


def train(config: str, *overrides: str, runs: Path | str = "runs", config_dir: Path | str | None = None) -> Run:
    """Train one run, or resume it, as `bnlab train --config CONFIG OVERRIDES` does, without a display.

    >>> run = bnlab.train("deep_mlp", "norm=none", "steps=100")  # doctest: +SKIP
    >>> run.final("test_accuracy"), run.series("train_loss").values[-1]  # doctest: +SKIP

    Raises:
        UsageError: an unknown config or key, a wrong value, a run that another process trains.
        RunFailedError: an error inside the run.
    """
    from bnlab.config import load as load_spec

    spec = load_spec(config, overrides, None if config_dir is None else Path(config_dir))
    folder = RunFolder(Path(runs) / spec.folder)
    if state_to_resume(folder)[0] not in ENDED:
        train_spec(spec, folder)
    return read_run(folder)


def train_spec(
    spec: RunSpec,
    folder: RunFolder,
    *,
    fresh: bool = False,
    begin: Callable[[Setup], tuple[Callable[[Record], None], Tick]] | None = None,
) -> Mapping[str, Any]:
    """Train the run of a spec in this process; returns its final status. `begin` is called once it is assembled, and
    returns what to call with every record, and before every step, for a reason to stop.

    Raises:
        UsageError: as `train`.
        RunFailedError: an error inside the run.
    """
    from bnlab.run import host
    from bnlab.run.setup import assemble
    from bnlab.run.train import train as train_run

    host.prepare(spec.threads)
    setup = assemble(spec)
    if begin is None:
        return train_run(setup, folder, fresh=fresh)
    listen, stopped = begin(setup)
    return train_run(setup, folder, fresh=fresh, listen=listen, stopped=stopped)


def sweep(
    config: str,
    *overrides: str,
    runs: Path | str = "runs",
    config_dir: Path | str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    on_change: Callable[[Standing], None] = lambda run: None,
) -> Swept:
    """Run the grid of a study, or resume it, judge its claims and write its report, as `bnlab sweep` does, without a
    display. Runs that have ended are skipped. In a script, call it below `if __name__ == "__main__":`, since runs are
    trained in processes of their own.

    >>> swept = bnlab.sweep("quickstart", "seed=range(0,3)")  # doctest: +SKIP
    >>> [(verdict.claim.name, verdict.decision) for verdict in swept.verdicts]  # doctest: +SKIP

    Args:
        config: a study, or an experiment for a grid of one's own.
        overrides: axes and changes, as typed: "norm=none,batch", "optim.lr=logspace(1e-3,1,4)".
        runs: the folder that run folders are written to.
        config_dir: configs of one's own.
        fresh: run those that have ended again.
        retry_failed: run those that failed again.
        on_change: called with every run whose state changes.

    Raises:
        UsageError: no such study, a claim that cannot be judged, a wrong value, a folder that cannot be written.
    """
    plan = planned(config, overrides, runs=runs, config_dir=config_dir, fresh=fresh, retry_failed=retry_failed)
    plan.write()
    plan.grid.run(plan.executor, on_change=on_change)
    asking = plan.asking
    missing = asking.run(plan.executor) if asking.left else []
    built = plan.report()
    failures = {str(one.folder.path): str(one.error) for one in plan.grid.failures}
    return Swept(
        root=plan.root,
        verdicts=tuple(built.verdicts) if built else (),
        failures=failures,
        notes=(*plan.grid.recovered, *missing, *(built.notes if built else ())),
        report=built.path if built else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """A sweep that has ended. `failures` says of each run without a result, by its folder, why."""

    root: Path
    verdicts: tuple[Verdict, ...]
    failures: Mapping[str, str]
    notes: tuple[str, ...]
    report: Path | None


@dataclass(kw_only=True)
class Planned:
    """A study with its grid, checked, before its runs."""

    study: Study
    cells: Sequence[Cell]
    runs: Path
    grid: Sweep
    executor: Executor
    each: Sequence[Condition]
    """Under which each net is asked."""
    plugins: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder of the study."""
        return self.runs / self.study.name

    @property
    def asking(self) -> Asking:
        """What the nets that have finished are still to be asked."""
        from bnlab.grids.ask import Asking

        return Asking(self.grid.standings.values(), self.each)

    @cached_property
    def differs(self) -> bool:
        """Whether study.yaml is not that of this study and grid."""
        from bnlab.analysis.load import STUDY_FILE
        from bnlab.grids.run import study_differs

        return study_differs(self.root / STUDY_FILE, self.study, self.grid.standings)

    def write(self, line: str = "") -> None:
        """Write study.yaml, where it says something else; `line` is the command that resumes the sweep.

        Raises:
            UsageError: what the nets cannot be asked, a folder that cannot be written.
        """
        from bnlab.grids.ask import refuse_unanswerable
        from bnlab.grids.run import write_study

        if self.grid.left or self.asking.left:
            refuse_unanswerable((cell.spec for cell in self.cells), self.each)
        if self.grid.left or self.differs:
            write_study(self.root, self.study, line, self.grid.standings)

    def report(self) -> Built | None:
        """The report over the study's runs; None where no run has ended.

        Raises:
            UsageError: it cannot be made.
        """
        from bnlab.report.build import build

        try:
            return build(self.root, self.plugins)
        except NoRunsError:
            return None


def planned(
    config: str,
    overrides: Sequence[str] = (),
    *,
    runs: Path | str = "runs",
    config_dir: Path | str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
) -> Planned:
    """Read a study and the state of its runs, and check everything that can be known before the first of them.

    Raises:
        UsageError: as `sweep`.
    """
    from bnlab.analysis.claims import check, check_reach
    from bnlab.config import load_study
    from bnlab.core.conditions import conditions
    from bnlab.grids.run import Sweep, digests
    from bnlab.launch.base import executor

    study, cells = load_study(config, overrides, None if config_dir is None else Path(config_dir))
    plugins = list(dict.fromkeys(file for cell in cells for file in cell.spec.plugins))
    check(study, plugins)
    typed = {override.partition("=")[0].lstrip("+~") for override in overrides}
    check_reach(study, cells, typed)
    if study.figures:
        from bnlab.report.figures import check_figures

        check_figures(study, cells, typed)
    provenance = {"claims": digests(study)} if study.claims else {}
    return Planned(
        study=study,
        cells=cells,
        runs=Path(runs),
        executor=executor(cells[0].spec),
        grid=Sweep(cells, Path(runs), fresh=fresh, retry_failed=retry_failed, provenance=provenance),
        each=conditions(study.ask),
        plugins=plugins,
    )
