"""Runs, or answers of trained nets, by keys: a row for each setting of the keys, averaged over the rest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.analysis.select import rank, refuse_unknown_key
from bnlab.analysis.statistics import t_interval
from bnlab.core.errors import UsageError
from bnlab.core.spec import canonical
from bnlab.core.text import number, typed


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Of `n` finite values: mean, standard deviation (n - 1), and the 95 % t-interval of the mean; NaN where they need
    more values."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def mean_of(values: Sequence[float], *, of_share: bool = False) -> Mean:
    """Of finite values; those of shares have an interval that ends at 0 and 1.

    >>> found = mean_of([1.0, 2.0, 3.0])
    >>> found.n, found.mean, found.sd, round(found.high, 3)
    (3, 2.0, 1.0, 4.484)
    """
    low, high = t_interval(values, of_share=of_share) or (math.nan, math.nan)
    mean = math.fsum(values) / len(values) if values else math.nan
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return Mean(n=len(values), mean=mean, sd=sd, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """A table: for each setting of `keys` the number of runs in it, of those that diverged, and the means of `of`, over
    runs: several rows of one run, as of answers, are averaged first. `pooled` are keys in which runs of a setting
    differ, beside the seed."""

    keys: tuple[str, ...]
    of: tuple[str, ...]
    pooled: tuple[str, ...] = ()
    rows: tuple[tuple[tuple[Any, ...], int, int, tuple[Mean, ...]], ...]

    def tree(self) -> list[dict[str, Any]]:
        """As --json and --csv have it: `test_accuracy`, `test_accuracy.sd`, `.low_95`, `.high_95` and `.n`."""
        found = []
        for setting, count, diverged, means in self.rows:
            row: dict[str, Any] = {**dict(zip(self.keys, setting, strict=True)), "runs": count, "diverged": diverged}
            for name, mean in zip(self.of, means, strict=True):
                values = {"": mean.mean, ".sd": mean.sd, ".low_95": mean.low, ".high_95": mean.high}
                row |= {f"{name}{end}": value if math.isfinite(value) else None for end, value in values.items()}
                row[f"{name}.n"] = mean.n
            found.append(row)
        return found

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and texts for people."""
        shown = [(name, name.replace("_", " ").replace("accuracy", "acc")) for name in self.of]
        heads = [*self.keys, "runs", "diverged"]
        heads += [head for _, name in shown for head in (name, "sd", "95 % interval", "n")]
        lines = []
        for setting, count, diverged, means in self.rows:
            line = [*map(typed, setting), str(count), str(diverged)]
            for mean in means:
                ends = f"{number(mean.low, 4)} to {number(mean.high, 4)}" if math.isfinite(mean.low) else "-"
                line += [_text(mean.mean), _text(mean.sd), ends, str(mean.n)]
            lines.append(line)
        return heads, lines


def grouped(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], of: Sequence[str], axes: Sequence[str] = ()
) -> Groups:
    """`rows` are flat, as `bnlab runs` knows them; `keys` and `of` may be short names, such as `lr`. Rows are sorted by
    the keys. `axes` are what may be `pooled`.

    Raises:
        UsageError: a key that no row has, a value that is not a number.
    """
    if not keys:
        raise UsageError("--by", "missing", ",", "Give keys between commas.")
    wanted = [refuse_unknown_key("--by", key, rows) for key in keys]
    values = [refuse_unknown_key("--of", name, rows) for name in of]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(canonical([row.get(key) for key in wanted]), []).append(row)
    table = []
    pooled: dict[str, None] = {}
    for here in found.values():
        setting = tuple(here[0].get(key) for key in wanted)
        runs: dict[Any, list[Mapping[str, Any]]] = {}
        for row in here:
            runs.setdefault(row.get("run"), []).append(row)
        lost = sum(of_run[0].get("status") == "diverged" for of_run in runs.values())
        table.append((setting, len(runs), lost, tuple(_mean(runs.values(), key) for key in values)))
        pooled |= dict.fromkeys(key for key in axes if len({canonical(row.get(key)) for row in here}) > 1)
    more = tuple(key for key in pooled if key not in wanted and key != "seed")
    order = sorted(table, key=lambda row: [rank(value) or (2,) for value in row[0]])
    return Groups(keys=tuple(keys), of=tuple(of), pooled=more, rows=tuple(order))


def _mean(runs: Iterable[Sequence[Mapping[str, Any]]], key: str) -> Mean:
    """Over the runs, of each run's mean over its rows."""
    each = [[value for row in of_run if math.isfinite(value := _number(row.get(key), key))] for of_run in runs]
    return mean_of([math.fsum(values) / len(values) for values in each if values], of_share="accuracy" in key)


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("--of", "is not a number in these runs", name)
    return float(value)


def _text(value: float) -> str:
    return number(value, 4) if math.isfinite(value) else "-"
