"""The runs of a claim's two arms on one grid: seeds, and cells of a learning rate and a setting of the other axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.analysis.load import Collection
from bnlab.core.spec import GROUPS, canonical
from bnlab.core.study import Claim, Study, varying
from bnlab.record.runs import Run

RATE = "optim.lr"


class NotTestedError(Exception):
    """There is nothing to compare; says why."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A learning rate (or another factor's value), in a setting of the other axes, canonical text."""

    rate: float
    setting: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One arm: seed -> cell -> run. In a contrast of seeds, the treated arm's seeds stand for both."""

    label: str
    runs: Mapping[int, Mapping[Cell, Run]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Both arms over the same seeds and cells, all there."""

    treated: Side
    control: Side
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    factor: str
    cautions: tuple[str, ...]

    @property
    def settings(self) -> list[str]:
        return sorted({cell.setting for cell in self.cells})


def sides(collection: Collection, claim: Claim, factor: str = RATE) -> Grid:
    """Both arms of a claim, on the cells that both have; a seed without all of them is left out.

    Raises:
        NotTestedError: an arm has no runs, or no seed has both arms.
    """
    if factor in claim.contrast and claim.at == "curve":
        raise NotTestedError(f"{factor} is what is contrasted, so there is no curve over it")
    labels = [_label(claim, index) for index in (0, 1)]
    arms = [_runs(collection, claim, index) for index in (0, 1)]
    for label, runs in zip(labels, arms, strict=True):
        if not runs:
            narrowed = (
                f", where {', '.join(f'{key}={value}' for key, value in claim.where.items())}," if claim.where else ""
            )
            raise NotTestedError(f"there are no runs of {label}{narrowed} that ended")
    keys = _matched(collection, claim, [*arms[0], *arms[1]], factor)
    arms, cautions = _one_version(collection.study, arms, keys)
    laid = [_laid(collection, claim, runs, index, keys, factor) for index, runs in enumerate(arms)]
    have = [{cell for cells in arm.values() for cell in cells} for arm in laid]
    common = tuple(sorted(have[0] & have[1]))
    if not common:
        raise NotTestedError(f"{labels[0]} and {labels[1]} have no learning rate and setting in common")
    cautions += _left_out(have, labels, common, factor)
    both = sorted(laid[0].keys() & laid[1].keys())
    seeds = tuple(seed for seed in both if all(cell in arm[seed] for arm in laid for cell in common))
    if not seeds:
        raise NotTestedError("no seed has all runs of both arms" if both else "the arms have no seed in common")
    if left := sorted((laid[0].keys() | laid[1].keys()) - set(seeds)):
        cautions.append(f"left out, since runs of theirs are missing or did not end: seeds {' '.join(map(str, left))}")
    return Grid(
        treated=Side(label=labels[0], runs=laid[0]),
        control=Side(label=labels[1], runs=laid[1]),
        seeds=seeds,
        cells=common,
        factor=factor,
        cautions=tuple(cautions),
    )


def _one_version(study: Study | None, arms: list[list[Run]], keys: Sequence[str]) -> tuple[list[list[Run]], list[str]]:
    """The runs of one version of the study: where runs differ in what is no axis of it, as after an edit, those that
    agree with most of its overrides, then the most."""
    foreign = [
        key for key in keys if study and not any(key == axis or key.startswith(f"{axis}.") for axis in study.axes)
    ]
    if study is None or not foreign:
        return arms, []

    def version(run: Run) -> str:
        return canonical({key: run.spec.get(key) for key in foreign})

    runs = [run for arm in arms for run in arm]
    counts = Counter(version(run) for run in runs)
    agree = {
        version(run): sum(_same(run.spec.get(key), value) for key, value in study.overrides.items()) for run in runs
    }
    kept = max(sorted(counts), key=lambda text: (agree[text], counts[text]))
    left = len(runs) - counts[kept]
    caution = f"left out, since they differ in {', '.join(foreign)}, no axis of the study: {left} runs"
    return [[run for run in arm if version(run) == kept] for arm in arms], [caution]


def _left_out(have: Sequence[set[Cell]], labels: Sequence[str], common: Sequence[Cell], factor: str) -> list[str]:
    found = []
    for cells, label in zip(have, labels, strict=True):
        if more := sorted({cell.rate for cell in cells - set(common)}):
            listed = " ".join(f"{rate:g}" for rate in more)
            found.append(f"left out, since only {label} has it: {factor.rpartition('.')[2]} {listed}")
    return found


def _same(value: Any, wanted: Any) -> bool:
    return canonical(value) == canonical(wanted)


def _runs(collection: Collection, claim: Claim, index: int) -> list[Run]:
    def fits(run: Run) -> bool:
        for key, pair in claim.contrast.items():
            wanted = pair[index]
            if key == "seed" and isinstance(wanted, list | tuple):
                if run.spec.get("seed") not in wanted:
                    return False
            elif key not in run.spec or not _same(run.spec[key], wanted):
                return False
        return all(key in run.spec and _same(run.spec[key], value) for key, value in claim.where.items())

    return [run for run in collection.runs if fits(run)]


def _matched(collection: Collection, claim: Claim, runs: Sequence[Run], factor: str) -> list[str]:
    """Keys besides seed, factor and contrast in which runs differ. What belongs to a contrasted group goes with its
    choice (`norm.groups` with `norm`), unless the study has it as an axis."""
    axes = set(collection.study.axes) if collection.study else set()
    own = tuple(f"{key}." for key in claim.contrast if key in GROUPS)
    skipped = {"seed", factor, RATE, *claim.contrast}
    keys = sorted(set(varying(run.spec for run in runs)) - skipped)
    return [key for key in keys if key in axes or not key.startswith(own)]


def _laid(
    collection: Collection, claim: Claim, runs: Sequence[Run], index: int, keys: Sequence[str], factor: str
) -> dict[int, dict[Cell, Run]]:
    """Seed -> cell -> run. Over another factor than the learning rate, each cell has its best learning rate."""
    seeds = {}
    if "seed" in claim.contrast:
        pair = claim.contrast["seed"]
        many = isinstance(pair[index], list | tuple)
        of = pair[index] if many else [pair[index]]
        stands = pair[0] if many else [pair[0]]
        seeds = dict(zip(of, stands, strict=False))
    found: dict[int, dict[Cell, Run]] = {}
    for run in runs:
        seed = seeds.get(run.spec["seed"], run.spec["seed"])
        rate = 0.0 if factor in claim.contrast else _number(collection, run, factor)
        setting = canonical({key: run.spec.get(key) for key in keys}) if keys else ""
        cells = found.setdefault(seed, {})
        cell = Cell(rate, setting)
        if cell in cells and factor != RATE:
            run = min(cells[cell], run, key=lambda run: collection.value(run, "final_train_loss", {}).value)
        cells[cell] = run
    return found


def _number(collection: Collection, run: Run, factor: str) -> float:
    """The factor's value; of one that is no number, its place among all of its values."""
    value = run.spec.get(factor)
    if isinstance(value, int | float):
        return float(value)
    return float(sorted({canonical(other.spec.get(factor)) for other in collection.runs}).index(canonical(value)))


def _label(claim: Claim, index: int) -> str:
    """`batch`; `data.batch_size=8` where a value alone says little."""
    parts = []
    for key, pair in claim.contrast.items():
        value = pair[index]
        if isinstance(value, list | tuple):
            run = key == "seed" and len(value) > 2 and list(value) == list(range(value[0], value[0] + len(value)))
            value = f"{value[0]} to {value[-1]}" if run else " ".join(str(item) for item in value)
            parts.append(f"{key}s {value}" if key == "seed" else f"{key}={value}")
        else:
            parts.append(str(value) if key in GROUPS else f"{key}={value}")
    return ", ".join(parts)
