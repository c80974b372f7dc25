"""`bnlab sweep`: a grid of runs, its failures, and its verdicts on the study's claims."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from bnlab import cli
from bnlab.cli.cells import list_cells, row, say_failures, states
from bnlab.core.errors import UsageError
from bnlab.core.text import command, count, file_size
from bnlab.terminal.signs import complain, is_screen, print_json, say, waiting

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.api import Planned
    from bnlab.core.study import Cell, Study
    from bnlab.grids.ask import Asking
    from bnlab.grids.run import Sweep
    from bnlab.launch.base import Executor
    from bnlab.report.write import Built
    from bnlab.terminal.progress import Tally

DECIDING_SEEDS = 6
"""With fewer seeds in two arms, no exact test can decide more than a direction."""

MOST_SIZED = 50
"""Run folders whose size a dry run takes for that of all."""


@cli.app.command()
def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="Axes and changes: norm=none,batch 'seed=range(0,6)' steps=500"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The study, or an experiment for a grid of your own.")
    ] = None,
    runs: cli.RunsDir = cli.RUNS,
    config_dir: cli.ConfigDir = None,
    as_json: cli.Json = False,
    plain: cli.Plain = False,
    quiet: cli.Quiet = False,
    fresh: cli.Fresh = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed runs again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their states (with --json, their lines); run nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the runs to a cluster and return; the same line collects them.")
    ] = False,
    expect_verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Exit with 4 if a verdict differs from the one in this YAML or JSON."),
    ] = None,
    all_studies: Annotated[
        bool, typer.Option("--all", help="Run every study, those first that answer a new statement in the least time.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --all: only studies that fit, such as 2h or 45min.")
    ] = None,
    statements: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="With --all: only studies of these statements, such as 3,17.")
    ] = None,
) -> None:
    """Run a grid of runs, or resume it. Runs that have ended are skipped."""
    stop = cli.Stop()  # before the slow imports: a signal during them counts too
    asked = Asked(
        overrides=tuple(overrides or ()), runs=runs, config_dir=config_dir, as_json=as_json, plain=plain, fresh=fresh,
        retry_failed=retry_failed, fail_fast=fail_fast, dry_run=dry_run, expect_verdicts=expect_verdicts, stop=stop,
        detach=detach, quiet=quiet,
    )  # fmt: skip
    if not all_studies:
        for option, value in (("--budget", budget), ("--statements", statements)):
            if value is not None:
                raise UsageError(option, "needs --all", value)
        if config is None:
            raise cli.no_config(config_dir, asked.overrides, "studies", "experiments")
        done = _sweep(config, asked)
        if as_json:
            print_json(done.tree)
        raise typer.Exit(done.code)
    if config is not None:
        raise UsageError("--config", "cannot be used with --all", config)
    if expect_verdicts is not None:
        raise UsageError("--expect-verdicts", "cannot be used with --all", str(expect_verdicts))
    _sweep_all(asked, budget, statements)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was typed, besides the study."""

    overrides: tuple[str, ...]
    runs: Path
    config_dir: Path | None
    as_json: bool
    plain: bool
    quiet: bool
    fresh: bool
    retry_failed: bool
    fail_fast: bool
    dry_run: bool
    expect_verdicts: Path | None
    stop: cli.Stop
    detach: bool

    @property
    def out(self) -> TextIO:
        """Where words for people go."""
        return cli.words_out(self.as_json, self.quiet)

    @property
    def flags(self) -> dict[str, bool]:
        """How a line to type shows what it does."""
        return {"json": self.as_json, "plain": self.plain, "quiet": self.quiet}

    @property
    def places(self) -> dict[str, Any]:
        """The options that every line to type has."""
        return {"runs": self.runs if self.runs != cli.RUNS else None, "config_dir": self.config_dir}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The exit code of a sweep, its object of --json, and its verdicts."""

    code: int
    tree: Mapping[str, Any]
    verdicts: Sequence[Verdict] = ()


def _sweep_all(asked: Asked, budget: str | None, numbers: str | None) -> None:
    """One study after the other, each as if it alone were swept; at the end a table of their verdicts, and the gallery
    of all that ran."""
    from bnlab.analysis.claims import facts
    from bnlab.cli.gallery import if_any
    from bnlab.config import config_dirs
    from bnlab.config.statements import plan, tally
    from bnlab.terminal.tables import show_tallies

    out = asked.out
    chosen = plan(config_dirs(asked.config_dir), cli.minutes_of(budget), cli.numbers_of(numbers))
    say(f"{count(len(chosen), 'study')}: {', '.join(one.name for one in chosen)}", out)
    trees, rows, failed = [], [], False
    for study in chosen:
        if asked.stop.reason is not None:
            break
        say(f"{study.name}: {study.title}".rstrip(": "), out)
        try:
            done = _sweep(study.name, asked)
        except UsageError as error:  # of this study, which must not cost the others
            complain(str(error))
            failed = True
            continue
        failed |= done.code == cli.FAILED
        trees.append(done.tree)
        counts = tally({verdict.claim.name: facts(verdict) for verdict in done.verdicts})
        rows.append((study.name, study.minutes, counts))
        if failed and asked.fail_fast:
            break
    if not asked.as_json and not asked.dry_run:
        show_tallies(rows, out)
    with cli.writing(asked.runs):
        page = None if asked.dry_run or asked.stop.reason is not None else if_any(asked.runs, asked.config_dir)
    if asked.as_json:
        print_json({"studies": trees, "gallery": str(page.path) if page else None})
    elif page:
        say(f"gallery  {page.path}", out)
    for line in page.failed if page else ():
        complain(line)
    if asked.stop.reason is not None:
        flags = {"budget": budget, "statements": numbers, **asked.flags}
        say(f"resume  {command('bnlab', 'sweep', '--all', *asked.overrides, **asked.places, **flags)}", out)
        raise typer.Exit(cli.INTERRUPTED)
    raise typer.Exit(cli.FAILED if failed else cli.OK)


def _sweep(config: str, asked: Asked) -> Done:
    """Run or resume one study, and judge it.

    Raises:
        UsageError: no such study, a claim that cannot be judged, a folder that cannot be written.
    """
    with waiting("loading ...", asked.out, plain=asked.plain):
        from bnlab import api
        from bnlab.analysis.claims import read_expected, unexpected
        from bnlab.launch.base import Detaching
        from bnlab.record.runs import other_than

    given, runs, stop, places, as_json = asked.overrides, asked.runs, asked.stop, asked.places, asked.as_json
    with waiting("reading the study ...", asked.out, plain=asked.plain):
        plan = api.planned(
            config, given, runs=runs, config_dir=asked.config_dir, fresh=asked.fresh, retry_failed=asked.retry_failed
        )
    study, cells, grid, each, workers = plan.study, plan.cells, plan.grid, plan.each, plan.executor
    expected = read_expected(asked.expect_verdicts, study) if asked.expect_verdicts else {}
    out, root, asking = asked.out, plan.root, plan.asking
    if isinstance(workers, Detaching):
        workers.say = lambda line: say(line, asked.out)
    elif asked.detach:
        raise UsageError("--detach", "runs end with this command", cells[0].spec.launch.name, "Use launch=slurm.")
    if asked.dry_run:
        most = len(cells) * len(each)
        listed = list_cells(study, grid, (asking.there, most), places, as_json)
        if not as_json:
            _say_cost(study, grid, bool(given), asked.out)
            _say_seeds(study, cells, asked.out)
        return Done(code=cli.OK, tree=listed)
    # The line that resumes the sweep: as it was typed, without --fresh and --retry-failed.
    flags: dict[str, Any] = {"fail_fast": asked.fail_fast, **asked.flags, "expect_verdicts": asked.expect_verdicts}
    again = command("bnlab", "sweep", "--config", config, *given, **places, **flags)
    _say_seeds(study, cells, out)
    lines = (other_than(one.folder, one.cell.spec.tree(), grid.standings) for one in grid.left)
    unanswered: list[str] = []
    left = bool(grid.left or asking.left)
    ready = left and _has_data(grid if grid.left else asking, asked.plain or as_json, stop, out)
    plan.write(again)
    if left:
        if line := next(filter(None, lines), None):  # one is as good as all
            say(line, out)
        if ready:
            # In this process a breakpoint needs the terminal, which a live display would take from it.
            live = not asked.plain and not as_json and is_screen(out) and workers.isolated
            _say_notes(grid, out)
            with cli.writing(root):
                if grid.left and asked.detach and isinstance(workers, Detaching):
                    grid.submit(workers)
                    say(f"follow   {command('bnlab', 'runs', str(root))} --watch\ncollect  {again}", out)
                    return Done(code=cli.OK, tree={"study": study.name, "submitted": len(grid.left), "again": again})
                if grid.left:
                    _run(grid, workers, live, asked.fail_fast, stop, out)
                asking = plan.asking
                unanswered = _ask(asking, workers, asked, out)
    else:
        if isinstance(workers, Detaching):
            workers.tidy(root)
        say(f"{count(len(cells), 'run')}, all ended, nothing to do (--fresh runs them again)", out)
    interrupted = stop.reason is not None and bool(grid.left or asking.there < asking.asked)
    say(f"{count(len(cells), 'run')}: {states(grid)}", out)
    if each:
        say(f"{asking.there} of {count(asking.asked, 'answer')}", out)
    built = None if interrupted else _reported(plan)
    verdicts, broken = (built.verdicts, built.failed) if built else ((), ())
    if not as_json:
        from bnlab.terminal.tables import show_ranking, show_verdicts

        if built and built.ranking and len(built.ranking.rows) > 1:
            show_ranking(built.ranking, out)
        show_verdicts(verdicts, out)
        if built:
            say(f"report  {built.path}", out)
    say_failures(grid.failures, again, places, out)
    changed = unexpected(expected, verdicts) if expected and not interrupted else []
    for line in (*grid.recovered, *unanswered, *(built.notes if built else ()), *broken, *changed):
        complain(line)
    from bnlab.cli.runs import tree

    claims = [tree(verdict) for verdict in verdicts]
    rows = [row(standing, places) for standing in grid.standings.values()] if as_json else []
    found: dict[str, Any] = {"study": study.name, "runs": rows, "claims": claims}
    found |= {"answers": [asking.there, asking.asked]} if each else {}
    found |= {"report": str(built.path) if built else None}
    if interrupted:
        say(f"resume  {again}", out)
        return Done(code=cli.INTERRUPTED, tree=found, verdicts=verdicts)
    failed = bool(grid.failures or grid.left or broken or unanswered)
    code = cli.FAILED if failed else cli.CHANGED if changed else cli.OK
    return Done(code=code, tree=found, verdicts=verdicts)


def _has_data(grid: Sweep | Asking, plain: bool, stop: cli.Stop, out: TextIO) -> bool:
    """Whether all data sets are there. Missing ones are downloaded once, before many runs need them."""
    from bnlab.cli.train import has_data
    from bnlab.grids.ask import Question

    left = [one.specs[0] if isinstance(one, Question) else one.cell.spec for one in grid.left]
    specs = {(spec.data.name, spec.plugins): spec for spec in left}
    return all(has_data(spec, out, plain, stop) for spec in specs.values())


def _say_notes(grid: Sweep, out: TextIO) -> None:
    """What the runs change in parts that are the user's own, each note once."""
    own = [one.cell.spec for one in grid.left if one.cell.spec.plugins]
    specs = {str((spec.model, spec.norm, spec.data)): spec for spec in own}
    if not specs:
        return
    from bnlab.run.setup import assemble

    notes: dict[str, None] = {}
    for spec in specs.values():
        with contextlib.suppress(Exception):  # of these runs alone, which will say it
            notes |= dict.fromkeys(assemble(spec).notes)
    for note in notes:
        say(note, out)


def _run(grid: Sweep, workers: Executor, live: bool, fail_fast: bool, stop: cli.Stop, out: TextIO) -> None:
    from bnlab.terminal.progress import TallyLines

    display: Tally
    at_once = None if hasattr(workers, "submit") else workers.workers  # a queue may start fewer
    if live:
        from bnlab.terminal.grid import LiveGrid

        display = LiveGrid(grid.standings.values(), at_once, out)
    else:
        display = TallyLines(grid.standings.values(), at_once, out)
    try:
        grid.run(
            workers, fail_fast=fail_fast, stopped=stop, tick=display.tick, on_change=display.tell, on_wait=display.wait
        )
    finally:
        display.close()


def _ask(asking: Asking, workers: Executor, asked: Asked, out: TextIO) -> list[str]:
    """Ask the nets what is not yet answered; a line for each that could not be asked."""
    from bnlab.terminal.progress import Bars

    if not asking.left or asked.stop.reason is not None:
        return []
    with Bars(out, plain=asked.plain or asked.as_json) as progress:
        return asking.run(workers, stopped=asked.stop, tick=lambda done, total: progress("answer", done, total))


def _reported(plan: Planned) -> Built | None:
    """The report over the study's runs; None where no run has ended: the failures are listed anyway.

    Raises:
        UsageError: it cannot be made, or written.
    """
    with cli.writing(plan.root):
        return plan.report()


def _say_cost(study: Study, grid: Sweep, changed: bool, out: TextIO) -> None:
    """About how long the runs that are left take, and how much of the disk, as far as runs of this grid or its study
    tell; and the least p that the seeds allow."""
    from bnlab.core.study import evenly
    from bnlab.record.folder import ENDED

    ended = [one for one in grid.standings.values() if one.state in ENDED and one.status.get("timing")]
    if not grid.left:
        pass
    elif ended:
        seconds = sum(one.status["timing"].get("run_s") or 0.0 for one in ended) * len(grid.left) / len(ended)
        some = [ended[index] for index in evenly(len(ended), MOST_SIZED)]  # a look at every file takes time
        files = [file.stat().st_size for one in some for file in one.folder.path.rglob("*") if file.is_file()]
        size = file_size(round(sum(files) * len(grid.left) / len(some)))
        say(
            f"about {seconds / 120:.2g} min on two workers and {size} of disk, as the {len(ended)} that have ended", out
        )
    elif study.minutes and not changed:
        say(f"about {study.minutes * len(grid.left) / len(grid.standings):.2g} min on two cores", out)
    else:
        say("time and disk are not known before a run of this grid has ended", out)
    seeds = len({one.cell.spec.seed for one in grid.standings.values()})
    if study.claims and seeds >= DECIDING_SEEDS:
        from bnlab.analysis.statistics import EXACT_UP_TO

        least = min(1.0, len(study.claims) * 2.0 ** -min(seeds, EXACT_UP_TO))
        say(f"with {seeds} seeds and {count(len(study.claims), 'claim')}, p is {least:.2g} at best", out)


def _say_seeds(study: Study, cells: Sequence[Cell], out: TextIO) -> None:
    from bnlab.analysis.statistics import claims_decidable

    seeds = len({cell.spec.seed for cell in cells})
    if study.claims and seeds < DECIDING_SEEDS:
        say(f"with {count(seeds, 'seed')} a claim gets a direction only; {DECIDING_SEEDS} or more seeds decide", out)
    elif len(study.claims) > (most := claims_decidable(seeds)):
        say(f"{seeds} seeds can decide {most} claims together, and there are {len(study.claims)}: use more seeds", out)
