"""What each probe costs: training steps per measurement.

    python benchmarks/probes.py [--json] [--rounds N] [--net mlp|cnn] [--no-twins]

One contestant takes plain training steps; another for each probe takes the same steps of the same net, all of them
measured by that probe alone, as a run's observer does it. They take turns in one process and one thread (turns.py), and
are timed in seconds of the processor, which a busy machine disturbs less. The cost is the median over rounds of

    (seconds of a measured step - seconds of a plain step) / seconds of a plain step

so it has all that measuring takes: the taps, the copy of the weights, both halves of the probe. Writing the record is
not in it. A probe's row says in which presets it is with those options, and at every how many measured steps (`:n`).

Beside it the slow twin that the tests compare with (tests/probes/twins.py), in float64, timed once.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from step import BATCH, DATA_KEYS, LR, Tick
from turns import Contestant

from bnlab import config
from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.data.base import Batches
from bnlab.net.wrap import site_shapes
from bnlab.run import host
from bnlab.run.observe import UNWATCHED, Watch
from bnlab.run.setup import Setup, assemble

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "probes"))
from twins import TWINS, Moment

PRESETS = ("economy", "standard", "full")
TURN_S = 0.2
"""About how long a turn is to be: so many steps of a cheap probe, a single one of a dear probe."""
LARGEST_HESSIAN, MOST_VALUES = 5_000, 20_000_000
"""A twin that would need more is not tried: rows of a matrix written out, numbers in Python's lists."""


@dataclass(frozen=True)
class Entry:
    """A probe with the options of some presets."""

    probe: str
    options: dict[str, Any]
    presets: str


def entries(net: str) -> Iterator[Entry]:
    """Every registered probe, with each set of options that a preset gives it; its defaults, if no preset has it."""
    trees = {preset: config.load("deep_mlp", [f"model={net}", f"probes={preset}"]).tree() for preset in PRESETS}
    for probe in PROBES.names():
        found: dict[str, tuple[dict[str, Any], list[str]]] = {}
        for preset, tree in trees.items():
            if (given := tree["probes"].get(probe)) is not None:
                options = {key: value for key, value in given.items() if key != "every"}
                where = found.setdefault(json.dumps(options, sort_keys=True), (options, []))[1]
                where.append(f"{preset}:{given.get('every', 1)}")
        if not found:
            file = config.packaged_dir() / "probes" / "one" / f"{probe}.yaml"
            found[""] = (yaml.safe_load(file.read_text(encoding="utf-8")), [])
        for options, presets in found.values():
            yield Entry(probe, options | {"every": 1}, " ".join(presets))


def setup_of(net: str, probes: dict[str, Any], dtype: str = "float32") -> Setup:
    """The net of step.py, measured at every step by these probes."""
    tree: dict[str, Any] = config.load("deep_mlp", [f"model={net}", "probes=none", f"dtype={dtype}"]).tree()
    data = {key: value for key, value in tree["data"].items() if key in DATA_KEYS}
    tree |= {"steps": 10**7, "data": data | {"name": "noise_images", "batch_size": BATCH, "normalize": "none"}}
    tree["optim"]["lr"] = LR
    tree["model"] |= {"depth": 10} if net == "mlp" else {}
    tree["probes"] = {"points": 10**7, "eval_points": 1, **probes}
    return assemble(RunSpec.from_tree(tree))


def one_step(setup: Setup, batches: Batches, step: int, *, measured: bool) -> dict[str, Any] | None:
    """A training step as the loop takes it, and what was measured of it, on the device."""
    batch = batches.at(step)
    watch = setup.observer.watch(step, LR, batch) if measured else UNWATCHED
    with watch:
        outputs = setup.net.module(batch.x)
    loss = setup.objective(outputs, batch.y)
    setup.optimizer.zero_grad()
    loss.backward()
    watch.before_update()
    setup.optimizer.step()
    return watch.raw() if isinstance(watch, Watch) else None


class Contest:
    """One contestant, and how many of its steps make a turn."""

    def __init__(self, name: str, setup: Setup, *, measured: bool) -> None:
        self.setup, self.measured = setup, measured
        self.steps = 1
        self.contestant = Contestant(name, self._body)

    def _body(self, tick: Tick) -> None:
        setup, pending = self.setup, []
        for step in range(10**9):
            tick()
            pending.append(one_step(setup, setup.batches, step, measured=self.measured))
            if self.measured and len(pending) >= self.steps:  # the second half, for all steps of the turn in a row
                for raw in pending:
                    setup.observer.metrics(raw, {})
                pending.clear()

    def turn(self) -> float:
        """Seconds a step."""
        start = time.process_time()
        self.contestant.turn(self.steps)
        return (time.process_time() - start) / self.steps


def contest(net: str, rounds: int, *, twins: bool) -> tuple[float, list[dict[str, Any]]]:
    """Milliseconds of a plain step, and a row for every probe."""
    found = list(entries(net))
    plain = Contest("plain step", setup_of(net, {}), measured=False)
    probes = [Contest(entry.probe, setup_of(net, {entry.probe: entry.options}), measured=True) for entry in found]
    everybody = [plain, *probes]
    for each in everybody:  # not counted: caches, buffers, threads
        each.turn()
        each.steps = max(1, round(TURN_S / each.turn()))
    times: dict[Contest, list[float]] = {each: [] for each in everybody}
    for index in range(rounds):
        shift = index % len(everybody)
        for each in [*everybody[shift:], *everybody[:shift]]:
            times[each].append(each.turn())
    for each in everybody:
        each.contestant.end()
    bare = statistics.median(times[plain])
    rows = []
    timed: set[str] = set()
    for entry, each in zip(found, probes, strict=True):
        costs = [mine / theirs - 1 for mine, theirs in zip(times[each], times[plain], strict=True)]
        row = {"net": net, "probe": entry.probe, "presets": entry.presets, "cost": statistics.median(costs)}
        if entry.probe not in timed and twins:
            timed.add(entry.probe)
            row |= twin_of(net, entry, bare)
        rows.append(row)
    return 1e3 * bare, rows


def twin_of(net: str, entry: Entry, bare: float) -> dict[str, Any]:
    """The twin's cost in the same unit, or why there is none."""
    setup = setup_of(net, {entry.probe: entry.options}, "float64")
    if (why := why_not(entry, setup)) is not None:
        return {"twin": None, "why": why}
    before = {name: value.clone() for name, value in setup.net.module.state_dict().items()}
    one_step(setup, setup.batches, 0, measured=False)
    moment = Moment(setup=setup, step=0, before=before, after=setup.net.module.state_dict())
    start = time.process_time()
    TWINS[entry.probe](moment)
    return {"twin": (time.process_time() - start) / bare}


def why_not(entry: Entry, setup: Setup) -> str | None:
    """What keeps a probe's twin from being timed."""
    if entry.probe not in TWINS:
        return "none"
    size = sum(param.numel() for param in setup.net.params.values())
    if entry.probe == "sharpness" and size > LARGEST_HESSIAN:
        return f"a Hessian of {size:,}^2"
    if entry.probe in ("bn_statistics", "shift_drift"):
        by_example = sum(math.prod(shape) for shape in site_shapes(setup.net, setup.dataset.input_shape)[:-1])
        values = min(entry.options["examples"], len(setup.dataset.train)) * by_example
        return f"{values / 1e6:.0f} million values" if values > MOST_VALUES else None
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--net", choices=["mlp", "cnn"], action="append")
    parser.add_argument("--no-twins", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    host.prepare(1)
    steps: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for net in arguments.net or ["mlp", "cnn"]:
        steps[net], found = contest(net, arguments.rounds, twins=not arguments.no_twins)
        rows += found
    machine = host.provenance("cpu", 1)
    if arguments.json:
        kept = {key: machine[key] for key in ("platform", "cores", "torch")}
        print(json.dumps({"step_ms": steps, "rows": rows, "machine": kept}))
        return
    table = Table(title=f"Training steps per measurement, one thread, {platform.machine()}, torch {machine['torch']}")
    for column in ("net", "probe", "in presets", "probe costs", "its twin"):
        table.add_column(column, justify="left" if column in ("net", "probe", "in presets") else "right")
    for row in rows:
        twin = f"{row['twin']:,.0f}" if row.get("twin") is not None else row.get("why", "")
        table.add_row(row["net"], row["probe"], row["presets"], f"{row['cost']:.2f}", twin)
    console = Console(width=120)
    console.print(table)
    console.print("One plain training step: " + ", ".join(f"{net} {ms:.2f} ms" for net, ms in steps.items()))


if __name__ == "__main__":
    main()
