"""What a figure is made of and what it gives; the runs as figures see them. Nothing here draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnlab.analysis.base import Verdict
from bnlab.analysis.metrics.rates import largest_of
from bnlab.record.runs import Run
from bnlab.report.style import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
MOST_PANELS = 4
Cell = str | int | float | None
Series = Callable[[str], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRun:
    """A run that has ended, as figures see it. `series(metric)` gives steps [T] and values [T] or [T, L], of the steps
    at which it was measured; NaN where it was not finite; both empty where it never was."""

    path: str
    lr: float
    seed: int
    diverged: bool
    dead: bool
    step: int
    metrics: Mapping[str, float]
    spec: Mapping[str, Any]
    series: Series
    names: Callable[[str], list[str]] = field(default=lambda prefix: [])
    """The names in its journal that begin so, in the journal's order."""

    @property
    def trained(self) -> bool:
        """Neither diverged nor at chance at its end."""
        return not (self.diverged or self.dead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one arm: one setting of everything but learning rate and seed."""

    label: str
    look: Look
    runs: tuple[SeenRun, ...]

    @property
    def rates(self) -> list[float]:
        return sorted({run.lr for run in self.runs})

    def at(self, lr: float) -> list[SeenRun]:
        """Its runs at that learning rate, by seed."""
        return sorted((run for run in self.runs if run.lr == lr), key=lambda run: run.seed)

    def trains_at(self, lr: float) -> bool:
        """Whether there are runs at `lr`, all of which train."""
        there = self.at(lr)
        return bool(there) and all(run.trained for run in there)

    @property
    def top_rate(self) -> float | None:
        """The largest rate, going up without a gap, at which all of its runs train."""
        good = [self.trains_at(lr) for lr in self.rates]
        if not any(good):
            return None
        found = largest_of(np.array(self.rates), good).value
        return float(found)

    def best_rate(self, metric: str = "train_loss") -> float | None:
        """The rate, of those at which all runs train, with the smallest geometric mean of a final figure."""
        found = {
            lr: geometric_mean([run.metrics.get(metric, math.nan) for run in self.at(lr)])
            for lr in self.rates
            if self.trains_at(lr)
        }
        finite = {lr: value for lr, value in found.items() if math.isfinite(value)}
        return min(finite, key=finite.__getitem__) if finite else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The training loss that a claim asks nets to reach, the median of the last `smooth` measured values."""

    loss: float
    smooth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Arms to be drawn together. `setting` tells one view of a report from another: `depth 20`; empty where there is
    one view only. With a `pair`, titles speak of these two arms, the treated one first."""

    groups: tuple[Group, ...]
    setting: str = ""
    chance_loss: float | None = None
    reduced: str = ""
    """Which arms are not drawn, in words."""
    pair_labels: tuple[str, str] | None = None
    target: Target | None = None

    @property
    def rates(self) -> list[float]:
        return sorted({run.lr for group in self.groups for run in group.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for group in self.groups for run in group.runs})

    def titled(self, finding: str) -> str:
        """The finding, after the setting that it is about."""
        return f"{self.setting[:1].upper()}{self.setting[1:]}: {finding}" if self.setting else finding

    @property
    def panels(self) -> tuple[Group, ...]:
        """Arms that have a panel each: the first few."""
        return self.groups[:MOST_PANELS]

    @property
    def pair(self) -> tuple[Group, Group] | None:
        """The treated arm and its control."""
        if self.pair_labels is None:
            return None
        by_label = {group.label: group for group in self.groups}
        treated, control = self.pair_labels
        return by_label[treated], by_label[control]

    def common_rate(self) -> tuple[float | None, str]:
        """The one rate at which arms are shown side by side, and why this one: the largest at which every run of every
        arm trains; else that at which most runs do, the larger of equals."""
        matched = [lr for lr in self.rates if all(group.trains_at(lr) for group in self.groups)]
        if matched:
            return matched[-1], "the largest at which every run trains"
        shared = [lr for lr in self.rates if all(group.at(lr) for group in self.groups)]
        if not shared:
            return None, ""
        most = max(shared, key=lambda lr: (sum(run.trained for group in self.groups for run in group.at(lr)), lr))
        return most, "there is none at which every run trains; here most do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure: `title` states what was found, `note` the statistic, `about` what is drawn; `columns` and `rows` are
    the numbers in it."""

    name: str
    title: str
    note: str
    about: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    figure: Figure = field(repr=False, compare=False)


class Missing(Exception):  # noqa: N818  (an answer, not an error)
    """A figure cannot be drawn from these runs; the message says what is lacking, `remedy` how to get it."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


class FigureModule(Protocol):
    """A file in report/figures."""

    ORDER: int
    """Its place in the report."""
    SUBJECT: str
    """What it shows, in a few words."""

    def draw(self, view: View, name: str) -> Drawn:
        """Raises:
        Missing: the runs lack what it needs.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A figure that could not be drawn."""

    subject: str
    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A report that was written. Of a folder of several studies, `parts` are their reports, and `path` leads to
    them."""

    path: Path
    verdicts: tuple[Verdict, ...]
    figures: tuple[str, ...]
    unfinished: tuple[Run, ...]
    runs: int
    parts: tuple[Built, ...] = ()


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
    from scipy.special import stdtrit

    logs = np.log(np.asarray(values, np.float64))
    half = float(stdtrit(len(logs) - 1, 0.975)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return math.exp(float(logs.mean()) - half), math.exp(min(700.0, float(logs.mean()) + half))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times larger one arm's figure is than another's; `clear`: the seeds leave no doubt of the direction."""

    value: float
    clear: bool
    n: int

    @property
    def times(self) -> str:
        """
        >>> Ratio(value=0.05, clear=True, n=3).times
        '20×'
        """
        size = max(self.value, 1 / self.value)
        return f"{size:.2g}×" if size < 100 else f"{float(f'{size:.1g}'):,.0f}×"

    @property
    def proviso(self) -> str:
        """What must be said beside the title when there are few seeds."""
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
