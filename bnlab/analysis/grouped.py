"""Runs, or answers of trained nets, by keys: a row for each setting of the keys, averaged over the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnlab.analysis.select import rank, refuse_unknown_key
from bnlab.analysis.statistics import t_half_width
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


def mean_of(values: Sequence[float]) -> Mean:
    """
    >>> found = mean_of([1.0, 2.0, 3.0, math.nan])
    >>> found.n, found.mean, found.sd, round(found.high, 3)
    (3, 2.0, 1.0, 4.484)
    """
    kept = np.array([value for value in values if math.isfinite(value)])
    mean = float(kept.mean()) if len(kept) else math.nan
    sd = float(kept.std(ddof=1)) if len(kept) > 1 else math.nan
    half = float(t_half_width(kept)) if len(kept) > 1 else math.nan
    return Mean(n=len(kept), mean=mean, sd=sd, low=mean - half, high=mean + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """A table: for each setting of `keys` the number of `rows` in it, of those that diverged, and the means of `of`."""

    keys: tuple[str, ...]
    of: tuple[str, ...]
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


def grouped(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], of: Sequence[str], place: str = "--of") -> Groups:
    """`rows` are flat, as `bnlab runs` knows them; `keys` and `of` may be short names, such as `lr`. Rows are sorted by
    the keys.

    Raises:
        UsageError: a key that no row has, a value that is not a number.
    """
    if not keys:
        raise UsageError("--by", "missing", ",", "Give keys between commas.")
    wanted = [refuse_unknown_key("--by", key, rows) for key in keys]
    values = [refuse_unknown_key(place, name, rows) for name in of]
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(canonical([row.get(key) for key in wanted]), []).append(row)
    table = []
    for here in found.values():
        setting = tuple(here[0].get(key) for key in wanted)
        means = tuple(mean_of([_number(row.get(key), key) for row in here]) for key in values)
        table.append((setting, len(here), sum(row.get("status") == "diverged" for row in here), means))
    order = sorted(table, key=lambda row: [rank(value) or (2,) for value in row[0]])
    return Groups(keys=tuple(keys), of=tuple(of), rows=tuple(order))


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError("--of", "is not a number in these runs", name)
    return float(value)


def _text(value: float) -> str:
    return number(value, 4) if math.isfinite(value) else "-"
