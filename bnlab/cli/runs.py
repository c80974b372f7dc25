"""`bnlab evaluate`, `runs`, `report` and `view`: what trained runs show. Only `evaluate` and `runs --norms`
import torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli import FAILED, RUNS, ConfigDir, Json, Plain, Quiet, Runs, app, words_out, writing
from bnlab.cli.table import chosen, counted, known, mapping, queued, read, status_of, watch
from bnlab.core.errors import UsageError
from bnlab.core.text import count
from bnlab.terminal.signs import complain, print_json, say

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.core.spec import RunSpec
    from bnlab.record.folder import RunFolder
    from bnlab.record.runs import Run

MOST_NAMED = 5
"""Runs that have not ended and are listed one by one."""


@app.command()
def evaluate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="One run, or a folder of runs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="eval_bn=batch eval_batch_size=2,64 data.shift=blur ..."),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A plugin that runs were made with, from where it is now; may be repeated."),
    ] = None,
    as_json: Json = False,
    plain: Plain = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate trained nets under other conditions.

    The test data may be shifted, and batch norm may use other statistics. Nothing is trained or written.
    """
    from bnlab.config.conditions import load_conditions

    conditions = load_conditions(overrides or ())
    from bnlab.core.conditions import under
    from bnlab.core.registry import read_plugin
    from bnlab.record.folder import BrokenError, runs_below
    from bnlab.run.answer import answers
    from bnlab.terminal.progress import Bars
    from bnlab.terminal.tables import show_answers

    folders = runs_below(runs)
    saved = [folder for folder in folders if folder.has_checkpoint]
    if not saved:
        raise UsageError("RUNS", "no run here has a checkpoint", str(runs), "A run saves one at its end.")
    given = plugin or []
    for file in given:
        read_plugin(file)
    specs: list[tuple[RunFolder, list[RunSpec]]] = []
    notes: set[str] = set()
    broken: list[BrokenError] = []
    for folder in saved:
        try:
            asked = [under(folder.read_spec(), condition) for condition in conditions]
        except BrokenError as error:  # of this run, which must not cost the others
            broken.append(error)
            continue
        files = asked[0].plugins
        plugins = folder.plugins(files, given)
        specs.append((folder, [replace(spec, plugins=plugins) for spec in asked]))
        if "plugins" not in folder.provenance():
            notes |= {f"{file}: used as it is now, since runs of an older bnlab keep no copy" for file in plugins}
        pairs = zip(files, plugins, strict=True)
        edited = [file for file, used in pairs if used not in (file, *given) and Path(file).is_file()]
        notes |= {f"{file}: edited since it was trained with; the copy that the run keeps is used" for file in edited}
    if others := {*given} - {file for _, of_run in specs for file in of_run[0].plugins}:
        raise UsageError("--plugin", "no run here has a plugin of this name", min(others))
    for file in dict.fromkeys(file for _, of_run in specs for file in of_run[0].plugins):
        complain(f"runs the code in {file}")
    found: list[dict[str, Any]] = []
    with Bars(words_out(True, quiet), plain=plain) as progress:
        progress("answer", 0, len(saved) * len(conditions))
        for folder, of_run in specs:
            run = {"run": str(folder.path), "status": status_of(folder)["status"]}
            try:
                for answer in answers(folder, of_run):
                    shift = {key: answer.pop(f"data.{key}") for key in ("shift", "shift_strength")}
                    found.append({**run, **shift, **answer})
                    progress("answer", len(found), len(saved) * len(conditions))
            except BrokenError as error:
                broken.append(error)
    if broken and not found:
        raise broken[0]
    for note in (*sorted(notes), *map(str, broken)):
        complain(note)
    left_out = [folder for folder in folders if folder not in saved]
    if as_json:
        print_json({"evaluations": found, "left_out": [str(folder.path) for folder in left_out]})
    else:
        show_answers(found)
        for folder in left_out:
            say(f"left out   {folder.path}: no checkpoint, {status_of(folder)['status']}")
    if broken:
        raise typer.Exit(FAILED)


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
    """
    from bnlab.analysis.select import Selection
    from bnlab.launch._arrays import held_below
    from bnlab.record.folder import RunFolder, find_runs, runs_below
    from bnlab.terminal import tables

    selection = Selection(where=where or (), sort=sort or ())
    if watching:
        if as_json or norms:
            raise UsageError("--watch", "cannot be used with --json or --norms")
        watch(runs, selection, plain=plain)
        return
    of_one = not where and not sort and RunFolder(runs).spec_file.is_file()
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
    rows, more = chosen(selection, found, differing=not as_json)
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


def some(lines: Sequence[str], what: str) -> list[str]:
    """The first lines, and one that counts the rest.

    >>> some(["a", "b"], "runs"), some(["a"] * 7, "runs")[-1]
    (['a', 'b'], '2 more runs')
    """
    left = len(lines) - MOST_NAMED
    return [*lines[:MOST_NAMED], *([f"{left} more {what}"] if left > 0 else [])]


def card(folder: RunFolder) -> dict[str, Any]:
    """Everything about one run."""
    from bnlab.record.runs import age_s

    spec, status = read(folder)
    provenance = mapping(spec.pop("provenance", {}))
    files = {file.name: file.stat().st_size for file in sorted(folder.path.iterdir()) if file.is_file()}
    age = {"age_s": age_s(folder)}
    return {"run": str(folder.path), **status, **age, "spec": spec, "provenance": provenance, "files": files}


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
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Build verdicts, figures and report.html from runs.

    Of the plugins that runs name, only those run that are given here, or named by a study or an experiment of
    --config-dir; never the copies in run folders.

    With --gallery: the page over all studies that were run below RUNS. Reports that are older than their runs are built
    first; studies of --config-dir that were not run are listed.
    """
    if of_all:
        if out is not None:
            raise UsageError("--out", "cannot be used with --gallery", str(out))
        _gallery(runs, config_dir, as_json)
        return
    from bnlab.config import own_plugins
    from bnlab.report.build import build

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
        bool, typer.Option("--compare", help="The arms of a sweep side by side, averaged over seeds.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="All tags of every run, even of more than 50 runs.")] = False,
) -> None:
    """Open TensorBoard on runs, coloured by norm."""
    if compare and full:
        raise UsageError("--full", "cannot be used with --compare", remedy="A comparison has tags of its own.")
    from bnlab.board import serve

    serving = serve.Serving(port=port, open_browser=not no_open, run_filter=run_filter, bind_all=bind_all, say=say)
    if compare:
        serve.view_comparison(runs, serving)
    else:
        serve.view_runs(runs, serving, full=full)
