"""Metrics: one number of a run, of an arm's curve over the learning rates, or of an arm's seeds. Claims name them.

A file here registers one metric, or a family that shares code; it is found by itself. To add a metric, add a file, or
write a plugin:

    from bnlab import METRICS

    @METRICS.register("my_metric", of="run", source="own", unit="nats", better="lower", reads=("test_loss",))
    def my_metric(run, *, last: int):
        '''Mean of the `last` measured test losses.'''
        return run.series("test_loss").values[-last:].mean()
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from bnlab.core.errors import UsageError, cause, nearest
from bnlab.core.registry import Entry, Registry, load_plugins
from bnlab.core.text import capital
from bnlab.core.typed import option_names
from bnlab.record.journal import Floats, Series
from bnlab.record.runs import Run


@dataclass(frozen=True, slots=True)
class Value:
    """What a metric gives. With a `bound`, the true value is at least or at most this, as where a target was not
    reached within the run. NaN: not measured."""

    value: float
    bound: Literal["at least", "at most"] | None = None


class MetricError(UsageError):
    """A user's metric raises an error, or does not give a number."""


Curve = Mapping[float, Run]
"""The runs of one arm and seed by a factor, in its order; the factor is the learning rate unless a metric has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Entry):
    """What a claim can be about. The registered function has one of these forms; its keyword-only parameters are the
    metric's options, all of which a claim must give:

    - `of="run"`: `function(run, **options)` gives a float or a `Value`
    - `of="curve"`: `function(curve, **options)` gives a float or a `Value`
    - `of="arm"`: `function(values, **options)`, [N] -> [N], is given one value a seed of the run metric that the option
      `of` names
    """

    of: Literal["run", "curve", "arm"]
    source: str
    unit: str
    meaning: str = ""
    """By default the function's docstring, up to its first blank line."""
    better: Literal["lower", "higher"] | None = None
    reads: tuple[str, ...] = ()
    """Measurements of the journal that it reads, beside the training loss."""
    course: Callable[..., Series] | None = None
    """The value at every measured step, where there is one: what can be compared at equal training loss."""
    shown_with: Mapping[str, Any] | None = field(default_factory=dict)
    """Options in tables of runs. None, where the metric has others: only a claim can give them."""
    of_measurement: bool = False
    """Its option `of` names a measurement of the journal."""
    of_answers: bool = False
    """It reads the answers of a trained net. A run then counts once for each condition of the study's `ask`."""
    of_control: bool = False
    """Its option `target` may be `control` in a claim: what the control reaches."""
    about_failure: bool = False
    """It is constant over runs that train, so it says nothing where only those are compared."""

    def __post_init__(self) -> None:
        Entry.__post_init__(self)
        first = (self.meaning or inspect.getdoc(self.constructor) or "").partition("\n\n")[0]
        object.__setattr__(self, "meaning", capital(" ".join(first.split()).removesuffix(".")))
        if set(self.options) - set(self.shown_with or {}):
            object.__setattr__(self, "shown_with", None)

    @property
    def options(self) -> list[str]:
        return option_names(self.constructor)

    def value(self, of: Run | Curve, /, **options: Any) -> Value:
        """The value of a run or a curve."""
        return self._number(self._called(self.constructor, of, **options))

    def values(self, of: Floats, /, **options: Any) -> list[Value]:
        """The values of an arm's N seeds, from those of the run metric: [N] -> N values."""
        found = self._called(self.constructor, of, **options)
        if np.shape(found) != of.shape:
            problem = f"must give a value for each of {len(of)} seeds, and gives the shape"
            raise MetricError(f"metric={self.name}", problem, list(np.shape(found)))
        return [self._number(value) for value in found]

    def course_of(self, run: Run, /, **options: Any) -> Series:
        """The value at every measured step, of a metric with a course, from those of its options that this needs."""
        assert self.course is not None
        needed = {name: options[name] for name in option_names(self.course)}
        series: Series = self._called(self.course, run, **needed)
        return series

    def _called(self, function: Callable[..., Any], of: Any, /, **options: Any) -> Any:
        """What the function gives; an error in a user's own is a `MetricError`."""
        try:
            return function(of, **options)
        except Exception as error:
            if self.constructor.__module__.startswith("bnlab."):
                raise
            raise MetricError(f"metric={self.name}", cause(error)) from error

    def _number(self, found: Any) -> Value:
        try:
            return found if isinstance(found, Value) else Value(float(found))
        except (TypeError, ValueError):
            raise MetricError(f"metric={self.name}", "must give a float or a Value", found) from None


CONTROL = "control"
"""The target of a claim that is what its control reaches."""


def refuse_control(options: Mapping[str, Any], place: str) -> None:
    """Refuse `target: control` where there is no control.

    Raises:
        UsageError: naming `place`.
    """
    if options.get("target") == CONTROL:
        raise UsageError(f"{place}.target", "only a claim with a contrast of runs has one", CONTROL, "Give a number.")


METRICS = Registry("metric", "bnlab.analysis.metrics", Metric, by_file=False)


def about_answers(metric: str, options: Mapping[str, Any]) -> bool:
    """Whether the metric, or one that its options `of` and `to` name, is of answers."""
    names = {metric, str(options.get("of")), str(options.get("to"))} & set(METRICS.names())
    return any(METRICS[name].of_answers for name in names)


def over_finite(statistic: Callable[[Floats], Any], values: Floats) -> float:
    """A statistic of the finite values; NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(statistic(finite)) if len(finite) else math.nan


def reads() -> frozenset[str]:
    """The measurements that some metric reads."""
    return frozenset({"train_loss"}).union(*(metric.reads for metric in METRICS.entries()))


def measurements() -> dict[str, tuple[str, str]]:
    """What a journal may have: name, or for several `name.*` -> what it is, and its probe if it has one."""
    from bnlab.core.registry import PROBES  # these import torch
    from bnlab.run.train import MEASUREMENTS

    found = {name: (text, "") for name, text in MEASUREMENTS.items()}
    for probe in PROBES.names():
        named: Mapping[str, str] = PROBES.entry(probe).constructor.metrics  # type: ignore[attr-defined]
        found |= {name: (text, probe) for name, text in named.items()}
    return found


def refuse_unknown(place: str, noun: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is none of these, of which `name.*` stands for several.

    Raises:
        UsageError: naming `place`.
    """
    names = list(names)
    if name not in names and not any(known.endswith(".*") and name.startswith(known[:-1]) for known in names):
        raise UsageError(place, f"no such {noun}", name, nearest(name, names))


def table(plugins: Iterable[str] = ()) -> list[dict[str, str]]:
    """Name, what it is of, meaning, source, unit and options of every metric, those of plugins among them.

    Raises:
        UsageError: a plugin that is not there, or that raises an error.
    """
    load_plugins(plugins)
    return [
        {
            "name": metric.name,
            "of": metric.of,
            "description": metric.meaning,
            "source": metric.source,
            "unit": metric.unit,
            "options": ", ".join(metric.options),
        }
        for metric in METRICS.entries()
    ]
