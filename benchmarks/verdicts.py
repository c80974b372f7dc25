"""How often a verdict is wrong, simulated: the tables of docs/decisions/010.

    python benchmarks/verdicts.py [--tables N]

Every true effect is exactly the smallest effect, where wrong verdicts are likeliest. Legend: T tables, N seeds, K
rates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bnlab.analysis.statistics import LEVEL, interval, ps, ps_same

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

DIFFERENCES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, size=shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, size=shape),
    "one of three values": lambda rng, shape: rng.integers(-1, 2, size=shape).astype(float),
    "log-normal, sd 0.5": lambda rng, shape: np.exp(rng.normal(size=shape) / 2) - np.exp(1 / 8),
    "exponential, long tail for the claim": lambda rng, shape: rng.exponential(size=shape) - 1,
    "exponential, long tail against it": lambda rng, shape: 1 - rng.exponential(size=shape),
}
"""Differences of mean 0."""
SEEDS = (6, 8, 12, 20)
RATES = 7


def in_parts(decide: Callable[[Floats], tuple[Floats, ...]], differences: Floats) -> tuple[Floats, ...]:
    """A decision on tables [T, N], a few tables at a time: every choice of signs of every table fills a memory."""
    parts = [decide(part) for part in np.array_split(differences, max(1, len(differences) // 200))]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def decided(differences: Floats) -> tuple[Floats, ...]:
    """Of tables [T, N]: which are supported, which refuted, for a smallest effect of 0; whose interval holds 0."""

    def decide(part: Floats) -> tuple[Floats, ...]:
        low, high = interval(part, resamples=999)
        support, refute = ps(part, part, 0.0)
        return (support <= LEVEL) & (low > 0), (refute <= LEVEL) & (high < 0), (low <= 0) & (high >= 0)

    return in_parts(decide, differences)


def decided_same(differences: Floats, within: float) -> tuple[Floats, ...]:
    """Of tables [T, N]: which are supported and which refuted, for a claim of sameness."""

    def decide(part: Floats) -> tuple[Floats, ...]:
        low, high = interval(part, resamples=999)
        support, refute = ps_same(part, part, within)
        inside, outside = (-within < low) & (high < within), (low > within) | (high < -within)
        return (support <= LEVEL) & inside, (refute <= LEVEL) & outside

    return in_parts(decide, differences)


def best(losses: Floats, *, leave_one_out: bool) -> Floats:
    """The loss of each seed at the rate with the best median over all seeds, or over all but this one. [T, K, N] ->
    [T, N]"""
    tables, _, seeds = losses.shape
    found = np.empty((tables, seeds))
    for seed in range(seeds):
        others = np.delete(losses, seed, axis=2) if leave_one_out else losses
        rate = np.median(others, axis=2).argmin(axis=1)
        found[:, seed] = losses[np.arange(tables), rate, seed]
    return found


def flat_and_peaked(rng: np.random.Generator, tables: int, seeds: int) -> tuple[Floats, Floats]:
    """Log losses [T, K, N] of an arm that is equally good at all rates, and of one that is as good at one alone."""
    flat = rng.normal(size=(tables, RATES, seeds))
    peaked = rng.normal(size=(tables, RATES, seeds))
    peaked[:, 1:] += 20
    return flat, peaked


def to_the_control_s_best(rng: np.random.Generator, tables: int, seeds: int, noise: float) -> list[Floats]:
    """Differences of log steps to what the control reaches in the median (`target: control`), their lowest and their
    highest, each [T, N], of two arms that do not differ: a saturating accuracy at 100 points, with noise at each."""
    steps = np.arange(1, 101) * 10.0

    def arm() -> Floats:
        level, pace = rng.normal(0.95, 0.01, (tables, seeds, 1)), 100 * np.exp(rng.normal(0, 0.3, (tables, seeds, 1)))
        return level * (1 - np.exp(-steps / pace)) + rng.normal(0, noise, (tables, seeds, len(steps)))

    treated, control = arm(), arm()
    target = np.median(control.max(axis=2), axis=1)[:, None, None]
    there = [of_arm >= target for of_arm in (treated, control)]
    log_steps = [np.log(np.where(hit.any(axis=2), steps[hit.argmax(axis=2)], steps[-1])) for hit in there]
    never = [~hit.any(axis=2) for hit in there]
    value = np.where(never[0] & never[1], 0.0, log_steps[1] - log_steps[0])
    low = np.where(never[0] & ~never[1], -np.inf, value)
    return [value, low, np.where(never[1], np.inf, value)]


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    shown = Table(*columns, title=title)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=4_000)
    tables = parser.parse_args().tables
    rng = np.random.default_rng(0)

    rows = []
    for name, draw in DIFFERENCES.items():
        for seeds in SEEDS:
            supported, refuted, held = decided(draw(rng, (tables, seeds)))
            rows.append((name, str(seeds), *(f"{share.mean():.3f}" for share in (supported, refuted, held))))
    table("One claim", ("differences", "seeds", "supported", "refuted", "interval holds the mean"), rows)

    rows = []
    for name, draw in DIFFERENCES.items():
        for within in (0.5, 2.0) if name == "normal" else (2.0,):
            for seeds in SEEDS:
                found = decided_same(draw(rng, (tables, seeds)) + within, within)
                rows.append((name, f"{within:g}", str(seeds), *(f"{share.mean():.3f}" for share in found)))
    table("Sameness, the true effect at its limit", ("differences", "within", "seeds", "supported", "refuted"), rows)

    rows = []
    for seeds in SEEDS:
        flat, peaked = flat_and_peaked(rng, tables, seeds)
        for words, leave_one_out in (("all seeds", False), ("the other seeds", True)):
            gains = best(peaked, leave_one_out=leave_one_out) - best(flat, leave_one_out=leave_one_out)
            supported, refuted, _ = decided(gains)
            rows.append((str(seeds), words, f"{gains.mean():.3f}", f"{supported.mean():.3f}", f"{refuted.mean():.3f}"))
    columns = ("seeds", "each seed's rate is chosen by", "mean difference", "supported", "refuted")
    table("best_lr, a flat arm against a peaked one", columns, rows)

    rows = []
    for noise in (0.0, 0.003, 0.01):
        for seeds in (6, 8, 12):
            value, low, high = to_the_control_s_best(rng, tables, seeds, noise)
            ends = in_parts(lambda part: interval(part, resamples=999), value)
            p = in_parts(lambda part: ps(part[..., 0], part[..., 1], 0.0), np.stack([low, high], axis=2))
            shares = ((p[0] <= LEVEL) & (ends[0] > 0), (p[1] <= LEVEL) & (ends[1] < 0))
            rows.append((f"{noise:g}", str(seeds), *(f"{share.mean():.3f}" for share in shares)))
    table("Steps to what the control reaches, arms alike", ("noise", "seeds", "supported", "refuted"), rows)

    rows = []
    draws = rng.normal(size=(tables, SEEDS[-1]))
    for looks in ((6,), (6, 8), (6, 8, 10, 12), (6, 8, 10, 12, 14, 16, 18, 20)):
        supported = refuted = np.zeros(tables, dtype=bool)
        for seeds in looks:
            now = decided(draws[:, :seeds])
            open_ = ~(supported | refuted)
            supported, refuted = supported | (open_ & now[0]), refuted | (open_ & now[1])
        rows.append((" ".join(map(str, looks)), f"{supported.mean():.3f}", f"{refuted.mean():.3f}"))
    table("Seeds added until a verdict is there", ("looks at", "supported", "refuted"), rows)


if __name__ == "__main__":
    main()
