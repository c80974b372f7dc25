"""What figures are drawn from: views of the runs, arm by arm, and averages over their seeds. Nothing here draws."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnlab.analysis.metrics.rates import largest_of
from bnlab.analysis.statistics import t_half_width, t_interval
from bnlab.core.text import number
from bnlab.record.runs import Run
from bnlab.report.style import FORMAT, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
MOST_PANELS = 4
ROOM_FOR_PANELS = 5.0
"""Inches of a sheet that has room for more than two panels."""
MANY_TIMES = 1e6
"""A larger factor is written as a power of ten."""
Number = str | int | float | None
"""A cell of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one arm: one setting of everything but learning rate and seed."""

    label: str
    look: Look
    runs: tuple[Run, ...]

    @property
    def rates(self) -> list[float]:
        return sorted({run.lr for run in self.runs})

    def at(self, lr: float) -> list[Run]:
        """Its runs at that learning rate, by seed."""
        return sorted((run for run in self.runs if run.lr == lr), key=lambda run: run.seed)

    def trains_at(self, lr: float) -> bool:
        """Whether there are runs at `lr` and all of them train."""
        there = self.at(lr)
        return bool(there) and all(run.trains for run in there)

    @property
    def top_rate(self) -> float | None:
        """The largest rate, going up without a gap, at which all of its runs train."""
        good = [self.trains_at(lr) for lr in self.rates]
        if not any(good):
            return None
        found = largest_of(np.array(self.rates), good).value
        return float(found)

    def best_rate(self) -> float | None:
        """See `best_rate`."""
        return best_rate({lr: self.at(lr) for lr in self.rates})


def best_rate(runs: Mapping[float, Sequence[Run]]) -> float | None:
    """The rate, of those at which all runs train, with the smallest geometric mean of the final training loss."""
    means = {
        lr: geometric_mean([run.final("train_loss") for run in here])
        for lr, here in runs.items()
        if all(run.trains for run in here)
    }
    return min((lr for lr, mean in means.items() if math.isfinite(mean)), key=means.__getitem__, default=None)


def usual_rate(runs: Mapping[float, Sequence[Run]]) -> float:
    """The best rate; where there is none, that at which most runs train, the smaller of equals."""
    best = best_rate(runs)
    return max(runs, key=lambda lr: (sum(run.trains for run in runs[lr]), -lr)) if best is None else best


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The training loss that a claim asks nets to reach, the median of the last `smooth` measured values."""

    loss: float
    smooth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Arms to be drawn together. `setting` tells one view of a report from another: `depth 20`; empty where there is
    one view only. With a `pair`, titles compare these two arms, the treated one first."""

    groups: tuple[Group, ...]
    setting: str = ""
    chance_loss: float | None = None
    reduced: str = ""
    """Which arms are not drawn, in words."""
    pair: tuple[Group, Group] | None = None
    compared: tuple[Any, Any] | None = None
    """The values of the pair on the axis of arms."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """By metric: how many times larger it is in the treated arm, where a claim says so; titles repeat that number."""
    target: Target | None = None

    def claimed(self, metric: str, found: Ratio | None) -> Ratio | None:
        """The ratio with the number of the claim on that metric, so that a report has one number for one claim."""
        return replace(found, value=self.ratios[metric], digits=3) if found and metric in self.ratios else found

    def factor(self, metric: str, otherwise: str) -> str:
        """What the factor in a title is: that of a claim, or `otherwise`."""
        return f"The title's factor is that of the claim on {metric}." if metric in self.ratios else otherwise

    @property
    def rates(self) -> list[float]:
        return sorted({run.lr for group in self.groups for run in group.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for group in self.groups for run in group.runs})

    def titled(self, finding: str) -> str:
        return f"{self.setting[:1].upper()}{self.setting[1:]}: {finding}" if self.setting else finding

    def noted(self, note: str) -> str:
        """The footnote, followed by which arms are not drawn."""
        return f"{note} {self.reduced}".rstrip()

    @property
    def panels(self) -> tuple[Group, ...]:
        """Arms that have a panel each: the first few; in a narrow picture the pair."""
        narrow = FORMAT.get().sheet < ROOM_FOR_PANELS
        if narrow and self.pair:
            return tuple(group for group in self.groups if group in self.pair)
        return self.groups[: 2 if narrow else MOST_PANELS]

    def common_rate(self) -> tuple[float | None, str]:
        """The one rate at which arms are shown side by side, and why this one: the largest at which every run of every
        arm trains; else that at which most runs do, the larger of equals."""
        matched = [lr for lr in self.rates if all(group.trains_at(lr) for group in self.groups)]
        if matched:
            return matched[-1], "the largest at which every run trains"
        shared = [lr for lr in self.rates if all(group.at(lr) for group in self.groups)]
        if not shared:
            return None, ""
        most = max(shared, key=lambda lr: (sum(run.trains for group in self.groups for run in group.at(lr)), lr))
        return most, "there is none at which every run trains; here most do"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure: `title` states what was found, `note` the statistic, `about` what is drawn; `columns` and `rows` are
    the numbers in it."""

    name: str
    title: str
    note: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Number, ...]]
    figure: Figure = field(repr=False, compare=False)

    @property
    def alt(self) -> str:
        """The text in the place of the picture."""
        return f"{self.title}. {self.about}"


class Missing(Exception):  # noqa: N818  (an answer, not an error)
    """A figure cannot be drawn from these runs; the message says what is missing, `remedy` how to measure it."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


def geometric_mean(values: Sequence[float]) -> float:
    """NaN where there is none: no values, or one that is not positive and finite.

    >>> round(geometric_mean([1.0, 100.0]), 9), geometric_mean([1.0, float("inf")])
    (10.0, nan)
    """
    if not values or not all(math.isfinite(x) and x > 0 for x in values):
        return math.nan
    return math.exp(math.fsum(math.log(x) for x in values) / len(values))


def log_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t-interval of the geometric mean; None with fewer than two values or one that is not positive.

    >>> [round(x, 2) for x in log_interval([1.0, 4.0, 2.0])]
    [0.36, 11.19]
    """
    if len(values) < 2 or not math.isfinite(geometric_mean(values)):
        return None
    logs = np.log(np.asarray(values, np.float64))
    half, mean = float(t_half_width(logs)), float(logs.mean())
    return math.exp(mean - half), math.exp(min(700.0, mean + half))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times larger one arm's figure is than another's; `clear`: the seeds leave no doubt of the direction."""

    value: float
    clear: bool
    n: int
    digits: int = 2

    @property
    def times(self) -> str:
        """
        >>> [Ratio(value=x, clear=True, n=3).times for x in (0.05, 1234.0, 9.6e15)]
        ['20×', '1,000×', '1e16×']
        """
        size = max(self.value, 1 / self.value)
        if size >= MANY_TIMES:
            return f"{number(size, 1)}×"
        return f"{number(size, self.digits)}×" if size < 100 else f"{float(f'{size:.1g}'):,.0f}×"

    @property
    def proviso(self) -> str:
        """The proviso of the title when there are few seeds."""
        return {1: " (one seed)", 2: " (two seeds)"}.get(self.n, "")


def ratio(treated: Mapping[int, float], control: Mapping[int, float]) -> Ratio | None:
    """Paired by seed. Clear: the 95 % t-interval of the mean log ratio excludes 0; with fewer than three seeds, every
    ratio points the same way and is beyond 1.2. None without a common seed."""
    shared = [seed for seed in treated if seed in control]
    ratios = [treated[seed] / control[seed] if control[seed] > 0 else math.nan for seed in shared]
    value = geometric_mean(ratios)
    if not math.isfinite(value):
        return None
    if len(ratios) < 3:
        clear = all(x > 1.2 for x in ratios) or all(x < 1 / 1.2 for x in ratios)
    else:
        interval = log_interval(ratios)
        clear = interval is not None and not interval[0] <= 1 <= interval[1]
    return Ratio(value=value, clear=clear, n=len(ratios))


def together(runs: Iterable[Run], metric: str, average: Callable[[Floats], Floats]) -> tuple[Floats, Floats]:
    """The steps [T] at which every run that has the metric has it, and `average` over the runs [R, T, ...] there. Runs
    without it are left out; no steps where there is none."""
    found = [series for run in runs if len(series := run.series(metric))]
    if not found:
        return np.empty(0), np.empty(0)
    steps = functools.reduce(np.intersect1d, [series.steps for series in found]).astype(np.float64)
    return steps, average(np.stack([values[np.searchsorted(at, steps)] for at, values in found]))


def geometric(stack: Floats) -> Floats:
    """Over the first axis; NaN where one is not positive."""
    with np.errstate(all="ignore"):
        return np.asarray(np.exp(np.log(np.where(stack > 0, stack, np.nan)).mean(axis=0)), np.float64)


def median(stack: Floats) -> Floats:
    """Over the first axis, of what is finite; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows of NaN alone give NaN, as they should
        return np.asarray(np.nanmedian(np.where(np.isfinite(stack), stack, np.nan), axis=0), np.float64)


def even(steps: Floats) -> Floats:
    """Which steps come after the usual distance; the first few measured steps are denser than the rest.

    >>> even(np.array([0.0, 1, 2, 4, 6, 8])).tolist()
    [False, False, False, True, True, True]
    """
    if len(steps) < 2:
        return np.zeros(len(steps), bool)
    gaps = np.diff(steps)
    values, counts = np.unique(gaps, return_counts=True)
    return np.concatenate([[False], gaps == values[counts.argmax()]])


def finite(values: Iterable[float]) -> list[float]:
    return [float(x) for x in values if np.isfinite(x)]


def by_seed(runs: Sequence[Run], figure: Callable[[Run], float]) -> dict[int, float]:
    """A value of each run by its seed, where it is positive and finite."""
    found = {run.seed: figure(run) for run in runs}
    return {seed: value for seed, value in found.items() if np.isfinite(value) and value > 0}


Seeds = Mapping[int, float]
"""A value of each seed."""


def average(values: Sequence[float], log: bool) -> float:
    """The mean, or the geometric mean; NaN where there is none."""
    if log:
        return geometric_mean(values)
    return math.fsum(values) / len(values) if values else math.nan


def interval(values: Sequence[float], log: bool, *, of_share: bool = False) -> tuple[float, float] | None:
    """The 95 % t-interval of the average; None with fewer than three values, of which it spans decades."""
    if len(values) < 3:
        return None
    return log_interval(values) if log else t_interval(values, of_share=of_share)


def apart(one: Seeds, other: Seeds, log: bool) -> str:
    """How `one` differs from `other`, paired by seed: `3.1× lower`, `0.12 higher`; empty where seeds leave a doubt. A
    difference is clear where the 95 % t-interval of three seeds or more leaves out 0."""
    if log:
        times = ratio(one, other)
        words = "lower" if times is None or times.value < 1 else "higher"
        return f"{times.times} {words}" if times is not None and times.clear and times.times != "1×" else ""
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    ends = interval(differences, False)
    if ends is None or ends[0] <= 0 <= ends[1]:
        return ""
    mean = average(differences, False)
    return f"{number(abs(mean), 2)} {'lower' if mean < 0 else 'higher'}"


def finding(view: View, what: str, at: Mapping[str, Mapping[str, Seeds]], log: bool) -> str:
    """A title: what the pair's arms have to each other at the first and at the last of these places; without a pair,
    which arm is highest at the last one, or how the one arm changes. `at`: place in words -> arm -> values."""
    places = list(at)
    ends = places[:: len(places) - 1] if len(places) > 1 else places
    if view.pair is not None:
        treated, control = (group.label for group in view.pair)
        places = [place for place, arms in at.items() if {*arms.get(treated, {})} & {*arms.get(control, {})}]
        ends = places[:: len(places) - 1] if len(places) > 1 else places
        found = {place: apart(at[place].get(treated, {}), at[place].get(control, {}), log) for place in places}
        ends = ends if any(found[place] for place in ends) else [place for place in places if found[place]][:1]
        if not ends:
            return f"{what}: no clear difference between {treated} and {control}"
        rest = f" than with {control}" if len(view.groups) > 2 else ""
        parts = [f"{found[place] or 'no clear difference'}{' ' * bool(place)}{place}" for place in ends]
        first = next(index for index, place in enumerate(ends) if found[place])
        parts[first] = parts[first].replace(found[ends[first]], f"{found[ends[first]]} with {treated}{rest}", 1)
        return f"{what}: {', '.join(parts)}"
    last = {arm: average(list(values.values()), log) for arm, values in at[places[-1]].items() if values}
    last = {arm: value for arm, value in last.items() if math.isfinite(value)}
    if len(view.groups) > 1 and last:
        high, low = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
        if not apart(at[places[-1]][high], at[places[-1]][low], log):
            return f"{what}: no clear difference between the arms {places[-1]}".rstrip()
        ends = [f"{word} with {arm} ({number(last[arm])})" for word, arm in (("highest", high), ("lowest", low))]
        return f"{what}: {', '.join(ends)} {places[-1]}".rstrip()
    (label,) = (group.label for group in view.groups[:1])
    values = [average(list(at[place].get(label, {}).values()), log) for place in ends]
    if len(ends) < 2:
        return f"{what}: {number(values[0])} ({label})"
    change = apart(at[ends[1]].get(label, {}), at[ends[0]].get(label, {}), log)
    verb = ("falls" if values[1] < values[0] else "rises") if change else "does not clearly change"
    return f"{what} {verb}, from {number(values[0])} {ends[0]} to {number(values[1])} {ends[1]} ({label})"


def compared(
    view: View,
    lr: float,
    figure: Callable[[Run], float],
    *,
    alone: str,
    unclear: str,
    clear: str,
    words: tuple[str, str] = ("less", "more"),
    metric: str = "",
) -> str:
    """A title by the ratio of `figure` between the pair: `clear`, continued by `3× less with batch norm`, or `unclear`,
    with a field for either arm; `alone` where there is no pair. The number is that of a claim on `metric`, if there is
    one."""
    if view.pair is None:
        return alone
    treated, control = (group.label for group in view.pair)
    found = view.claimed(metric, ratio(*(by_seed(group.at(lr), figure) for group in view.pair)))
    if found is None or not found.clear:
        return unclear.format(treated, control)
    rest = f" than with {control}" if len(view.groups) > 2 else ""
    return f"{clear} {found.times} {words[found.value >= 1]} with {treated}{rest}{found.proviso}"
