"""What must hold of a run, whatever entry is in it: measuring leaves it alone, and stopped and resumed it is the same.

Both are seen on real runs of a few steps, bit by bit.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train
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
