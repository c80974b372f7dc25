"""`bnlab plot`: any metric of runs against any key of their specs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bnlab.cli import RUNS, ConfigDir, Json, Runs, Style, Width, app, writing
from bnlab.core.errors import UsageError, nearest
from bnlab.terminal.signs import print_json, say

KINDS = ("svg", "png", "pdf", "csv")


@app.command()
def plot(
    runs: Runs = RUNS,
    y: Annotated[str, typer.Option("--y", metavar="METRIC", help="`bnlab list metrics` lists them.")] = "",
    x: Annotated[str, typer.Option("--x", metavar="KEY", help="Any key in which the runs differ.")] = "optim.lr",
    versus: Annotated[
        str | None, typer.Option("--map", metavar="KEY", help="A second key: a map over both, one for each arm.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="KEY", help="The key that tells lines apart; without it, as in a report.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="Only runs with norm=batch,none or optim.lr>=0.1.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the metric: of=train_loss target=0.2.")
    ] = None,
    log: Annotated[str, typer.Option(metavar="AXES", help="Logarithmic axes: none, x, y or xy.")] = "none",
    reference: Annotated[float | None, typer.Option(help="A number that is drawn as a dotted line.")] = None,
    every_run: Annotated[
        bool, typer.Option("--every-run", help="Average over learning rates; without it, each arm at its best.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .svg, .png, .pdf or .csv.  [default: below RUNS/plots]")
    ] = None,
    style: Style = "report",
    width: Width = None,
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A plugin whose code may run; may be repeated.")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Draw a metric of runs against an axis, a line per arm.

    Seeds, their mean and its 95 % interval. Without --out, SVG, PNG and CSV.

    bnlab plot runs/quickstart --y final_test_accuracy --x data.batch_size --by norm --out accuracy.pdf
    """
    from bnlab.config import own_plugins
    from bnlab.record.folder import write_atomically
    from bnlab.report.plot import Plot
    from bnlab.report.plot import plot as drawn
    from bnlab.report.style import Format
    from bnlab.report.write import pdf

    if not y:
        from bnlab.analysis.metrics import METRICS

        raise UsageError("--y", "missing", remedy=nearest("", METRICS.names()) or "See: bnlab list metrics")
    if out is not None and out.suffix[1:] not in KINDS:
        raise UsageError("--out", "must end in .svg, .png, .pdf or .csv", str(out))
    more: dict[str, Any] = {"log": log, "at": "every_run" if every_run else "best_lr"}
    if reference is not None:
        more["reference"] = reference
    asked = Plot(y=y, x=x, versus=versus, by=by, where=where or (), options=_options(option or []), more=more)
    figures = drawn(runs, asked, [*own_plugins(config_dir), *(plugin or ())], Format.of(style, width))
    files: dict[Path, bytes] = {}
    for number, figure in enumerate(figures):
        kinds = figure.files() | ({"pdf": pdf(figure.drawn)} if out and out.suffix == ".pdf" else {})
        if out is None:
            files |= {runs / "plots" / f"{figure.drawn.name}.{kind}": data for kind, data in kinds.items()}
        else:
            file = out if not number else out.with_stem(f"{out.stem}-{number + 1}")
            files[file] = kinds[out.suffix[1:]]
    with writing(runs, "--out" if out else "RUNS"):
        for file, data in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data)
    if as_json:
        print_json({"files": list(map(str, files)), "titles": [figure.drawn.title for figure in figures]})
        return
    for figure in figures:
        say(figure.drawn.title)
    for file in files:
        say(f"written    {file}")


def _options(words: list[str]) -> dict[str, Any]:
    """`of=train_loss target=0.2` as the metric's options."""
    from bnlab.core.safe import safe_yaml

    found: dict[str, Any] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise UsageError("--option", "must be KEY=VALUE", word)
        try:
            found[key] = safe_yaml(text)
        except ValueError as error:
            raise UsageError("--option", str(error), word) from None
    return found
