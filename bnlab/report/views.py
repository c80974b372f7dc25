"""What figures are drawn from: views of the runs, arm by arm, and averages over their seeds. Nothing here draws."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnlab.analysis.arms import Arms, Key, arms_of, frozen
from bnlab.analysis.claims import Verdict
from bnlab.analysis.load import Collection
from bnlab.analysis.metrics.losses import chance_loss
from bnlab.analysis.metrics.rates import largest_of
from bnlab.analysis.statistics import t_half_width
from bnlab.core.study import evenly
from bnlab.core.text import short_key
from bnlab.record.runs import Run
from bnlab.report.style import Look, looks_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure
Floats = NDArray[np.float64]
MOST_PANELS = 4
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
    target: Target | None = None

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
        """Arms that have a panel each: the first few."""
        return self.groups[:MOST_PANELS]

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


class Missing(Exception):  # noqa: N818  (an answer, not an error)
    """A figure cannot be drawn from these runs; the message says what is missing, `remedy` how to measure it."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A report that was written; of a folder of several studies `path` leads to their reports, the `parts`."""

    path: Path
    verdicts: tuple[Verdict, ...]
    figures: tuple[str, ...]
    unfinished: tuple[Run, ...]
    runs: int
    failed: tuple[str, ...] = ()  # a line for each metric or figure of a user that raised an error
    notes: tuple[str, ...] = ()  # a line for each plugin of metrics or figures that was edited since
    parts: tuple[Built, ...] = ()
    study: str = ""
    title: str = ""
    seeds: tuple[int, ...] = ()
    versions: tuple[str, ...] = ()
    run_s: float = 0.0
    """Seconds of training, over all runs."""


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


MOST_ARMS, MOST_VIEWS = 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """`views` for figures; `arms` of every run by its id, and in their order, for tables; `left_out`: what is not
    drawn, in words."""

    views: tuple[View, ...]
    arms: Mapping[str, str]
    order: tuple[str, ...]
    left_out: tuple[str, ...]


def prepare(collection: Collection) -> Prepared:
    """The views of a report: one for each setting of the axes that are neither arm, learning rate nor seed; the first,
    the last and one between them where there are many."""
    runs, arms = collection.runs, arms_of(collection)
    settings = list(arms.settings)
    shown = [settings[index] for index in evenly(len(settings), MOST_VIEWS)]
    left_out = []
    if len(settings) > len(shown):
        left_out.append(
            f"figures for {len(shown)} of {len(settings)} settings of {', '.join(map(short_key, arms.rest))}; the "
            "others are in the table and in summary.parquet"
        )
    views = []
    for setting in shown:
        here = [run for run in runs if arms.setting(run) == setting]
        views.append(_view(collection, here, arms, arms.settings[setting] if len(settings) > 1 else ""))
    return Prepared(
        views=tuple(views),
        arms={run.id: arms.label(run) for run in runs},
        order=tuple(arms.labels(runs)),
        left_out=tuple(left_out),
    )


def _view(collection: Collection, runs: Sequence[Run], arms: Arms, setting: str) -> View:
    by_arm: dict[Key, list[Run]] = {arm: [] for arm in arms.names}
    for run in runs:
        by_arm[arms.arm(run)].append(run)
    there = [arm for arm in by_arm if by_arm[arm]]
    shown, others = there[:MOST_ARMS], there[MOST_ARMS:]
    norms = [str(by_arm[arm][0].spec.get("norm")) for arm in shown]
    groups = tuple(
        Group(label=arms.names[arm], look=look, runs=_seen(collection, by_arm[arm]))
        for arm, look in zip(shown, looks_for(norms), strict=True)
    )
    return View(
        groups=groups,
        setting=setting,
        chance_loss=chance_loss(runs[0]),
        reduced=f"Not drawn: {', '.join(arms.names[arm] for arm in others)}." if others else "",
        pair=_pair(collection, arms.axis, {dict(arm).get(arms.axis): g for arm, g in zip(shown, groups, strict=True)}),
        target=_target(collection),
    )


def _pair(collection: Collection, axis: str, groups: Mapping[Any, Group]) -> tuple[Group, Group] | None:
    """The two arms that titles compare: those of the first claim on this axis, else batch norm and none, else both of
    two. `groups` are by their value of the axis."""
    claims = collection.study.claims if collection.study else ()
    wanted = [tuple(map(frozen, claim.contrast[axis])) for claim in claims if axis in claim.contrast]
    for treated, control in (*wanted, ("batch", "none")):
        if treated in groups and control in groups and treated != control:
            return groups[treated], groups[control]
    if len(groups) == 2:
        control, treated = groups
        return groups[treated], groups[control]
    return None


def _target(collection: Collection) -> Target | None:
    """The target of the first claim about steps to a training loss."""
    for claim in collection.study.claims if collection.study else ():
        options = claim.options
        if claim.metric == "steps_to" and options.get("of") == "train_loss":
            return Target(loss=float(options["target"]), smooth=int(options["smooth"]))
    return None


def _seen(collection: Collection, runs: Sequence[Run]) -> tuple[Run, ...]:
    """One run per rate and seed: of several that differ in their probes alone, the one with the longest journal."""
    best: dict[tuple[float, int], Run] = {}
    for run in runs:
        at = run.lr, run.seed
        if at not in best or run.folder.journal_bytes > best[at].folder.journal_bytes:
            best[at] = run
    return tuple(run for _, run in sorted(best.items()))


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


def compared(
    view: View,
    lr: float,
    figure: Callable[[Run], float],
    *,
    alone: str,
    unclear: str,
    clear: str,
    words: tuple[str, str] = ("less", "more"),
) -> str:
    """A title by the ratio of `figure` between the pair: `clear`, continued by `3× less with batch norm`, or `unclear`,
    with a field for either arm; `alone` where there is no pair."""
    if view.pair is None:
        return alone
    treated, control = (group.label for group in view.pair)
    found = ratio(*(by_seed(group.at(lr), figure) for group in view.pair))
    if found is None or not found.clear:
        return unclear.format(treated, control)
    rest = f" than with {control}" if len(view.groups) > 2 else ""
    return f"{clear} {found.times} {words[found.value >= 1]} with {treated}{rest}{found.proviso}"
