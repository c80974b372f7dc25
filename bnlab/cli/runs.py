"""`bnlab runs`, `report` and `view`: what trained runs show. Only `runs --norms` imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli import FAILED, RUNS, By, ConfigDir, Csv, Json, Latex, Plain, Runs, Style, Width, app, writing
from bnlab.cli.table import (
    COLUMNS,
    MOST_NAMED,
    Form,
    chosen,
    counted,
    grouped_out,
    known,
    mapping,
    queued,
    read,
    short,
    some,
    watch,
)
from bnlab.core.errors import UsageError
from bnlab.core.text import count
from bnlab.terminal.signs import complain, print_json, say

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.record.folder import RunFolder
    from bnlab.record.runs import Run


@app.command()
def runs(
    runs: Runs = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only runs with norm=batch,none or optim.lr>=0.1; also != < > <="),
    ] = None,
    sort: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Sort by a key; -KEY sorts in descending order.")
    ] = None,
    norms: Annotated[
        bool, typer.Option("--norms", help="Of one run: gamma, beta, running mean and variance of every norm.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="With --norms: a plugin of the run, whose code then runs; may be repeated."),
    ] = None,
    by: By = None,
    of: Annotated[
        str | None, typer.Option(metavar="KEYS", help="With --by: what is averaged, test_accuracy,final_train_loss.")
    ] = None,
    csv: Csv = False,
    latex: Latex = False,
    watching: Annotated[
        bool, typer.Option("--watch", help="Show the table again and again until nothing runs, here or in SLURM.")
    ] = False,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """List runs in a table, or show everything about one run.

    --where selects runs (all conditions must hold); --sort sorts them (by the first key, then the next; runs without a
    value come last). Both take any column of the table, any key of the spec and any final metric: status, train_loss,
    test_accuracy, seed, optim.lr, model.depth, data, ...

    bnlab runs --where norm=batch --where 'optim.lr>=0.1' --sort -test_accuracy

    --by averages the runs that have ended; those that diverged are counted, and have no value.

    bnlab runs runs/quickstart --by norm,optim.lr --of test_accuracy --latex
    """
    form = Form(as_json=as_json, csv=csv, latex=latex)
    if of and not by:
        raise UsageError("--of", "cannot be used without --by", of)
    from bnlab.analysis.select import Selection
    from bnlab.launch._arrays import held_below
    from bnlab.record.folder import ENDED, RunFolder, find_runs, runs_below
    from bnlab.terminal import tables

    selection = Selection(where=where or (), sort=sort or ())
    if watching:
        if as_json or norms or by or form.other:
            raise UsageError("--watch", "cannot be used with --json, --csv, --latex, --by or --norms")
        watch(runs, selection, plain=plain)
        return
    of_one = not (where or sort or by or form.other) and RunFolder(runs).spec_file.is_file()
    if norms and not of_one:
        raise UsageError("--norms", "is of one run", str(runs), "Give the folder of one, without --where and --sort.")
    if norms:
        from bnlab.cli import norms as of_norms  # which imports torch

        shown = of_norms.norms(RunFolder(runs), plugin or ())
        (print_json if as_json else of_norms.show)(shown)
        return
    if of_one:
        shown = card(RunFolder(runs))
        (print_json if as_json else tables.show_card)(shown)
        if "problem" in shown:
            complain(shown["problem"])
        return
    held = held_below(runs)
    found = [known(folder) for folder in (find_runs if held else runs_below)(runs)]
    if by:
        ended = [found[index] for index in selection.of(found) if found[index]["status"] in ENDED]
        if not ended:
            raise UsageError("--by", "no run here has ended", str(runs), f"See: bnlab runs {runs}")
        grouped_out(ended, by, of, form)
        return
    rows, more = chosen(selection, found, differing=not as_json)
    if form.other:
        form.put(rows, [*COLUMNS, *more], [[short(value) for value in row.values()] for row in rows])
        return
    waiting = queued(held, found)
    if as_json:
        print_json({"runs": rows} | ({"queued": waiting} if waiting else {}))
    elif rows:
        tables.show_runs(rows, more=more)
    if not as_json and (waiting or any(row["status"] == "running" for row in rows)):
        say(counted(rows, waiting))
    elif not rows and not as_json:
        say(f"none of {len(found)} runs")
    for line in some(
        [str(one["problem"]) for one in found if "problem" in one], f"runs that cannot be read, in {runs}"
    ):
        complain(line)


def card(folder: RunFolder) -> dict[str, Any]:
    """Everything about one run."""
    from bnlab.record.findings import findings
    from bnlab.record.runs import age_s, read_run

    spec, status = read(folder)
    provenance = mapping(spec.pop("provenance", {}))
    files = {file.name: file.stat().st_size for file in sorted(folder.path.iterdir()) if file.is_file()}
    age, found = {"age_s": age_s(folder)}, {"findings": [asdict(one) for one in findings(read_run(folder))]}
    return {"run": str(folder.path), **status, **age, **found, "spec": spec, "provenance": provenance, "files": files}


@app.command()
def report(
    runs: Runs = RUNS,
    of_all: Annotated[
        bool, typer.Option("--gallery", help="One page over all studies below RUNS: RUNS/gallery/index.html.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A plugin whose code may run, for its metrics; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write into this folder, and nothing among the runs.")
    ] = None,
    style: Style = "report",
    width: Width = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Build verdicts, figures and report.html from runs.

    Of the plugins that runs name, only those run that are given here, or named by a study or an experiment of
    --config-dir; never the copies in run folders.

    With --gallery: the page over all studies that were run below RUNS. Reports that are older than their runs are built
    first; studies of --config-dir that were not run are listed.

    With --style paper: figures as PDF without title and footnote, verdicts and arms as LaTeX and CSV, in RUNS/paper.
    """
    if width and style != "paper":
        raise UsageError("--width", "needs --style paper", width, "The pictures of report.html have one width.")
    if of_all:
        if out is not None:
            raise UsageError("--out", "cannot be used with --gallery", str(out))
        if style != "report":
            raise UsageError("--style", "cannot be used with --gallery", style)
        _gallery(runs, config_dir, as_json)
        return
    from bnlab.config import own_plugins
    from bnlab.report.build import build

    if style != "report":
        _paper(runs, [*own_plugins(config_dir), *(plugin or ())], out or runs / "paper", style, width, as_json=as_json)
        return
    start = time.perf_counter()
    with writing(out or runs, "--out" if out else "RUNS"):
        built = build(runs, [*own_plugins(config_dir), *(plugin or ())], out)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {
                "report": str(built.path),
                "claims": [tree(verdict) for verdict in built.verdicts],
                "figures": list(built.figures),
                "failed": list(built.failed),
                "notes": list(built.notes),
                "runs": built.runs,
                "unfinished": [str(run.path) for run in built.unfinished],
            }
        )
    else:
        from bnlab.terminal.tables import show_ranking, show_verdicts

        if built.ranking and len(built.ranking.rows) > 1:
            show_ranking(built.ranking)
        show_verdicts(built.verdicts)
        for line in unfinished(built.unfinished, runs):
            say(line)
        say(f"report     {built.path}")
        say(f"made of    {count(built.runs, 'run')}, {count(len(built.figures), 'figure')}, in {seconds:.1f} s")
    for line in (*built.notes, *built.failed):
        complain(line)
    if built.failed:
        raise typer.Exit(FAILED)


def _paper(runs: Path, plugins: Sequence[str], to: Path, style: str, width: str | None, *, as_json: bool) -> None:
    from bnlab.report.paper import paper
    from bnlab.report.style import Format

    shape = Format.of(style, width)
    with writing(to, "--out"):
        files = paper(runs, plugins, to, shape)
    if as_json:
        print_json({"files": list(map(str, files))})
        return
    pictures = [file for file in files if file.suffix == ".pdf"]
    say(f"written    {count(len(pictures), 'figure')} as PDF and CSV, and tables as LaTeX and CSV, into {to}")


def _gallery(runs: Path, config_dir: Path | None, as_json: bool) -> None:
    from bnlab.cli.gallery import gallery

    with writing(runs, "RUNS"):
        made = gallery(runs, config_dir)
    if as_json:
        print_json({"gallery": str(made.path), "studies": list(made.studies), "failed": list(made.failed)})
    else:
        say(f"gallery    {made.path}")
        say(f"made of    {count(len(made.studies), 'study')}")
    for line in made.failed:
        complain(line)
    if made.failed:
        raise typer.Exit(FAILED)


def tree(verdict: Verdict) -> dict[str, Any]:
    """A verdict as --json has it."""
    return {
        "name": verdict.claim.name,
        "verdict": verdict.decision,
        "effect": verdict.effect,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "p": verdict.p,
        "n": verdict.n,
        "repeat": verdict.repeat,
        "why": verdict.why,
        "cautions": list(verdict.cautions),
    }


def unfinished(runs: Sequence[Run], root: Path) -> list[str]:
    """A line for each of the first runs that have not ended, and one that counts the rest.

    >>> unfinished([], Path("runs"))
    []
    """
    lines = []
    for run in runs[:MOST_NAMED]:
        step = run.status.get("step")
        at = f" at step {step}" if isinstance(step, int | float) and math.isfinite(step) else ""
        place = run.path.relative_to(root) if run.path != root else run.path
        lines.append(f"left out   {place}: {run.state}{at}")
    if len(runs) > MOST_NAMED:
        lines.append(f"left out   {len(runs) - MOST_NAMED} more that have not ended; see: bnlab runs {root}")
    return lines


@app.command()
def view(
    runs: Runs = RUNS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the link and open no browser.")] = False,
    run_filter: Annotated[
        str | None, typer.Option("--filter", metavar="REGEX", help="Show only the runs that match.")
    ] = None,
    bind_all: Annotated[bool, typer.Option("--bind-all", help="Serve other machines too. There is no login.")] = False,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--single",
            help="The arms of a sweep side by side, averaged over seeds, or every run by itself. Without either: the "
            "arms, where there are more than 20 runs.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All tags of every run, even of more than 50 runs.")] = False,
) -> None:
    """Open TensorBoard on runs, coloured by norm."""
    if compare and full:
        raise UsageError("--full", "cannot be used with --compare", remedy="A comparison has tags of its own.")
    from bnlab.board import serve

    serving = serve.Serving(port=port, open_browser=not no_open, run_filter=run_filter, bind_all=bind_all, say=say)
    if compare:
        serve.view_comparison(runs, serving)
    elif compare is None:
        serve.view(runs, serving, full=full)
    else:
        serve.view_runs(runs, serving, full=full)
