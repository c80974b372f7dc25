"""The runs of a claim's two arms on one grid of seeds, learning rates and settings of the other axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnlab.analysis.load import Collection
from bnlab.core.spec import GROUPS, canonical
from bnlab.core.study import ARM, METRIC, Claim, label, tied, varying
from bnlab.record.runs import Run

RATE = "optim.lr"


class NotTestedError(Exception):
    """There is nothing to compare. Its text says why."""


@dataclass(frozen=True, slots=True, order=True)
class GridPoint:
    """A learning rate in a setting of the other axes, as canonical text; with the value of the factor, if a metric's
    curve is over another one."""

    rate: float
    setting: str = ""
    factor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One arm: seed -> grid point -> run. In a contrast of seeds, both arms have the treated arm's seeds."""

    label: str
    runs: Mapping[int, Mapping[GridPoint, Run]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Both arms, the treated one first, over the same seeds and grid points, without gaps."""

    arms: tuple[Side, Side]
    seeds: tuple[int, ...]
    points: tuple[GridPoint, ...]
    cautions: tuple[str, ...]

    def settings(self) -> list[list[GridPoint]]:
        """The grid points of each setting of the other axes."""
        names = sorted({point.setting for point in self.points})
        return [[point for point in self.points if point.setting == name] for name in names]


def sides(collection: Collection, claim: Claim, factor: str = RATE) -> Grid:
    """Both arms of a claim, on the grid points that both have; a seed without all of them is left out.

    Raises:
        NotTestedError: an arm has no runs, or no seed has both arms.
    """
    if factor in claim.contrast and claim.at == "curve":
        raise NotTestedError(f"{factor} is contrasted, so there is no curve over it")
    labels = [_label(claim, index) for index in (0, 1)]
    collection = collection.about(claim.metric, claim.options)
    chosen = [[run for run in collection.runs if _is_in(run, claim, index)] for index in (0, 1)]
    for name, runs in zip(labels, chosen, strict=True):
        if not runs:
            where = f", where {label(claim.where, full=True)}," if claim.where else ""
            raise NotTestedError(f"there are no runs of {name}{where} that ended")
    keys = _matched(collection, claim, chosen, factor)
    chosen, cautions = _of_one_version(collection, chosen, keys)
    arms = [_by_point(collection, claim, runs, index, keys, factor) for index, runs in enumerate(chosen)]
    points = [{point for by_point in arm.values() for point in by_point} for arm in arms]
    common = tuple(sorted(points[0] & points[1]))
    if not common:
        raise NotTestedError(f"{labels[0]} and {labels[1]} have no learning rate and setting in common")
    for name, of_arm in zip(labels, points, strict=True):
        if rates := sorted({point.rate for point in of_arm - set(common)}):
            values = " ".join(f"{rate:g}" for rate in rates)
            cautions.append(f"left out, since only {name} has it: lr {values}")
    both = sorted(arms[0].keys() & arms[1].keys())
    seeds = [seed for seed in both if all(point in arm[seed] for arm in arms for point in common)]
    if not seeds:
        raise NotTestedError("no seed has all runs of both arms" if both else "the arms have no seed in common")
    if left := sorted((arms[0].keys() | arms[1].keys()) - set(seeds)):
        missing = "some of their runs are missing or did not end"
        cautions.append(f"left out, since {missing}: seeds {' '.join(map(str, left))}")
    treated, control = (Side(label=name, runs=arm) for name, arm in zip(labels, arms, strict=True))
    return Grid(arms=(treated, control), seeds=tuple(seeds), points=common, cautions=tuple(cautions))


def _of_one_version(
    collection: Collection, arms: list[list[Run]], keys: Sequence[str]
) -> tuple[list[list[Run]], list[str]]:
    """The runs of one version of the study. After an edit, runs may differ in keys that are not axes: those count that
    agree with most of the study's overrides, and of equally good versions the one with most runs."""
    study = collection.study
    axes = tuple(f"{axis}." for axis in study.varied()) if study else ()
    foreign = [key for key in keys if not f"{key}.".startswith(axes)]
    if study is None or not foreign:
        return arms, []

    def version(run: Run) -> str:
        return canonical({key: run.spec.get(key) for key in foreign})

    runs = [run for arm in arms for run in arm]
    counts = Counter(version(run) for run in runs)
    wanted = study.overrides.items()
    agree = {version(run): sum(_same(run.spec.get(key), value) for key, value in wanted) for run in runs}
    kept = max(sorted(counts), key=lambda text: (agree[text], counts[text]))
    left = len(runs) - counts[kept]
    caution = f"left out, since they differ in {', '.join(foreign)}, which is not an axis of the study: {left} runs"
    return [[run for run in arm if version(run) == kept] for arm in arms], [caution]


def _same(value: Any, wanted: Any) -> bool:
    return canonical(value) == canonical(wanted)


def _is_in(run: Run, claim: Claim, index: int) -> bool:
    """Whether the run is in the treated arm (0) or the control arm (1)."""
    arms = ((key, pair[index]) for key, pair in claim.contrast.items() if key not in ("seed", METRIC))
    wanted = [*claim.where.items(), *arms]
    if "seed" in claim.contrast and run.spec.get("seed") not in _seeds(claim)[index]:
        return False
    return all(key in run.spec and _same(run.spec[key], value) for key, value in wanted)


def _seeds(claim: Claim) -> list[list[int]]:
    """The seeds of both arms where seeds are contrasted."""
    pair = claim.contrast.get("seed", ([], []))
    return [list(seeds) if isinstance(seeds, list | tuple) else [seeds] for seeds in pair]


def _matched(collection: Collection, claim: Claim, arms: Sequence[Sequence[Run]], factor: str) -> list[str]:
    """The keys in which runs differ, besides seed, factor and contrast. Options of a contrasted group belong to its
    choice (`norm.groups` to `norm`), unless the study has them as axes."""
    axes = collection.study.varied() if collection.study else set()
    bundles = collection.study.settings_of_arms() if collection.study and ARM in claim.contrast else ()
    contrasted = {*claim.contrast, *bundles}
    own = tuple(f"{key}." for key in contrasted if key in GROUPS)
    specs = [run.spec for arm in arms for run in arm]
    differing = set(varying(specs)) - {"seed", factor, RATE, *contrasted, *tied(specs)}
    return [key for key in sorted(differing) if key in axes or not key.startswith(own)]


def _by_point(
    collection: Collection, claim: Claim, runs: Sequence[Run], index: int, keys: Sequence[str], factor: str
) -> dict[int, dict[GridPoint, Run]]:
    """Seed -> grid point -> run."""
    pair = _seeds(claim)
    treated_seeds = dict(zip(pair[index], pair[0], strict=False))
    found: dict[int, dict[GridPoint, Run]] = {}
    for run in runs:
        rate = 0.0 if RATE in claim.contrast else _number(collection, run, RATE)
        setting = canonical({key: run.spec.get(key) for key in keys}) if keys else ""
        point = GridPoint(rate, setting, 0.0 if factor == RATE else _number(collection, run, factor))
        found.setdefault(treated_seeds.get(run.seed, run.seed), {})[point] = run
    return found


def _number(collection: Collection, run: Run, factor: str) -> float:
    """The factor's value; if it is not a number, its place among all of the factor's values."""
    value = run.spec.get(factor)
    if isinstance(value, int | float):
        return float(value)
    return float(sorted({canonical(other.spec.get(factor)) for other in collection.runs}).index(canonical(value)))


def _label(claim: Claim, index: int) -> str:
    """`batch`; `data.batch_size=8` where a value alone says little; `seeds 0 to 5`."""
    if claim.against is not None:
        return (label(claim.where, full=True) or "all runs", f"{claim.against}")[index]
    words = []
    for key, pair in claim.contrast.items():
        if key == METRIC:
            words.append(str(pair[index]))
            continue
        several = key == "seed" and isinstance(pair[index], list | tuple)
        words.append(f"seeds {_in_words(pair[index])}" if several else label({key: pair[index]}, full=True))
    return ", ".join(words)


def _in_words(seeds: Sequence[int]) -> str:
    """`0 to 5`, or `3 2`."""
    is_range = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if is_range else " ".join(map(str, seeds))
