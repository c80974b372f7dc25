"""`bnlab verify --plugin`: what an entry must do, checked on a user's own. The tests hold bnlab's to the same.

Dense layers are checked on a multilayer perceptron, convolutions on a convolutional net; an entry that refuses one of
the two with a `UsageError` is checked on the other. Legend: L sites.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Probe, Raw, Snapshot
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import MEASUREMENTS
from bnlab.verify import norm_contract
from bnlab.verify.checks import (
    RUN_CHECKS,
    BrokenError,
    Finding,
    bits,
    findings,
    measuring_leaves_runs_alone,
    one_line,
    runs_resume,
    trace,
    unlike,
)
from bnlab.verify.norm_contract import KINDS, Layer

OF_THE_LOOP = ("step", "wall_s", *MEASUREMENTS)
"""Journal names that no probe may take."""


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
            measured = measured_by(name, dense.probes.options[name], [dense, convolution])
            yield from findings(entry, {"built": lambda case: case.build()}, measured)
            yield from findings(entry, PROBE_CHECKS, measured)
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
        yield from findings(entry, RUN_CHECKS, [specs[layer.dims] for layer in taken])


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
        yield from findings(entry, RUN_CHECKS, [spec])
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A probe by its name, and runs that it alone measures."""

    name: str
    specs: Sequence[RunSpec]
    _seen: list[Recorded] = field(default_factory=list)

    def recorded(self) -> list[Recorded]:
        """The probe after each of the runs, which are made once."""
        if not self._seen:
            self._seen.extend([recorded(self.name, spec) for spec in self.specs])
        return self._seen

    def build(self) -> Any:
        options = dict(self.specs[0].probes.options[self.name])
        options.pop("every", None)
        return PROBES.build(self.name, options, prefix=f"probes.{self.name}")


def it_declares_itself(case: Measured) -> None:
    """Built from typed options; what it needs is what there is; its metrics have a meaning each, and their own name."""
    probe, constructor = case.build(), PROBES.entry(case.name).constructor
    for half in ("measure", "summarize"):
        if not callable(getattr(probe, half, None)):
            raise BrokenError(f"has no method {half}")
    needs = getattr(probe, "needs", None)
    if not isinstance(needs, frozenset):
        raise BrokenError(f"its needs must be a frozenset, and are {needs!r}")
    if unknown := sorted(set(needs) - set(get_args(Need))):
        raise BrokenError(f"needs {unknown[0]!r}, which does not exist; there are {', '.join(get_args(Need))}")
    metrics = getattr(constructor, "metrics", None)
    if not isinstance(metrics, Mapping) or not metrics:
        raise BrokenError("its class must have metrics, what each journal name means by name")
    taken = dict.fromkeys(OF_THE_LOOP, "the loop") | {
        metric: f"the probe {other}"
        for other in PROBES.names()
        if other != case.name
        for metric in getattr(PROBES.entry(other).constructor, "metrics", ())
    }
    for name, meaning in metrics.items():
        if not isinstance(meaning, str) or not meaning:
            raise BrokenError(f"its metric {name} has no meaning in words")
        if name in taken:
            raise BrokenError(f"its metric {name} is one of {taken[name]} already")
        if name.endswith("_s"):
            raise BrokenError(f"its metric {name} ends in _s, which is for seconds of the clock")


class Recorded:
    """A probe that keeps what passes through its halves; all else is the probe's own."""

    def __init__(self, probe: Any) -> None:
        self.probe = probe
        self.raws: list[tuple[Raw, Any]] = []
        """What was measured, and the bits it had then."""
        self.figures: list[Metrics] = []
        self.moved: list[str] = []
        """Parameters and buffers of the net that were others after measuring than before it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.probe, name)

    def measure(self, snapshot: Snapshot, *layout: Any) -> Raw:
        before = bits(snapshot.net.module.state_dict())
        raw: Raw = self.probe.measure(snapshot, *layout)
        self.moved += unlike(before, bits(snapshot.net.module.state_dict()))
        for name, value in raw.items() if isinstance(raw, Mapping) else [("what it measures", raw)]:
            if not isinstance(value, Tensor):
                raise BrokenError(f"measure must give tensors by name, and {name} is a {type(value).__name__}")
        self.raws.append((raw, bits(raw)))
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, *layout: Any) -> tuple[Metrics, Carry]:
        given = self.probe.summarize(raw, carry, *layout)
        if not isinstance(given, tuple) or len(given) != 2 or not all(isinstance(part, dict) for part in given):
            raise BrokenError("summarize must give two dicts, the metrics and the carry")
        metrics, carry = given
        for name, value in metrics.items():
            if not isinstance(value, np.ndarray | np.generic):
                raise BrokenError(f"its metric {name} must be a numpy array, and is a {type(value).__name__}")
        for name, value in carry.items():
            if not isinstance(value, np.ndarray):
                raise BrokenError(f"{name} in its carry must be a numpy array, and is a {type(value).__name__}")
        self.figures.append(metrics)
        return metrics, carry


def recorded(name: str, spec: RunSpec) -> Recorded:
    """The probe after a run that it measured; nothing of the run is left."""
    found: list[Recorded] = []

    def listen(setup: Setup) -> Setup:
        found.append(Recorded(setup.observer.probes[name]))
        setup.observer.probes[name] = cast(Probe, found[0])
        return setup

    with tempfile.TemporaryDirectory(prefix="bnlab-verify-") as folder:
        trace(spec, Path(folder), listen)
    return found[0]


def figures_are_as_declared(case: Measured) -> None:
    """Every figure is a declared metric's, or of a `name.*`: a number (), or a vector such as one value a site [L]."""
    declared = PROBES.entry(case.name).constructor.metrics  # type: ignore[attr-defined]
    measured = False
    for probe in case.recorded():
        for metrics in probe.figures:
            for name, value in metrics.items():
                measured = True
                if not any(name == known or _stands_for(known, name) for known in declared):
                    raise BrokenError(f"gives {name}, which its metrics do not declare")
                if value.ndim > 1 or value.dtype.kind not in "fiu":
                    shape = f"{value.dtype} {list(value.shape)}"
                    raise BrokenError(f"its metric {name} must be a number or a vector of numbers, and is {shape}")
    if not measured:
        raise BrokenError(f"measured nothing in runs of {case.specs[0].steps} steps")


def _stands_for(pattern: str, name: str) -> bool:
    return pattern.endswith(".*") and name.startswith(pattern[:-1])


def what_is_measured_is_its_own(case: Measured) -> None:
    """What `measure` gave is at the end of the run what it was: the run went on, and changed its weights in place."""
    for probe in case.recorded():
        for raw, then in probe.raws:
            if differing := unlike(bits(raw), then):
                raise BrokenError(
                    f"{differing[0]} changed after it was measured: it is the net's own memory, give a copy (.clone())"
                )


def runs_are_left_alone(case: Measured) -> None:
    for probe in case.recorded():
        if probe.moved:
            raise BrokenError(
                f"measure moves {probe.moved[0]} of the net: measure at a copy of its state (bnlab.core.state)"
            )
    measuring_leaves_runs_alone(case.specs)


def runs_resume_alike(case: Measured) -> None:
    try:
        runs_resume(case.specs)
    except BrokenError as error:
        raise BrokenError(f"{error}: what a probe remembers belongs in its carry") from None


PROBE_CHECKS: dict[str, Callable[[Measured], None]] = {
    "declaration": it_declares_itself,
    "figures": figures_are_as_declared,
    "copies": what_is_measured_is_its_own,
    "run, measured or not": runs_are_left_alone,
    "run, resumed": runs_resume_alike,
}


def measured_by(name: str, options: Mapping[str, Any], specs: Sequence[RunSpec]) -> Measured:
    """The probe alone on these runs, at every step."""

    def alone(spec: RunSpec) -> RunSpec:
        steps = spec.steps or 1
        return replace(spec, probes=replace(spec.probes, points=steps, eval_points=steps, options={name: {**options}}))

    return Measured(name=name, specs=[alone(spec) for spec in specs])
