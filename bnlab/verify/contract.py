"""`bnlab verify --plugin`: what an entry must do, checked on a user's own. The tests hold bnlab's to the same.

Dense layers are checked on a multilayer perceptron, convolutions on a convolutional net; an entry that refuses one of
the two with a `UsageError` is checked on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bnlab.core.errors import UsageError
from bnlab.core.spec import RunSpec
from bnlab.run.setup import assemble
from bnlab.verify import norm_contract, run_contract
from bnlab.verify.findings import BrokenError, Finding, bits, findings, one_line, unlike
from bnlab.verify.norm_contract import KINDS, Layer


def contract(group: str, name: str, dense: RunSpec, convolution: RunSpec) -> Iterator[Finding]:
    """Every check of one entry, which is chosen in both specs: short runs, with a dense net and a convolutional one;
    of a model, on images and on flat inputs."""
    specs = {0: dense, 2: convolution}
    entry = f"{group}={name}"
    match group:
        case "norm":
            layers = [Layer(name=name, options=dense.norm.options, dims=dims) for dims in KINDS]
            yield from _of_norm(entry, layers, specs)
        case "probes":
            measured = run_contract.measured_by(name, dense.probes.options[name], [dense, convolution])
            yield from findings(entry, {"built": lambda case: case.build()}, measured)
            yield from findings(entry, run_contract.PROBE_CHECKS, measured)
        case _:
            yield from _of_others(entry, [dense, convolution])


def _of_norm(entry: str, layers: Sequence[Layer], specs: Mapping[int, RunSpec]) -> Iterator[Finding]:
    refused: dict[int, str] = {}
    for layer in layers:
        try:
            layer.build()
        except UsageError as error:
            refused[layer.dims] = one_line(error)
        except Exception as error:
            yield Finding(entry=entry, check="built", why=f"{KINDS[layer.dims]}: {one_line(error)}")
            return
    taken = [layer for layer in layers if layer.dims not in refused]
    yield Finding(entry=entry, check="built", why=None if taken else refused[0])
    if taken:
        yield from findings(entry, {name: _on_each_kind(check) for name, check in norm_contract.CHECKS.items()}, taken)
        yield from findings(entry, run_contract.CHECKS, [specs[layer.dims] for layer in taken])


def _on_each_kind(check: Callable[[Layer], None]) -> Callable[[Sequence[Layer]], None]:
    """The check of one layer, on all; the line names the kind of layer if it does not hold of all that there are."""

    def on_all(layers: Sequence[Layer]) -> None:
        lines: dict[str, str] = {}
        for layer in layers:
            try:
                check(layer)
            except Exception as error:
                lines[KINDS[layer.dims]] = one_line(error)
        if lines:
            kind, line = next(iter(lines.items()))
            raise BrokenError(line if len(lines) == len(layers) else f"{kind}: {line}")

    return on_all


def _of_others(entry: str, specs: Sequence[RunSpec]) -> Iterator[Finding]:
    """A model, a data set, an optimizer, on the first of the runs that it can be in: that it starts alike, and what
    holds of every run."""
    refusals = []
    for given in specs:
        try:
            spec = _with_a_fitting_loss(given)
        except Exception as error:
            refusals.append(one_line(error))
            continue
        yield Finding(entry=entry, check="built", why=None)
        yield from findings(entry, {"start": _starts_alike}, spec)
        yield from findings(entry, run_contract.CHECKS, [spec])
        return
    yield Finding(entry=entry, check="built", why=refusals[0])


def _with_a_fitting_loss(spec: RunSpec) -> RunSpec:
    try:
        assemble(spec)
    except UsageError as error:
        if not str(error).startswith("loss:"):
            raise
        spec = replace(spec, loss="mse")
        assemble(spec)
    return spec


def _starts_alike(spec: RunSpec) -> None:
    """Examples and weights are functions of the spec, whatever was drawn before."""
    starts: list[dict[str, Any]] = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            setup = assemble(spec)
        data = {
            name: bits([part.x, part.y])
            for name, part in (("train", setup.dataset.train), ("test", setup.dataset.test))
        }
        starts.append(bits(setup.net.module.state_dict()) | data)
    if differing := unlike(*starts):
        raise BrokenError(f"{differing[0]} is another each time: draw it from bnlab.core.seeds.stream")
