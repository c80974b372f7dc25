"""`bnlab verify --plugin`: checks of a user's entry. The tests run the same checks on bnlab's own entries.

Dense layers are checked in a multilayer perceptron, convolutions in a convolutional net; an entry that refuses one of
the two with a `UsageError` is checked in the other. Legend: L sites.
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
from torch.nn.modules.module import register_module_forward_pre_hook

from bnlab.core.errors import UsageError
from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.spec import NormSpec, RunSpec
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Probe, Raw, Snapshot
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import MEASUREMENTS
from bnlab.verify import norm_contract
from bnlab.verify.checks import (
    RUN_CHECKS,
    BrokenError,
    Finding,
    Trace,
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
"""Names of the journal that no probe may use."""
LEFT_BY_TRAINING: frozenset[Need] = frozenset({"training_sites", "delta_norms", "weights_before"})
"""What a snapshot has without a pass for measuring."""


def contract(
    group: str, name: str, dense: RunSpec, convolution: RunSpec, own_data: Sequence[RunSpec] = ()
) -> Iterator[Finding]:
    """Every check of one entry. Both specs choose it, for short runs of a dense and of a convolutional net; for a
    model, on flat inputs and on images, or `own_data` that come with it."""
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
        case "model":
            specs_of_norms = [
                replace(spec, norm=norm) for norm in _norms(dense) for spec in (dense, convolution, *own_data)
            ]
            yield from _of_others(entry, specs_of_norms, MODEL_CHECKS)
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
    """A check of one layer, applied to all; if only some layers fail, the line names the kind of the first."""

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


def _norms(spec: RunSpec) -> list[NormSpec]:
    """The norms with which a model is tried: the run's, its own, none."""
    return [spec.norm, *(replace(spec.norm, name=name, options={}) for name in ("own", "none"))]


def _of_others(
    entry: str, specs: Sequence[RunSpec], more: Mapping[str, Callable[[RunSpec], None]] | None = None
) -> Iterator[Finding]:
    """Checks of a model, a data set or an optimizer in the first run that accepts it: its initial values are
    reproducible, then `more`, and the checks of every run."""
    refusals = []
    for given in specs:
        try:
            spec = _with_suitable_loss(given)
        except Exception as error:
            refusals.append(one_line(error))
            continue
        yield Finding(entry=entry, check="built", why=None)
        yield from findings(entry, {"start": _start_is_reproducible, **(more or {})}, spec)
        yield from findings(entry, RUN_CHECKS, [spec])
        return
    yield Finding(entry=entry, check="built", why=refusals[0])


def _with_suitable_loss(spec: RunSpec) -> RunSpec:
    try:
        assemble(spec)
    except UsageError as error:
        if not str(error).startswith("loss:"):
            raise
        spec = replace(spec, loss="mse")
        assemble(spec)
    return spec


def _start_is_reproducible(spec: RunSpec) -> None:
    """Examples and weights depend on the spec alone, whatever was drawn before."""
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
        raise BrokenError(f"{differing[0]} differs each time: draw it from bnlab.core.seeds.stream")


AT_REST, NEAR = 1e-8, 1e-3
"""A learning rate at which nothing moves, and how near a measurement is then to the value that it must have."""


def nothing_moves_at_rest(spec: RunSpec) -> None:
    """With a learning rate of almost 0, measurements are of one net: along the gradient the loss is the training loss,
    activations do not drift, and the gradient does not change. A probe that measured another net than the one that is
    trained, with other dropout masks or other modes, would show it."""
    probes = replace(spec.probes, options={**spec.probes.options, "ics": {}})
    still = replace(spec, probes=probes, optim=replace(spec.optim, lr=AT_REST, schedule="constant", warmup_steps=0))
    for record in _trained(still).records:
        loss, gradient = record.get("train_loss"), record.get("grad_norm_total")
        if not loss or "loss_hi" not in record:
            continue
        moves = 10 * AT_REST * (gradient or 0) ** 2  # what the loss may change by along the gradient
        for name in ("loss_lo", "loss_hi"):
            if record[name] is None or abs(record[name] - loss) > NEAR * abs(loss) + moves:
                raise BrokenError(f"with a learning rate of almost 0, {name} is {record[name]}, the loss is {loss}")
        for name, wanted in AT_REST_WANTED.items():
            for value in record.get(name) or ():
                if value is not None and abs(value - wanted) > NEAR:
                    raise BrokenError(f"with a learning rate of almost 0, {name} is {value:.3g}, not {wanted:g}")


AT_REST_WANTED = {
    "drift_mean.pre": 0.0,
    "drift_mean.act_in": 0.0,
    "drift_logvar.pre": 0.0,
    "drift_logvar.act_in": 0.0,
    "ics_rel": 0.0,
    "ics_cos": 1.0,
}


def gradients_are_those_of_autograd(spec: RunSpec) -> None:
    """The `grad_norm` of each site is the norm of the gradient that autograd leaves at the site's weight."""
    setup = assemble(spec)
    torch.manual_seed(stream(spec.seed, "noise").initial_seed())  # as in training
    batch = setup.batches.at(0)
    setup.objective(setup.net.module(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
    measured = _trained(spec).records[0]["grad_norm"]
    for site, value in zip(setup.net.sites, measured, strict=True):
        gradient = site.affine.get_parameter("weight").grad
        norm = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
        if value is None or abs(value - norm) > NEAR * norm:
            raise BrokenError(f"grad_norm of {site.name} is {value}, and autograd gives {norm:.6g}")


def _trained(spec: RunSpec, change: Callable[[Setup], Setup] = lambda setup: setup) -> Trace:
    """The run after its training; its folder is removed."""
    with tempfile.TemporaryDirectory(prefix="bnlab-verify-") as folder:
        return trace(spec, Path(folder), change)


MODEL_CHECKS: dict[str, Callable[[RunSpec], None]] = {
    "at rest": nothing_moves_at_rest,
    "gradients": gradients_are_those_of_autograd,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A probe by its name, and runs that only this probe measures."""

    name: str
    specs: Sequence[RunSpec]
    _recorded: list[Recorded] = field(default_factory=list)

    def recorded(self) -> list[Recorded]:
        """The probe after each of the runs, which are trained at the first call."""
        if not self._recorded:
            self._recorded.extend([recorded(self.name, spec) for spec in self.specs])
        return self._recorded

    def build(self) -> Any:
        options = dict(self.specs[0].probes.options[self.name])
        options.pop("every", None)
        return PROBES.build(self.name, options, prefix=f"probes.{self.name}")


def its_declaration_is_valid(case: Measured) -> None:
    """Its options are typed, its needs exist, and each of its metrics has a meaning and a name of its own."""
    probe, constructor = case.build(), PROBES.entry(case.name).constructor
    for half in ("measure", "summarize"):
        if not callable(getattr(probe, half, None)):
            raise BrokenError(f"has no method {half}")
    needs = getattr(probe, "needs", None)
    if not isinstance(needs, frozenset):
        raise BrokenError(f"its needs must be a frozenset, got {needs!r}")
    if unknown := sorted(set(needs) - set(get_args(Need))):
        raise BrokenError(f"needs {unknown[0]!r}, which does not exist; there are {', '.join(get_args(Need))}")
    if getattr(probe, "only_reads", False) and (more := sorted(needs - LEFT_BY_TRAINING)):
        raise BrokenError(f"says only_reads, and needs {more[0]}, which takes a pass: leave one of them out")
    metrics = getattr(constructor, "metrics", None)
    if not isinstance(metrics, Mapping) or not metrics:
        raise BrokenError("its class must have metrics: a mapping from journal name to meaning")
    taken = dict.fromkeys(OF_THE_LOOP, "the loop") | {
        metric: f"the probe {other}"
        for other in PROBES.names()
        if other != case.name
        for metric in getattr(PROBES.entry(other).constructor, "metrics", ())
    }
    for name, meaning in metrics.items():
        if not isinstance(meaning, str) or not meaning:
            raise BrokenError(f"its metric {name} has no description")
        if name in taken:
            raise BrokenError(f"its metric {name} is already one of {taken[name]}")
        if name.endswith("_s"):
            raise BrokenError(f"its metric {name} ends in _s, which is reserved for clock readings in seconds")


class Recorded:
    """A probe that keeps the results of `measure` and `summarize`; everything else is delegated to the probe."""

    def __init__(self, probe: Any) -> None:
        self.probe = probe
        self.raws: list[tuple[Raw, Any]] = []
        """Each result of `measure`, and its bits at that moment."""
        self.measurements: list[Metrics] = []
        self.changed: list[str] = []
        """Parameters and buffers of the net that `measure` changed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.probe, name)

    def measure(self, snapshot: Snapshot, *layout: Any) -> Raw:
        before = bits(snapshot.net.module.state_dict())
        passes: list[object] = []
        seen = register_module_forward_pre_hook(lambda module, given: passes.append(module))
        try:
            raw: Raw = self.probe.measure(snapshot, *layout)
        finally:
            seen.remove()
        if passes and getattr(self.probe, "only_reads", False):
            raise BrokenError("says only_reads, and makes a pass through the net: leave that out")
        self.changed += unlike(before, bits(snapshot.net.module.state_dict()))
        for name, value in raw.items() if isinstance(raw, Mapping) else [("its result", raw)]:
            if not isinstance(value, Tensor):
                raise BrokenError(f"measure must return tensors by name, and {name} is a {type(value).__name__}")
        self.raws.append((raw, bits(raw)))
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, *layout: Any) -> tuple[Metrics, Carry]:
        result = self.probe.summarize(raw, carry, *layout)
        if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, dict) for part in result):
            raise BrokenError("summarize must return two dicts, the metrics and the carry")
        metrics, carry = result
        for name, value in metrics.items():
            if not isinstance(value, np.ndarray | np.generic):
                raise BrokenError(f"its metric {name} must be a numpy array, and is a {type(value).__name__}")
        for name, value in carry.items():
            if not isinstance(value, np.ndarray):
                raise BrokenError(f"{name} in its carry must be a numpy array, and is a {type(value).__name__}")
        self.measurements.append(metrics)
        return metrics, carry


def recorded(name: str, spec: RunSpec) -> Recorded:
    """The probe after a run that it measured; the run's folder is removed."""
    found: list[Recorded] = []

    def insert(setup: Setup) -> Setup:
        found.append(Recorded(setup.observer.probes[name]))
        setup.observer.probes[name] = cast(Probe, found[0])
        return setup

    _trained(spec, insert)
    return found[0]


def measurements_are_as_declared(case: Measured) -> None:
    """Every measurement has a declared name (or matches a `name.*`), and is a number () or a vector, e.g. [L]."""
    declared = PROBES.entry(case.name).constructor.metrics  # type: ignore[attr-defined]
    measured = False
    for probe in case.recorded():
        for metrics in probe.measurements:
            for name, value in metrics.items():
                measured = True
                if not any(name == known or _matches(known, name) for known in declared):
                    raise BrokenError(f"returns {name}, which its metrics do not declare")
                if value.ndim > 1 or value.dtype.kind not in "fiu":
                    shape = f"{value.dtype} {list(value.shape)}"
                    raise BrokenError(f"its metric {name} must be a number or a vector of numbers, and is {shape}")
    if not measured:
        raise BrokenError(f"measured nothing in runs of {case.specs[0].steps} steps")


def _matches(pattern: str, name: str) -> bool:
    return pattern.endswith(".*") and name.startswith(pattern[:-1])


def its_results_are_copies(case: Measured) -> None:
    """The results of `measure` are unchanged at the end of the run, although training changes the weights in place."""
    for probe in case.recorded():
        for raw, then in probe.raws:
            if differing := unlike(bits(raw), then):
                remedy = "it shares the net's memory, return a copy (.clone())"
                raise BrokenError(f"{differing[0]} changed after it was measured: {remedy}")


def runs_are_left_alone(case: Measured) -> None:
    for probe in case.recorded():
        if probe.changed:
            raise BrokenError(
                f"measure changes {probe.changed[0]} of the net: measure at a copy of its state (bnlab.core.state)"
            )
    measuring_leaves_runs_alone(case.specs)


def resumed_runs_are_equal(case: Measured) -> None:
    try:
        runs_resume(case.specs)
    except BrokenError as error:
        raise BrokenError(f"{error}. Keep the state of a probe in its carry") from None


PROBE_CHECKS: dict[str, Callable[[Measured], None]] = {
    "declaration": its_declaration_is_valid,
    "measurements": measurements_are_as_declared,
    "copies": its_results_are_copies,
    "run, measured or not": runs_are_left_alone,
    "run, resumed": resumed_runs_are_equal,
}


def measured_by(name: str, options: Mapping[str, Any], specs: Sequence[RunSpec]) -> Measured:
    """The probe alone on these runs, at every step."""

    def alone(spec: RunSpec) -> RunSpec:
        steps = spec.steps or 1
        return replace(spec, probes=replace(spec.probes, points=steps, eval_points=steps, options={name: {**options}}))

    return Measured(name=name, specs=[alone(spec) for spec in specs])
