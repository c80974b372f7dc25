"""The command line: the only importer of typer. One file a command; what a command needs is imported inside its
function, so that help is fast."""

from __future__ import annotations

import importlib

from bnlab.cli.app import main

__all__ = ["main"]

COMMANDS = ("train", "sweep", "evaluate", "runs", "report", "list", "complete", "verify")
"""Files of commands, in the order of the help."""

for _name in COMMANDS:
    importlib.import_module(f"{__name__}.{_name}")
