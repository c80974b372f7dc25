"""Commands that run nets: train, sweep, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnlab.cli.app import ConfigDir, Json, Plain, app
from bnlab.core.errors import UsageError, nearest


@app.command()
def train(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the experiment: norm=none optim.lr=1"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The experiment; `bnlab list configs` names them.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    config_dir: ConfigDir = None,
    as_json: Json = False,
    plain: Plain = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again from step 0, whatever is there.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved spec, and train nothing.")] = False,
) -> None:
    """Train one run, or go on with it from where it stopped."""
    from bnlab.cli import train as session

    stop = session.Stop()  # before the slow imports: a signal during them counts too
    from bnlab import config as configs

    given = tuple(overrides or ())
    if config is None:
        known = configs.available("experiments", configs.config_dirs(config_dir))
        raise UsageError("--config", "missing", remedy=nearest("", known))
    spec = configs.load(config, given, config_dir)
    if show:
        from bnlab.cli import list as names

        names.show_spec(spec.tree(), spec.id, configs.config_dirs(config_dir), as_json)
        return
    typed = session.Typed(
        config=config,
        overrides=given,
        runs=runs,
        config_dir=config_dir,
        as_json=as_json,
        plain=plain,
        fresh=fresh,
    )
    raise typer.Exit(session.train(spec, typed, stop))


@app.command()
def sweep(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="Axes and changes: norm=none,batch 'seed=range(0,6)' steps=500"),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The study, or an experiment for a grid of your own.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    config_dir: ConfigDir = None,
    as_json: Json = False,
    plain: Plain = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all again from step 0, whatever is there.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and their states (with --json, their lines); run nothing.")
    ] = False,
    expect_verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Exit with 4 where a claim is decided otherwise than in this YAML or JSON."),
    ] = None,
) -> None:
    """Run a grid: what is finished is skipped, what was interrupted goes on."""
    from bnlab.cli import train as session

    stop = session.Stop()
    from bnlab import config as configs
    from bnlab.cli import sweep as sweeping

    given = tuple(overrides or ())
    if config is None:
        dirs = configs.config_dirs(config_dir)
        known = {**configs.available("studies", dirs), **configs.available("experiments", dirs)}
        raise UsageError("--config", "missing", remedy=nearest("", known))
    study, cells = configs.load_study(config, given, config_dir)
    typed = sweeping.SweepTyped(
        config=config,
        overrides=given,
        runs=runs,
        config_dir=config_dir,
        as_json=as_json,
        plain=plain,
        fresh=fresh,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        dry_run=dry_run,
        expect=expect_verdicts,
    )
    raise typer.Exit(sweeping.sweep(study, cells, typed, stop))


@app.command()
def evaluate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="One run, or a folder of runs.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUES]...", help="eval_bn=batch eval_batch_size=2,64 data.shift=blur ..."),
    ] = None,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Ask trained nets again: under a shift of the test data, with other statistics. Trains and writes nothing."""
    from bnlab.config.questions import load_questions

    questions = load_questions(tuple(overrides or ()))
    from bnlab.cli import evaluate as evaluating

    evaluating.show(runs, questions, as_json, plain)
