"""Commands that show what there is: runs, report, view, list, completion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnlab.cli.app import ConfigDir, Json, Runs, app
from bnlab.core.errors import UsageError
from bnlab.terminal.signs import say


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
    from bnlab.analysis.select import Selection
    from bnlab.cli import runs as below

    selection = Selection(where=where or (), sort=sort or ())
    below.show_runs(runs, as_json, selection if selection.keys() or where else None)


@app.command()
def report(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Rebuild verdicts, figures and report.html from the run folders alone."""
    from bnlab.cli import report as reporting

    reporting.report(runs, as_json)


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
        from bnlab.board.serve import compare as side_by_side

        side_by_side.compare(
            runs, port=port, open_browser=not no_open, run_filter=run_filter, bind_all=bind_all, say=say
        )
        return
    from bnlab.board.serve import show

    opened = not no_open
    show.view(runs, port=port, open_browser=opened, run_filter=run_filter, bind_all=bind_all, full=full, say=say)


@app.command("list")
def list_command(
    kind: Annotated[
        str, typer.Argument(help="configs, studies, norms, models, data, optim, probes, metrics or figures.")
    ],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Names that there are, with a line on each."""
    from bnlab.cli import list as names

    names.show_names(kind, config_dir, as_json)


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash or zsh.")]) -> None:
    """Print what makes a shell complete commands, configs, keys, values and folders of runs.

    In ~/.bashrc: eval "$(bnlab completion bash)"

    In ~/.zshrc, after compinit: eval "$(bnlab completion zsh)"
    """
    from bnlab.cli import completion as below

    say(below.script(shell))


@app.command("complete-line", hidden=True)
def complete_line(line: str, breaks: Annotated[str, typer.Argument()] = "") -> None:
    """What the scripts ask: words that can stand at the end of LINE."""
    from bnlab.cli import completion as below

    below.show(typer.main.get_command(app), line, breaks)
