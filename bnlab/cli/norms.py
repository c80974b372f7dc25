"""`bnlab runs RUN --norms`: what the norms of a trained net have learned, and what they have computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bnlab.core.conditions import under
from bnlab.core.errors import UsageError
from bnlab.core.text import number
from bnlab.record.folder import RunFolder
from bnlab.run import checkpoint, host
from bnlab.run.setup import assemble
from bnlab.terminal.signs import say
from bnlab.terminal.tables import show_norms

NAMES = {"weight": "gamma", "bias": "beta", "running_mean": "running mean", "running_var": "running variance"}


def norms(folder: RunFolder, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """The tensors of every norm in a run's checkpoint, per site: mean, standard deviation, smallest and largest over
    channels, the `values`, and whether the tensor is `learned` (a parameter, which gradients move) or computed from
    batches (a buffer). Counters are left out. `plugins` are the files whose code may run.

    Raises:
        UsageError: no checkpoint, a spec that cannot be read, a plugin that is not among `plugins`, or a checkpoint of
            another net.
    """
    if not folder.has_checkpoint:
        raise UsageError("--norms", "this run has no checkpoint", str(folder.path), "A run saves one at its end.")
    spec = under(folder.spec(), {})
    for file in spec.plugins:
        if Path(file).name not in [Path(one).name for one in plugins]:
            remedy = f"Its copy: --plugin {folder.copy(spec.plugins.index(file), file)}"
            raise UsageError("--norms", "runs the code of a plugin, so that it must be given", file, remedy)
    host.prepare(spec.threads)
    setup = assemble(replace(spec, plugins=folder.plugins(spec.plugins, plugins)))
    net = setup.net
    step, sites = checkpoint.restore_weights(folder, net.module, setup.steps), []
    for index, norm in net.every_norm.items():
        learned = dict(norm.named_parameters())
        tensors = {**learned, **{name: x for name, x in norm.named_buffers() if x.is_floating_point()}}
        site = net.sites[index].name if index < len(net.sites) else f"norm {index}"
        parts = [{"name": NAMES.get(name, name), "learned": name in learned} | _over(x) for name, x in tensors.items()]
        sites.append({"site": site, "parameters": sum(x.numel() for x in learned.values()), "tensors": parts})
    return {
        "run": str(folder.path),
        "step": step,
        "norm": spec.norm.name,
        "parameters": sum(x.numel() for x in net.module.parameters()),
        "sites": sites,
    }


def show(found: Mapping[str, Any]) -> None:
    """Print what `norms` found, a line for each tensor."""
    lines = []
    for of in found["sites"]:
        for part in of["tensors"]:
            values = [number(part[key], 4) for key in ("channels", "mean", "sd", "min", "max")]
            site = of["site"] if part is of["tensors"][0] else ""
            lines.append([site, part["name"], *values, "learned" if part["learned"] else "computed"])
    if lines:
        show_norms(lines)
    learned, norm = sum(of["parameters"] for of in found["sites"]), f"norm={found['norm']} at step {found['step']}"
    say(f"{norm}: {learned} of the net's {found['parameters']} parameters")


def _over(x: Tensor) -> dict[str, Any]:
    values = x.detach().flatten().to("cpu", torch.float64)
    sd = float(values.std(correction=0))
    found = {"mean": float(values.mean()), "sd": sd, "min": float(values.min()), "max": float(values.max())}
    return {"channels": len(values), **found, "values": values.tolist()}
