"""What the identities and the contracts of entries share: results, exact comparison, checks of every run.

Measuring leaves a run alone, and a run that is stopped and resumed is the same run. A check raises `BrokenError` with
one line that says what is wrong.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Record, read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

STOPS = (1, 3, 2)
"""The run is stopped after so many steps, three times; then it is trained to its end."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One checked equation: its two sides, their difference, and the largest one accepted."""

    name: str
    left: str
    right: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # false when it is NaN


def scalars(name: str, left: Tensor | float, right: Tensor | float, tolerance: float, error: float = 0.0) -> Identity:
    """Two numbers and their relative difference, or `error` if it is larger."""
    a, b = float(left), float(right)
    difference = largest(abs(a / b - 1), error)
    return Identity(name=name, left=f"{a:.6g}", right=f"{b:.6g}", error=difference, tolerance=tolerance)


def largest(*errors: float) -> float:
    """The largest, NaN if one is: Python's own `max` may pass over a NaN."""
    return float(np.max(errors))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / (1 + b.abs().max())).item()


class BrokenError(Exception):
    """A check failed; the message is one line that says what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check of one entry; `why` says what is wrong, None if the check passes."""

    entry: str
    check: str
    why: str | None

    @property
    def ok(self) -> bool:
        return self.why is None


def findings(entry: str, checks: Mapping[str, Callable[[Subject], None]], subject: Subject) -> Iterator[Finding]:
    """The result of each check on one subject. An error in the entry's own code counts as a failed check."""
    for name, check in checks.items():
        try:
            check(subject)
        except Exception as error:
            yield Finding(entry=entry, check=name, why=one_line(error))
        else:
            yield Finding(entry=entry, check=name, why=None)


def one_line(error: BaseException) -> str:
    """The message of an error, with its type unless a check or a `UsageError` wrote it; for a run that failed, that of
    the cause."""
    while type(error).__name__ == "RunFailedError" and error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split())
    own = isinstance(error, BrokenError) or type(error).__name__ == "UsageError"
    return words if own else f"{type(error).__name__}: {words}".rstrip(": ")


def bits(value: Any) -> Any:
    """Nested tensors as plain values, each as its dtype, shape and bytes: NaN equals NaN, -0.0 differs from 0.0."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, or that one of the two lacks."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def global_random_states() -> dict[str, Any]:
    """By library: the state of its global random generator, in a form that can be compared."""
    name, keys, *rest = np.random.get_state()
    own = (name, np.asarray(keys).tobytes(), *rest)
    return {"torch": bits(torch.get_rng_state()), "numpy": own, "Python": random.getstate()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trained run, and everything that measuring could have changed in it."""

    setup: Setup
    records: list[Record]
    kept: dict[str, Any]
    """What is compared, by its name: weights, buffers, losses, ..."""
    hooks: int
    """How many hooks are left on the net's modules and parameters, with replaced `forward` methods."""


def trace(spec: RunSpec, folder: Path, change: Callable[[Setup], Setup] = lambda setup: setup) -> Trace:
    """Train a spec to its end; `change` may replace parts of the setup first."""
    torch.manual_seed(7)
    setup = assemble(spec)
    losses: list[float] = []

    def kept(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = setup.objective(outputs, targets)
        losses.append(loss.item())
        return loss

    start = bits(setup.net.module.state_dict())
    place = RunFolder(folder)
    train(replace(change(setup), objective=kept), place)  # in the loop alone: probes and evaluation keep the original
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
    """The number of hooks on the net's modules and parameters, plus the number of modules whose `forward` is
    replaced."""
    wrapped = sum("forward" in vars(part) for part in module.modules())
    of_params = sum(len(param._backward_hooks or {}) for param in module.parameters())
    return wrapped + of_params + sum(len(getattr(part, kind)) for part in module.modules() for kind in HOOKS)


def unmeasured(spec: RunSpec) -> RunSpec:
    """The same run without probes, with as few measured steps as possible."""
    return replace(spec, probes=replace(spec.probes, points=1, eval_points=1, options={}))


def measuring_leaves_runs_alone(specs: Sequence[RunSpec]) -> None:
    """Each run, compared with the same run without probes. The runs must be equal; their journals may differ."""
    for spec in specs:
        with _folder() as folder:
            measured = trace(spec, folder / "measured")
            refuse_differences(measured, trace(unmeasured(spec), folder / "bare"))


def refuse_differences(measured: Trace, bare: Trace) -> None:
    """Compare a measured run with the same run without probes.

    Raises:
        BrokenError: naming what measuring changed.
    """
    if measured.kept["weight"] == {
        name: value for name, value in measured.kept["start"].items() if name in measured.kept["weight"]
    }:
        raise BrokenError("nothing was trained: the weights are the initial ones")
    if measured.hooks:
        raise BrokenError(f"{measured.hooks} hooks are left on the net after the run")
    differing = unlike(measured.kept, bare.kept)
    for what in ("start", "buffer", "weight", "optimizer", *measured.kept):
        if what in differing:
            one, other = measured.kept[what], bare.kept[what]
            first = f" ({unlike(one, other)[0]})" if isinstance(one, dict) else ""
            where = f"from step {_first_unlike(one, other)} on" if what == "loss" else "after the run"
            raise BrokenError(f"measuring changes the run: its {what}{first} differs {where}")


def _first_unlike(one: Sequence[Any], other: Sequence[Any]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def runs_resume(specs: Sequence[RunSpec]) -> None:
    """Each run, stopped and resumed, compared with the uninterrupted run: journal, weights, buffers, optimizer."""
    for spec in specs:
        with _folder() as folder:
            whole, parts = trace(spec, folder / "whole"), RunFolder(folder / "parts")
            for index, steps in enumerate((*STOPS, spec.steps or 0)):
                setup = assemble(spec)
                reasons = iter([None] * steps + ["a check"] * (index < len(STOPS)))
                with _another_process(index):
                    status = train(setup, parts, stopped=lambda reasons=reasons: next(reasons))  # type: ignore[misc]
                if status["status"] != "interrupted":  # it finished or diverged
                    break
            records = [without_clock(record) for record in read(parts.journal_file)]
        at = _first_unlike(whole.records, records)
        if at < max(len(whole.records), len(records)):
            named = unlike(whole.records[at], records[at]) if at < min(len(whole.records), len(records)) else ["step"]
            raise BrokenError(f"a resumed run differs from an uninterrupted one: {named[0]}, in record {at}")
        if differing := unlike(state_of(whole.setup), state_of(setup)):
            raise BrokenError(f"a resumed run differs from an uninterrupted one: its {differing[0]}")


@contextmanager
def _another_process(index: int) -> Iterator[None]:
    """Give the global generators another state, as they would have in another process."""
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


RUN_CHECKS: dict[str, Callable[[Sequence[RunSpec]], None]] = {
    "run, measured or not": measuring_leaves_runs_alone,
    "run, resumed": runs_resume,
}
