"""What a step of one net costs in a stack of K nets, against a bare hand-written loop of one net; and whole sweeps.

    python benchmarks/lockstep.py [--json] [--turns N] [--sweeps]

Nets are 64-[w]x10-10 with ReLU on digits, batch 64, plain SGD, one thread. Contestants are processes that take turns of
64 steps of one net (turns.py), so of 64 / K steps of a stack; a ratio is the median over turns of a contestant's time
over the bare loop's in the same round. Where jax is installed, its `jit(vmap(step))` of 16 such nets is beside them,
against its own single step.

`--sweeps` runs `quickstart` whole and a part of `lr_smoothing` as a user does, with `launch.lockstep=auto` and `off` in
turn, and compares their seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from step import BATCH, LR, bare_loop
from torch import nn
from turns import Apart, race, ratio

from bnlab import config
from bnlab.core.registry import DATA
from bnlab.data.base import Dataset
from bnlab.record.folder import RunFolder
from bnlab.run import host
from bnlab.run.lockstep import Lockstep, Member
from bnlab.run.setup import assemble
from bnlab.run.train import Run, opened

Tick = Callable[[], None]
DEPTH, TURN = 10, 64
STACKS = (4, 16, 64)
WARM_UP = 130
"""Steps that are not timed: the first ones of a run are recorded densely."""
BUDGETS = {(32, "none"): 0.20, (32, "batch"): 0.20, (100, "none"): 0.60, (100, "batch"): 0.45}
"""Of a stack of 16."""
SWEEPS = {
    "quickstart": ("--config", "quickstart"),
    "lr_smoothing": ("--config", "lr_smoothing", "seed=range(8,10)"),
}


def bare_net(width: int, norm: str) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(DEPTH):
        layers.append(nn.Linear(width if index else 64, width, bias=norm != "batch"))
        if norm != "none":
            layers.append(nn.BatchNorm1d(width) if norm == "batch" else nn.LayerNorm(width))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(width, 10))


def digits() -> Dataset:
    data: Dataset = DATA.build("digits", config.load("deep_mlp", []).data.options)
    return data


def stack_loop(width: int, norm: str, nets: int, folder: Path) -> Callable[[Tick], None]:
    """`nets` runs as a sweep's worker trains them, without probes."""

    def body(tick: Tick) -> None:
        fixed = (f"model.width={width}", f"norm={norm}", f"optim.lr={LR}", "steps=1000000", "probes=none")
        with ExitStack() as closing:
            stack: Lockstep[int] | None = None
            for seed in range(nets):
                spec = config.load("deep_mlp", [*fixed, "probes.points=1", "probes.eval_points=1", f"seed={seed}"])
                run = closing.enter_context(opened(assemble(spec), RunFolder(folder / f"{width}-{norm}-{nets}-{seed}")))
                assert isinstance(run, Run)
                stack = stack or Lockstep(run.setup, nets)
                run.begin()
                stack.join(Member(key=seed, run=run, closing=ExitStack()))
            assert stack is not None
            for _ in range(WARM_UP):
                stack.step(lambda: None)
            while True:
                for _ in range(nets):
                    tick()
                stack.step(lambda: None)

    return body


def jax_ratio(width: int, norm: str, nets: int = 16) -> float:
    """The time of a net's step in `jit(vmap(step))` over that in `jit(step)`, both of jax."""
    import jax
    import jax.numpy as jnp

    sizes = [64, *[width] * DEPTH, 10]
    key = jax.random.PRNGKey(0)

    def start(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            {"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "g": jnp.ones(b), "b": jnp.zeros(b)}
            for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
        ]

    def loss(params: Any, x: Any, y: Any) -> Any:
        for index, layer in enumerate(params):
            x = x @ layer["w"]
            if index < DEPTH:
                axis = {"batch": 0, "layer": 1}.get(norm)
                if axis is not None:
                    x = (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + 1e-5) * layer["g"]
                x = jax.nn.relu(x + layer["b"])
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    def step(params: Any, x: Any, y: Any) -> Any:
        return jax.tree.map(lambda p, g: p - LR * g, params, jax.grad(loss)(params, x, y))

    x, y = jax.random.normal(key, (nets, BATCH, 64)), jnp.zeros((nets, BATCH), int)
    one, many = jax.jit(step), jax.jit(jax.vmap(step))
    single, stacked = start(key), jax.vmap(start)(jax.random.split(key, nets))

    def seconds(work: Callable[[], Any]) -> float:
        jax.block_until_ready(work())
        began = time.perf_counter()
        for _ in range(20):
            jax.block_until_ready(work())
        return time.perf_counter() - began

    rounds = [(seconds(lambda: many(stacked, x, y)), seconds(lambda: one(single, x[0], y[0]))) for _ in range(7)]
    return statistics.median(mine / theirs for mine, theirs in rounds) / nets


def contest(width: int, norm: str, turns: int, folder: Path) -> list[dict[str, Any]]:
    bare = Apart("bare loop", bare_loop(lambda: bare_net(width, norm), make_data=digits))
    stacks = [Apart(f"stack of {nets}", stack_loop(width, norm, nets, folder)) for nets in STACKS]
    race([bare, *stacks], turns=turns, steps=TURN)
    rows = []
    for nets, contestant in zip((1, *STACKS), (bare, *stacks), strict=True):
        rows.append(
            {
                "width": width,
                "norm": norm,
                "contestant": contestant.name,
                "step_ms": 1e3 * statistics.median(contestant.slices) / TURN,
                "ratio": ratio(contestant, bare),
                "budget": BUDGETS.get((width, norm)) if nets == 16 else None,
            }
        )
    if importlib.util.find_spec("jax"):
        rows.append({**rows[0], "contestant": "jax, vmap of 16", "step_ms": None, "ratio": jax_ratio(width, norm)})
    return rows


def sweeps(rounds: int) -> list[dict[str, Any]]:
    """Whole sweeps, on and off in turn."""
    rows = []
    for name, words in SWEEPS.items():
        took: dict[str, list[float]] = {"auto": [], "off": []}
        for turn in range(rounds):
            for lockstep in ("auto", "off") if turn % 2 else ("off", "auto"):
                with tempfile.TemporaryDirectory() as folder:
                    line = [sys.executable, "-m", "bnlab", "sweep", *words, f"launch.lockstep={lockstep}", "--plain"]
                    began = time.perf_counter()
                    subprocess.run([*line, "--runs", folder], check=False, capture_output=True)
                    took[lockstep].append(time.perf_counter() - began)
        ratios = [on / off for on, off in zip(took["auto"], took["off"], strict=True)]
        rows.append(
            {
                "sweep": name,
                "seconds": statistics.median(took["auto"]),
                "off": statistics.median(took["off"]),
                "ratio": statistics.median(ratios),
                "budget": 0.5,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--sweeps", action="store_true", help="whole sweeps in place of steps")
    arguments = parser.parse_args()
    host.prepare(1)
    rows: list[dict[str, Any]] = []
    if arguments.sweeps:
        rows = sweeps(min(arguments.turns, 3))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for width in (32, 100):
                for norm in ("none", "batch", "layer"):
                    rows += contest(width, norm, arguments.turns, Path(folder))
    if arguments.json:
        machine = host.provenance("cpu", 1)
        print(json.dumps({"rows": rows, "machine": {key: machine[key] for key in ("platform", "cores", "torch")}}))
        return
    table = Table(title="Sweeps, lockstep on against off" if arguments.sweeps else "A net's step, one thread")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{x:.2f}" if isinstance(x, float) else str(x or "") for x in row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
