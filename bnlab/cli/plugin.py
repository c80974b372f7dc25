"""What `bnlab verify --plugin` shows: what was checked of a user's own entries, and in one line what is wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from bnlab.cli.verify import BROKEN, HOLDS
from bnlab.core.errors import UsageError
from bnlab.terminal.signs import print_json, say
from bnlab.terminal.tables import console

if TYPE_CHECKING:
    from bnlab.core.spec import RunSpec
    from bnlab.verify.findings import Finding

SMALL = {
    "quickstart": ("model.depth=2", "model.width=6", "optim.lr=0.05"),
    "cnn_digits": ("model.channels=[4,6]", "model.strides=[1,2]", "optim.lr=0.05"),
}
"""A dense net and a convolutional one."""
OF_A_MODEL: dict[str, tuple[str, ...]] = {
    "quickstart": ("optim.lr=0.05",),
    "deep_linear": ("data.size=150", "data.test_size=50", "optim.lr=1e-4"),
}
"""Images, and flat inputs."""
SHORT = ("steps=8", "data.batch_size=16", "probes.points=8", "probes.eval_points=4")
MEASURED = ("probes=standard", "probes.activations.batch=24", "probes.landscape.every=2")


def show(file: str, config_dir: Path | None, as_json: bool) -> int:
    """Check what the file registers; the exit code.

    Raises:
        UsageError: a file that is not there, that raises an error, or that registers nothing.
    """
    from bnlab.core.registry import load_plugin, load_plugins
    from bnlab.run import host

    host.prepare(1)
    start = time.perf_counter()
    load_plugins([])  # what installed packages bring is not this file's
    brought = load_plugin(file)
    if not brought:
        remedy = "Put @NORMS.register('my_norm') above its constructor; see docs/plugins.md."
        raise UsageError("--plugin", "registers nothing", file, remedy)
    checked = [finding for registry, name in brought for finding in _checked(registry.group, name, file, config_dir)]
    broken = [finding for finding in checked if not finding.ok]
    if as_json:
        rows = [{"entry": it.entry, "check": it.check, "ok": it.ok, "why": it.why} for it in checked]
        print_json({"contract": rows})
    else:
        say_table(checked)
        count = f"{len(checked) - len(broken)} of {len(checked)} checks hold"
        say(f"{count}, {time.perf_counter() - start:.1f} s")
        for line in dict.fromkeys(f"{finding.entry}: {finding.why}" for finding in broken):
            say(line)
    return BROKEN if broken else HOLDS


def _checked(group: str, name: str, file: str, config_dir: Path | None) -> Iterator[Finding]:
    from bnlab.verify.contract import contract
    from bnlab.verify.findings import Finding

    try:
        dense, convolution = trials(group, name, file, config_dir)
    except UsageError as error:
        yield Finding(entry=f"{group}={name}", check="options", why=str(error))
        return
    yield from contract(group, name, dense, convolution)


def trials(group: str, name: str, file: str, config_dir: Path | None) -> list[RunSpec]:
    """A short run of a dense net and one of a convolutional one, with the entry in it and the options that training
    would give it: from the user's YAML, or else from its constructor.

    Raises:
        UsageError: an option without a value, a YAML that cannot be read.
    """
    from bnlab import config

    specs = []
    for experiment, small in (OF_A_MODEL if group == "model" else SMALL).items():
        quoted = file.replace("\\", "\\\\").replace("'", "\\'")
        overrides = [f"{group}={name}", f"plugins=['{quoted}']", *SHORT, *small]
        overrides += MEASURED if group != "probes" else ()
        specs.append(config.load(experiment, overrides, config_dir))
        if group == "probes" and name not in specs[-1].probes.options:
            raise UsageError(
                f"probes={name}", f"does not have {name}", remedy=f"Add one/{name}@{name} to its defaults."
            )
    return specs


def say_table(findings: Iterable[Finding]) -> None:
    """Every check, and whether it holds."""
    table = Table(box=None, pad_edge=False)
    for head in ("entry", "checked", ""):
        table.add_column(head, overflow="fold")
    for finding in findings:
        sign = Text("ok", style="green") if finding.ok else Text("BROKEN", style="bold red")
        table.add_row(Text(finding.entry), Text(finding.check), sign)
    console(sys.stdout).print(table)
