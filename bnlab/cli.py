"""The command line: the only importer of typer. What a command needs is imported inside it, so that help comes at
once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bnlab import __version__
from bnlab.errors import UsageError, nearest
from bnlab.terminal.signs import complain, say

USAGE = 2

app = typer.Typer(
    name="bnlab",
    help="A laboratory for one question: what does batch normalization really do to training?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data = typer.Typer(help="Data sets that do not come with bnlab.", no_args_is_help=True)
app.add_typer(data, name="data")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no live display.")]
ConfigDir = Annotated[
    Path | None, typer.Option(help="Your own configs, looked at before the packaged ones.  [default: ./configs]")
]
Runs = Annotated[Path, typer.Argument(metavar="[RUNS]", help="A folder of runs, or one run.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="bnlab")
    except UsageError as error:
        for line in error.lines:
            complain(line)
        raise SystemExit(USAGE) from None


def _version(wanted: bool) -> None:
    if wanted:
        say(f"bnlab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What goes before the command."""


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
    from bnlab.terminal import session

    stop = session.Stop()  # before the slow imports: a signal during them counts too
    from bnlab import config as configs

    given = tuple(overrides or ())
    if config is None:
        known = configs.available("experiments", configs.config_dirs(config_dir))
        raise UsageError("--config", "missing", remedy=nearest("", known))
    spec = configs.load(config, given, config_dir)
    if show:
        from bnlab.terminal import names

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
    from bnlab.terminal import session

    stop = session.Stop()
    from bnlab import config as configs
    from bnlab.terminal import sweeping

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


@app.command("runs")
def runs_command(
    runs: Runs = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only runs with norm=batch,none or optim.lr>=0.1; also != < > <="),
    ] = None,
    sort: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="In the order of a key; -KEY downwards.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Table of runs; of one run, its card.

    Runs can be chosen (--where, all conditions must hold) and sorted (--sort, the first key foremost, runs without a
    value last), by any column of the table, any key of the spec, any final metric: status, train_loss, test_accuracy,
    seed, optim.lr, model.depth, data, ...

    bnlab runs --where norm=batch --where 'optim.lr>=0.1' --sort -test_accuracy
    """
    from bnlab.terminal import runs as below
    from bnlab.terminal.selecting import Selection

    selection = Selection(where=where or (), sort=sort or ())
    below.show_runs(runs, as_json, selection if selection.keys() or where else None)


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
    from bnlab.terminal import evaluating

    evaluating.show(runs, questions, as_json, plain)


@app.command()
def report(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Rebuild verdicts, figures and report.html from the run folders alone."""
    from bnlab.terminal import reporting

    reporting.report(runs, as_json)


@app.command("list")
def list_command(
    kind: Annotated[
        str, typer.Argument(help="configs, studies, norms, models, data, optim, probes, metrics or figures.")
    ],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Names that there are, with a line on each."""
    from bnlab.terminal import names

    names.show_names(kind, config_dir, as_json)


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="The data set; `bnlab list data` names them.")],
    origin: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Take files that are there; download nothing.")
    ] = None,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Download a data set and check it, or take it from a folder."""
    from bnlab.terminal import fetching

    raise typer.Exit(fetching.show_fetch(name, origin, as_json, plain))


@app.command()
def verify(
    plugin: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check instead what your own file registers.")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Check, on this machine, the identities that batch normalization must fulfil."""
    if plugin is not None:
        from bnlab.terminal import plugin as of_plugin

        raise typer.Exit(of_plugin.show(plugin, config_dir, as_json))
    from bnlab.terminal import proof

    raise typer.Exit(proof.show(as_json))


@app.command()
def view(
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the link, open no browser.")] = False,
    run_filter: Annotated[
        str | None, typer.Option("--filter", metavar="REGEX", help="Show the runs it matches only.")
    ] = None,
    bind_all: Annotated[bool, typer.Option("--bind-all", help="Answer other machines too. There is no login.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="The arms of a sweep side by side, averaged over seeds.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="All tags of every run, of more than 50 runs too.")] = False,
) -> None:
    """Open TensorBoard on runs, coloured by norm."""
    if compare and full:
        raise UsageError("--full", "cannot go with --compare", remedy="A comparison has tags of its own.")
    if compare:
        from bnlab.view import compare as side_by_side

        side_by_side.compare(
            runs, port=port, open_browser=not no_open, run_filter=run_filter, bind_all=bind_all, say=say
        )
        return
    from bnlab.view import show

    opened = not no_open
    show.view(runs, port=port, open_browser=opened, run_filter=run_filter, bind_all=bind_all, full=full, say=say)


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash or zsh.")]) -> None:
    """Print what makes a shell complete commands, configs, keys, values and folders of runs.

    In ~/.bashrc: eval "$(bnlab completion bash)"

    In ~/.zshrc, after compinit: eval "$(bnlab completion zsh)"
    """
    from bnlab.terminal import completion as below

    say(below.script(shell))


@app.command("complete-line", hidden=True)
def complete_line(line: str, breaks: Annotated[str, typer.Argument()] = "") -> None:
    """What the scripts ask: words that can stand at the end of LINE."""
    from bnlab.terminal import completion as below

    below.show(typer.main.get_command(app), line, breaks)
