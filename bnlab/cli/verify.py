"""`bnlab verify`: the identities of batch normalization on this machine, or the contract of a user's own entries."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bnlab.cli import FAILED, OK, ConfigDir, Json, app
from bnlab.cli.names import data
from bnlab.core.errors import UsageError
from bnlab.core.text import in_quotes
from bnlab.terminal.signs import print_json, say

if TYPE_CHECKING:
    from bnlab.core.registry import Entry, Registry
    from bnlab.core.spec import RunSpec
    from bnlab.verify.checks import Finding

SMALL = {
    "deep_mlp": ("model.depth=2", "model.width=6", "optim.lr=0.05"),
    "cnn_digits": ("model.channels=[4,6]", "model.strides=[1,2]", "optim.lr=0.05"),
}
"""A dense net and a convolutional one."""
OF_A_MODEL: dict[str, tuple[str, ...]] = {
    "deep_mlp": ("optim.lr=0.05",),
    "deep_linear": ("data.size=150", "data.test_size=50", "optim.lr=1e-4"),
}
"""Images, and flat inputs."""
SHORT = ("steps=8", "data.batch_size=16", "probes.points=8", "probes.eval_points=4")
MEASURED = ("probes=standard", "probes.activations.batch=24", "probes.landscape.every=2")


@app.command()
def verify(
    plugin: Annotated[
        str | None, typer.Option(metavar="FILE", help="Check what your own file registers instead.")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Check the identities of batch normalization on this machine."""
    raise typer.Exit(check_identities(as_json) if plugin is None else check_plugin(plugin, config_dir, as_json))


app.add_typer(data, name="data")  # last in the help


def check_identities(as_json: bool) -> int:
    """Check every identity; the exit code."""
    from bnlab.run import host
    from bnlab.terminal.tables import show_identities
    from bnlab.verify import identities

    host.prepare(1)
    start = time.perf_counter()
    keys = ("name", "left", "right", "error", "tolerance", "ok")
    checked = [{key: getattr(identity, key) for key in keys} for identity in identities()]
    broken = [row for row in checked if not row["ok"]]
    if as_json:
        print_json({"identities": checked})
    else:
        show_identities(checked)
        _say_count(len(checked), len(broken), "identities", start)
        for row in broken:
            say(f"broken: {row['name']}")
    return FAILED if broken else OK


def check_plugin(file: str, config_dir: Path | None, as_json: bool) -> int:
    """Check what a file registers; the exit code.

    Raises:
        UsageError: a file that does not exist, raises an error, or registers nothing.
    """
    from bnlab.core.registry import load_plugin, load_plugins
    from bnlab.run import host
    from bnlab.terminal.tables import show_plugin_checks

    host.prepare(1)
    start = time.perf_counter()
    load_plugins([])  # what installed packages register is not this file's
    brought = load_plugin(file)
    if not brought:
        remedy = "Put @NORMS.register('my_norm') above its constructor; see docs/plugins.md."
        raise UsageError("--plugin", "registers nothing", file, remedy)
    checked = [finding for registry, name in brought for finding in _checked(registry, name, file, config_dir, brought)]
    rows = [{"entry": it.entry, "check": it.check, "ok": it.ok, "why": it.why} for it in checked]
    broken = [row for row in rows if not row["ok"]]
    if as_json:
        print_json({"contract": rows})
    else:
        show_plugin_checks(rows)
        _say_count(len(checked), len(broken), "checks", start)
        for line in dict.fromkeys(f"{row['entry']}: {row['why']}" for row in broken):
            say(line)
    return FAILED if broken else OK


def _say_count(all_of_them: int, broken: int, what: str, start: float) -> None:
    say(f"{all_of_them - broken} of {all_of_them} {what} hold, {time.perf_counter() - start:.1f} s")


def _checked(
    registry: Registry[Any], name: str, file: str, config_dir: Path | None, brought: Sequence[tuple[Registry[Any], str]]
) -> Iterator[Finding]:
    """`brought`: all that the file registers. Its models are tried on its own data sets too."""
    from bnlab.core.spec import GROUPS
    from bnlab.verify.checks import Finding
    from bnlab.verify.contract import contract

    group = registry.group
    if group not in GROUPS:
        why = _undeclared(registry[name])
        yield Finding(entry=f"{group}={name}", check="declared", why=why)
        return
    try:
        dense, convolution = trials(group, name, file, config_dir)
        data = [f"data={own}" for other, own in brought if group == "model" and other.group == "data"]
        own_data = [trials(group, name, file, config_dir, choice)[0] for choice in data]
    except UsageError as error:
        yield Finding(entry=f"{group}={name}", check="options", why=str(error))
        return
    yield from contract(group, name, dense, convolution, own_data)


def _undeclared(entry: Entry) -> str | None:
    """What a metric or a figure does not say about itself: no run is made of them."""
    parameters = inspect.signature(entry.constructor).parameters.values()
    untyped = [it.name for it in parameters if it.kind is it.KEYWORD_ONLY and it.annotation is it.empty]
    blank = [field for field in ("meaning", "source", "unit") if getattr(entry, field, "given") == ""]
    return ", ".join([f"{name} has no type" for name in untyped] + [f"no {field}" for field in blank]) or None


def trials(group: str, name: str, file: str, config_dir: Path | None, *more: str) -> list[RunSpec]:
    """Short runs of a dense and of a convolutional net with the entry in it, and with the options that training would
    use: those of the user's YAML, else the defaults of the constructor.

    Raises:
        UsageError: an option without a value, a YAML that cannot be read.
    """
    from bnlab import config

    specs = []
    for experiment, small in (OF_A_MODEL if group == "model" else SMALL).items():
        overrides = [f"{group}={name}", f"plugins=[{in_quotes(file)}]", *SHORT, *small]
        if more:  # options of the experiment's data set are not those of another one
            overrides = [*(word for word in overrides if not word.startswith("data.")), *more]
        overrides += MEASURED if group != "probes" else ()
        specs.append(config.load(experiment, overrides, config_dir))
        if group == "probes" and name not in specs[-1].probes.options:
            remedy = f"Add one/{name}@{name} to its defaults."
            raise UsageError(f"probes={name}", f"does not have {name}", remedy=remedy)
    return specs
