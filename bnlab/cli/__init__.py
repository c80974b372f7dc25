"""The command line: the only importer of typer. What a command needs is imported inside it, so that help comes at
once."""

from __future__ import annotations

from collections.abc import Sequence

from bnlab.cli import running, showing, verifying
from bnlab.cli.app import app
from bnlab.core.errors import UsageError
from bnlab.terminal.signs import complain

__all__ = ["app", "main", "running", "showing", "verifying"]

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="bnlab")
    except UsageError as error:
        for line in error.lines:
            complain(line)
        raise SystemExit(USAGE) from None
