"""The application, and the options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnlab import __version__
from bnlab.terminal.signs import say

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
