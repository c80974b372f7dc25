"""What a training step costs with bnlab, against a bare hand-written loop of the same net.

    python benchmarks/step.py [--json] [--turns N] [--net mlp|cnn]

All contestants train the same net on the same data, each with one thread in a process of its own, taking turns of 100
steps (turns.py); ratios are medians over turns of a contestant's time over the bare loop's in the same round. A run of
2,000 steps with the default 200 points measures every 10 steps; the denser measurements of a run's first steps fall
into the first turn, which is not counted. The test set is evaluated at step 0 only, since the bare loop evaluates
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from turns import Apart, race, ratio

from bnlab import config
from bnlab.core.registry import DATA
from bnlab.core.spec import DataSpec, RunSpec
from bnlab.data.base import Dataset, Split
from bnlab.record.folder import RunFolder
from bnlab.run import host
from bnlab.run.setup import assemble
from bnlab.run.train import train

Tick = Callable[[], None]
BATCH, STEPS, LR, TURN = 64, 2000, 0.1, 100
DATA_KEYS = {field.name for field in dataclasses.fields(DataSpec)}
BUDGETS = {"mlp": {"none": 1.03, "economy": 1.10, "every step": 1.35}, "cnn": {"none": 1.03, "economy": 1.05}}


@DATA.register("noise_images")
def noise_images() -> Dataset:
    """6,400 images of noise, 1x28x28, with random labels: the time of a step does not depend on their content."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6400, 1, 28, 28, generator=generator)
    y = torch.randint(10, (6400,), generator=generator)
    return Dataset(train=Split(x, y), test=Split(x[:64], y[:64]), classes=10)


def bare_mlp() -> nn.Module:
    """784-[100]x10-10 with batch norm and ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(10):
        layers += [nn.Linear(100 if index else 784, 100, bias=False), nn.BatchNorm1d(100), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def bare_cnn(memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    """Convolutions 16, 16, 32, 32 with batch norm and ReLU, average pooling, a linear head; its weights channels last,
    as bnlab has them on a CPU."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 16, 1), (16, 16, 2), (16, 32, 1), (32, 32, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return net.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def bare_loop(
    make: Callable[[], nn.Module],
    each_step: Callable[[int, nn.Module], None] | None = None,
    make_data: Callable[[], Dataset] = noise_images,
) -> Any:
    """The loop as one would write it by hand; `each_step` is called after every backward pass."""

    def body(tick: Tick) -> None:
        torch.manual_seed(0)
        net, data = make(), make_data()
        x, y = data.train.x, data.train.y
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        for step in range(10**9):
            tick()
            position = step % (len(x) // BATCH)
            if position == 0:
                order = torch.randperm(len(x))
            chosen = order[position * BATCH : (position + 1) * BATCH]
            loss = F.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            if each_step is not None:
                each_step(step, net)
            optimizer.step()

    return body


def naive_loop(make: Callable[[], nn.Module], every: int, folder: Path) -> Any:
    """The same loop with what people often write: hooks that call `.item()`, and a SummaryWriter scalar for each
    figure."""
    from torch.utils.tensorboard import SummaryWriter

    now = {"step": 0}
    writer: Any = None

    def hooked() -> nn.Module:
        nonlocal writer
        writer = SummaryWriter(str(folder))  # here, since it starts a thread, and contestants are forked
        net = make()
        layers = [layer for layer in net if isinstance(layer, nn.Linear | nn.Conv2d)]  # type: ignore[attr-defined]
        for index, layer in enumerate(layers):

            def note(module: nn.Module, args: Any, output: torch.Tensor, index: int = index) -> None:
                if now["step"] % every == 0:
                    writer.add_scalar(f"mean/{index}", output.mean().item(), now["step"])
                    writer.add_scalar(f"var/{index}", output.var().item(), now["step"])

            layer.register_forward_hook(note)
        return net

    def gradients(step: int, net: nn.Module) -> None:
        if step % every == 0:
            for name, param in net.named_parameters():
                assert param.grad is not None
                writer.add_scalar(f"grad/{name}", param.grad.norm().item(), step)
        now["step"] = step + 1

    return bare_loop(hooked, gradients)


def bnlab_loop(net: str, probes: str, points: int, folder: Path, everything: bool = False) -> Any:
    """`bnlab train`, its whole loop with journal and events."""

    steps, every = 10**7, STEPS // points
    tree: dict[str, Any] = config.load("deep_mlp", [f"model={net}", f"probes={probes}"]).tree()
    data = {key: value for key, value in tree["data"].items() if key in DATA_KEYS}
    tree |= {"steps": steps, "data": data | {"name": "noise_images", "batch_size": BATCH, "normalize": "none"}}
    tree["optim"]["lr"] = LR
    tree["model"] |= {"depth": 10} if net == "mlp" else {}
    tree["probes"] |= {"points": steps // every, "eval_points": 1}
    if every == 1:
        del tree["probes"]["activations"]
        tree["probes"]["gradients"] |= {"updates": everything, "deltas": everything}
    spec = RunSpec.from_tree(tree)

    def body(tick: Tick) -> None:
        train(assemble(spec), RunFolder(folder), stopped=lambda: tick())

    return body


def contest(net: str, turns: int, folder: Path) -> list[dict[str, Any]]:
    """Every contestant on one net; a row for each."""
    make = {"mlp": bare_mlp, "cnn": bare_cnn}[net]
    contestants = [
        Apart("bare loop", bare_loop(make)),
        Apart("bnlab, probes=none", bnlab_loop(net, "none", 200, folder / "none")),
        Apart("bnlab, probes=economy", bnlab_loop(net, "economy", 200, folder / "economy")),
        Apart("bnlab, moments and gradient norms, every step", bnlab_loop(net, "economy", STEPS, folder / "every")),
        Apart("the same with update ratios and delta norms", bnlab_loop(net, "economy", STEPS, folder / "all", True)),
        Apart("hooks with .item(), every 10 steps", naive_loop(make, 10, folder / "naive10")),
        Apart("hooks with .item(), every step", naive_loop(make, 1, folder / "naive1")),
    ]
    if net == "cnn":
        first = bare_loop(lambda: bare_cnn(torch.contiguous_format))
        contestants.append(Apart("bare loop, channels first", first))
    race(contestants, turns=turns, steps=TURN)
    bare = contestants[0]
    budgets = BUDGETS[net]
    names = {"bnlab, probes=none": "none", "bnlab, probes=economy": "economy"}
    rows = []
    for contestant in contestants:
        key = names.get(contestant.name, "every step" if "moments and" in contestant.name else "")
        rows.append(
            {
                "net": net,
                "contestant": contestant.name,
                "step_ms": 1e3 * statistics.median(contestant.slices) / TURN,
                "ratio": ratio(contestant, bare),
                "budget": budgets.get(key),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the contestants of `contest`, as one JSON object or as a table."""
    machine = host.provenance("cpu", 1)
    if as_json:
        print(json.dumps({"rows": rows, "machine": {key: machine[key] for key in ("platform", "cores", "torch")}}))
        return
    table = Table(title=f"One training step, one thread, {platform.machine()}, torch {machine['torch']}")
    for column in ("net", "contestant", "ms a step", "ratio", "budget"):
        table.add_column(column, justify="left" if column in ("net", "contestant") else "right")
    for row in rows:
        budget = f"{row['budget']:.2f}" if row["budget"] else ""
        table.add_row(row["net"], row["contestant"], f"{row['step_ms']:.2f}", f"{row['ratio']:.2f}", budget)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--net", choices=["mlp", "cnn"], action="append")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    host.prepare(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for net in arguments.net or ["mlp", "cnn"]:
            rows += contest(net, arguments.turns, Path(folder) / net)
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
