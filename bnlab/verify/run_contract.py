"""What must hold of a run and of a probe, checked bit by bit on real runs of a few steps. Legend: L sites.

Measuring leaves a run alone, and a run that is stopped and resumed is the same run. A check raises `BrokenError` with
one line that says what is wrong.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.core.registry import PROBES
from bnlab.core.spec import RunSpec
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Probe, Raw, Snapshot
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import MEASUREMENTS, train
from bnlab.verify.findings import BrokenError, bits, unlike

STOPS = (1, 3, 2)
"""After so many steps the interrupted run is stopped, and stopped again; then it goes on to its end."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A run that was trained, and all that measuring could have changed in it."""

    setup: Setup
    records: list[Record]
    kept: dict[str, Any]
    """By what it is: comparable values."""
    hooks: int
    """How many are left on the net's parts and parameters, and parts with a `forward` put over their own."""


def trace(spec: RunSpec, folder: Path, change: Callable[[Setup], Setup] = lambda setup: setup) -> Trace:
    """Train a spec to its end; `change` may exchange its parts before."""
    torch.manual_seed(7)
    setup = assemble(spec)
    losses: list[float] = []

    def kept(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = setup.objective(outputs, targets)
        losses.append(loss.item())
        return loss

    start = bits(setup.net.module.state_dict())
    place = RunFolder(folder)
    train(replace(change(setup), objective=kept), place)  # for the loop: probes and evaluation have theirs
    return Trace(
        setup=setup,
        records=[without_clock(record) for record in read(place.journal_file)],
        kept={"start": start, "loss": losses}
        | state_of(setup)
        | {"torch's global random state": bits(torch.get_rng_state())}
        | {"train mode": {name: part.training for name, part in setup.net.module.named_modules()}},
        hooks=hooks(setup.net.module),
    )


def state_of(setup: Setup) -> dict[str, Any]:
    """Weights, buffers and the optimizer's state, bit by bit."""
    module = setup.net.module
    return {
        "weight": bits(dict(module.named_parameters())),
        "buffer": bits(dict(module.named_buffers())),
        "optimizer": bits(setup.optimizer.state_dict()),
    }


def hooks(module: nn.Module) -> int:
    """How many hooks there are on the net's parts and parameters, and how many parts have a `forward` put over their
    own."""
    wrapped = sum("forward" in vars(part) for part in module.modules())
    of_params = sum(len(param._backward_hooks or {}) for param in module.parameters())
    return wrapped + of_params + sum(len(getattr(part, kind)) for part in module.modules() for kind in HOOKS)


def unmeasured(spec: RunSpec) -> RunSpec:
    """The same run, with nothing measured but its loss, and that as rarely as may be."""
    return replace(spec, probes=replace(spec.probes, points=1, eval_points=1, options={}))


def measuring_leaves_runs_alone(specs: Sequence[RunSpec]) -> None:
    """Each run, against itself unmeasured. What the run is like is compared; what the journals say is not."""
    for spec in specs:
        with _folder() as folder:
            measured = trace(spec, folder / "measured")
            refuse_differences(measured, trace(unmeasured(spec), folder / "bare"))


def refuse_differences(measured: Trace, bare: Trace) -> None:
    """Compare a run that was measured with the same one that was not.

    Raises:
        BrokenError: naming what measuring changed.
    """
    if measured.kept["weight"] == {
        name: value for name, value in measured.kept["start"].items() if name in measured.kept["weight"]
    }:
        raise BrokenError("nothing was trained: the weights are where they began")
    if measured.hooks:
        raise BrokenError(f"{measured.hooks} hooks are left on the net after the run")
    differing = unlike(measured.kept, bare.kept)
    for what in ("start", "buffer", "weight", "optimizer", *measured.kept):
        if what in differing:
            one, other = measured.kept[what], bare.kept[what]
            first = f" ({unlike(one, other)[0]})" if isinstance(one, dict) else ""
            where = f"from step {_first_unlike(one, other)} on" if what == "loss" else "after the run"
            raise BrokenError(f"a run that is measured is another one: its {what}{first} differs {where}")


def _first_unlike(one: Sequence[Any], other: Sequence[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def runs_resume(specs: Sequence[RunSpec]) -> None:
    """Each run, stopped and started again, against itself in one piece: journal, weights, buffers, optimizer."""
    for spec in specs:
        with _folder() as folder:
            whole, parts = trace(spec, folder / "whole"), RunFolder(folder / "parts")
            for index, steps in enumerate((*STOPS, spec.steps or 0)):
                setup = assemble(spec)
                asked = iter([None] * steps + ["a check"] * (index < len(STOPS)))
                with _another_process(index):
                    status = train(setup, parts, stopped=lambda asked=asked: next(asked))  # type: ignore[misc]
                if status["status"] != "interrupted":  # it came to its end, or diverged on the way
                    break
            records = [without_clock(record) for record in read(parts.journal_file)]
        at = _first_unlike(whole.records, records)
        if at < max(len(whole.records), len(records)):
            named = unlike(whole.records[at], records[at]) if at < min(len(whole.records), len(records)) else ["step"]
            raise BrokenError(f"a run that was stopped and resumed is another one: {named[0]} differs in record {at}")
        if differing := unlike(state_of(whole.setup), state_of(setup)):
            raise BrokenError(f"a run that was stopped and resumed is another one: its {differing[0]} differs")


@contextmanager
def _another_process(index: int) -> Iterator[None]:
    """As in another process, the global generators that no checkpoint keeps are elsewhere."""
    kept = random.getstate(), np.random.get_state()
    random.seed(index)
    np.random.seed(index)
    torch.manual_seed(index)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bnlab-verify-") as folder:
        yield Path(folder)


CHECKS: dict[str, Callable[[Sequence[RunSpec]], None]] = {
    "run, measured or not": measuring_leaves_runs_alone,
    "run, resumed": runs_resume,
}


OF_THE_LOOP = ("step", "wall_s", *MEASUREMENTS)
"""Journal names that no probe may take."""


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
