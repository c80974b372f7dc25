"""Commands before the first run: data sets, identities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnlab.cli.app import ConfigDir, Json, Plain, app, data


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
        from bnlab.cli import plugin as of_plugin

        raise typer.Exit(of_plugin.show(plugin, config_dir, as_json))
    from bnlab.cli import verify as proof

    raise typer.Exit(proof.show(as_json))
