"""What the analysis is made of: runs as they lie on the disk, metrics of them, verdicts on claims. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from bnlab.core.errors import UsageError, nearest
from bnlab.core.study import Claim
from bnlab.core.typed import check_options, option_names
from bnlab.record.journal import Series
from bnlab.record.runs import Run

Decision = Literal["supported", "refuted", "inconclusive", "direction only", "not tested"]


@dataclass(frozen=True, slots=True)
class Value:
    """A metric's value; with a `bound`, all that is known is that it is at least or at most this, as where a target
    was not reached within the run. NaN: not measured."""

    value: float
    bound: Literal["at least", "at most"] | None = None


Curve = Mapping[float, Run]
"""The runs of one arm and seed by a factor, nearly always the learning rate, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a claim can be about.

    `of` a run, `figure(run, **options)`; of a curve, `figure(curve, **options)`; of an arm, `figure(values, **options)`
    with one value a seed, of the run metric that the option `of` names, gives one a seed. `course`, where there is
    one, gives the value at every measured step, which is what can be compared at equal training loss.
    """

    name: str
    of: Literal["run", "curve", "arm"]
    meaning: str
    source: str
    unit: str
    better: Literal["lower", "higher"] | None
    reads: tuple[str, ...]
    figure: Callable[..., Any]
    course: Callable[..., Series] | None = None
    shown_with: Mapping[str, Any] | None = field(default_factory=dict)
    """Options in tables of runs; None where only a claim can give them."""

    @property
    def options(self) -> list[str]:
        return option_names(self.figure)


Function = TypeVar("Function", bound=Callable[..., Any])


class Metrics:
    """Name -> metric. The keyword-only parameters of a metric's function are its options, all to be given."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, metric: Metric) -> None:
        taken = self._metrics.get(metric.name)
        if taken is not None and taken.figure.__module__ != metric.figure.__module__:
            raise UsageError(
                f"metric={metric.name}", "registered twice", metric.figure.__module__, "Rename one of them."
            )
        self._metrics[metric.name] = metric

    def register(self, name: str, **facts: Any) -> Callable[[Function], Function]:
        """Decorator: put a function under `name`; `facts` are the other fields of `Metric`."""

        def keep(function: Function) -> Function:
            self.add(Metric(name=name, figure=function, **facts))
            return function

        return keep

    def names(self) -> list[str]:
        return sorted(self._metrics)

    def reads(self) -> frozenset[str]:
        """Names of the journal that some metric reads."""
        return frozenset(name for metric in self._metrics.values() for name in metric.reads)

    def __getitem__(self, name: str) -> Metric:
        """The metric of that name.

        Raises:
            UsageError: there is none; the nearest is proposed.
        """
        if name not in self._metrics:
            raise UsageError("metric", "no such metric", name, nearest(name, self._metrics))
        return self._metrics[name]

    def checked(self, name: str, options: Mapping[str, Any], prefix: str) -> tuple[Metric, dict[str, Any]]:
        """The metric, and its options as it takes them.

        Raises:
            UsageError: no such metric, or an option that it does not know, lacks, or that has the wrong type.
        """
        metric = self[name]
        return metric, check_options(metric.figure, options, prefix)


METRICS = Metrics()
"""Every metric; `bnlab.analysis.metrics` fills it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a claim: the value of the contrasted axis, and its figure in each seed, in the order of `seeds`."""

    label: str
    values: tuple[float, ...]
    point: str
    """Where it was taken, in words: `lr 0.1`, `9 learning rates`."""
    runs: tuple[str, ...] = ()
    """Paths of the runs behind it, below the report's root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs say of a claim. `effect` and `interval` are those of `Claim`; None where there is none,
    as an interval of fewer than 3 seeds."""

    claim: Claim
    decision: Decision
    effect: float | None
    interval: tuple[float, float] | None
    p: float | None
    """One-sided, of the direction that is nearer to a decision, adjusted by Holm over the report's claims; None where
    nothing was tested."""
    n: int
    """Paired seeds."""
    seeds: tuple[int, ...]
    treated: Arm | None
    control: Arm | None
    why: str
    """One line of plain words with the numbers."""
    cautions: tuple[str, ...] = ()
    """A best learning rate at the grid's edge, a claim edited after its first run, ..."""
