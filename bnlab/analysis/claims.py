"""Claims and verdicts: what a verdict says, which claims can be judged, and which verdicts a user expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from bnlab.analysis.metrics import METRICS, about_answers, measurements, refuse_control, refuse_unknown
from bnlab.core import theory
from bnlab.core.conditions import conditions, of_run
from bnlab.core.errors import UsageError, nearest
from bnlab.core.registry import load_plugins
from bnlab.core.safe import safe_yaml
from bnlab.core.spec import GROUPS, canonical
from bnlab.core.study import ARM, METRIC, Cell, Claim, Study
from bnlab.record.runs import flat

Decision = Literal["supported", "refuted", "inconclusive", "direction only", "not tested"]
SIGNS: Mapping[Decision, str] = dict(zip(get_args(Decision), "✓✕?→·", strict=True))
"""The sign of each decision, in terminals and reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One side of a claim: the value of the contrasted axis, and the metric's value at each of the verdict's seeds."""

    label: str
    values: tuple[float, ...]
    point: str
    """Where it was compared, in words: `lr 0.1`, `9 learning rates`."""
    runs: tuple[str, ...]
    """Paths of its runs, below the report's root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the runs say about a claim. `effect` and `interval` are on the scale of the claim; None where there is none,
    such as an interval of fewer than 3 seeds."""

    claim: Claim
    decision: Decision
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    """One-sided, in the direction that is nearer to a decision, adjusted by Holm over the report's claims. None where
    nothing was tested."""
    n: int = 0
    """Paired seeds."""
    seeds: tuple[int, ...] = ()
    treated: Arm | None = None
    control: Arm | None = None
    why: str
    """One line of text with the numbers."""
    measured: str = ""
    """What was measured, without numbers."""
    least_p: float | None = None
    """The smallest p that so many seeds allow."""
    cautions: tuple[str, ...] = ()
    """A best learning rate at the grid's edge, a claim edited after its first run, ..."""
    repeat: float | None = None
    """The chance that another draw of seeds gives the same decision, by resampling the seeds; None where nothing was
    tested."""


def facts(verdict: Verdict) -> dict[str, Any]:
    """A verdict as `verdicts.json` has it, its numbers to four digits."""
    tested = verdict.effect is not None
    return {
        "digest": verdict.claim.digest,
        "decision": verdict.decision,
        "effect": _rounded(verdict.effect),
        "interval": [_rounded(end) for end in verdict.interval] if verdict.interval else None,
        "p": _rounded(verdict.p),
        "n": verdict.n,
        "repeat": _rounded(verdict.repeat),
        "compare": verdict.claim.compare,
        "treated": verdict.treated.label if verdict.treated else None,
        "control": verdict.control.label if verdict.control else None,
        **({} if tested else {"why": verdict.why}),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def check(study: Study, plugins: Iterable[str] = ()) -> None:
    """Refuse claims that could never be judged, before anything runs. Plugins are loaded only if a claim names a metric
    that bnlab does not have, since they may import torch.

    Raises:
        UsageError: no such metric or option, a point that does not go with the metric, ...
    """
    if any(map(unknown_metric, study.claims)):
        load_plugins(plugins)
    for claim in study.claims:
        if metric := unknown_metric(claim):
            key = "metric" if metric == claim.metric else "options.of"
            raise UsageError(f"claims.{claim.name}.{key}", "no such metric", metric, nearest(metric, METRICS.names()))
        check_claim(claim)
        if METRICS[claim.metric].of_measurement:  # whose names may be others in old journals
            place, name = f"claims.{claim.name}.options.of", claim.options["of"]
            refuse_unknown(place, "measurement", name, measurements())


def check_reach(study: Study, cells: Sequence[Cell], typed: Collection[str]) -> None:
    """Refuse claims about arms that the study's grid does not have. Values of the keys that were typed behind the study
    are not checked: a part of its grid may be run alone.

    Raises:
        UsageError: no cell has the key, or that value of it.
    """
    once = specs_of(cells)
    for claim in study.claims:
        specs = asked_of(study, once, f"claims.{claim.name}.metric", claim.metric, claim.options)
        wanted = [("where", key, [value]) for key, value in claim.where.items()]
        pairs = [(part, pair) for part in ("contrast", "beyond") for pair in getattr(claim, part).items()]
        wanted += [(part, key, _each(key, pair)) for part, (key, pair) in pairs if key != METRIC]
        wanted += [("options.factor", claim.options["factor"], [])] if "factor" in claim.options else []
        for part, key, values in wanted:
            refuse_absent(f"claims.{claim.name}.{part}", key, values if key not in typed else (), specs)
        if study.ask and about_answers(claim.metric, claim.options):
            _refuse_unasked(claim, typed, specs)


def specs_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The flat spec of each cell, with its arm."""
    return [{**flat(cell.spec.tree()), ARM: cell.values.get(ARM)} for cell in cells]


def asked_of(
    study: Study, specs: list[dict[str, Any]], place: str, metric: str, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The specs of the runs that a metric is of: these, or of answers each once for each condition.

    Raises:
        UsageError: a metric of answers, where the study asks nothing.
    """
    if not about_answers(metric, options):
        return specs
    if not study.ask:
        raise UsageError(place, "the study asks nothing", metric, "Write ask: {eval_bn: 'running,batch'}.")
    return [{**spec, **found} for spec in specs for found in of_run(spec, conditions(study.ask)).values()]


def _refuse_unasked(claim: Claim, typed: Collection[str], specs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a claim about answers of which each value is asked for, and none with all of them."""
    for part in ("contrast", "beyond"):
        pairs = {key: pair for key, pair in getattr(claim, part).items() if key not in ("seed", METRIC)}
        for index in (0, 1):
            wanted = {**claim.where, **{key: pair[index] for key, pair in pairs.items()}}
            wanted = {key: value for key, value in wanted.items() if key not in typed}
            if not any(all(canonical(spec.get(key)) == canonical(wanted[key]) for key in wanted) for spec in specs):
                raise UsageError(f"claims.{claim.name}.{part}", "no run is asked for this", wanted, "Add it to ask.")


def refuse_absent(place: str, key: str, values: Iterable[Any], specs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a key that none of these flat specs has, and values that none has of it.

    Raises:
        UsageError: naming `place`, or the key below it.
    """
    having = {canonical(spec[key]) for spec in specs if key in spec}
    if not having:
        raise UsageError(place, "no run of this study has such a key", key, nearest(key, specs[0]))
    for value in values:
        if canonical(value) not in having:
            known = f"Its runs have: {', '.join(sorted(having))}."
            raise UsageError(f"{place}.{key}", "no run of this study has this value", value, known)


def _each(key: str, pair: Sequence[Any]) -> list[Any]:
    """The values of a contrast; of seeds, of both lists."""
    parts = [value if key == "seed" and isinstance(value, list | tuple) else [value] for value in pair]
    return [value for part in parts for value in part]


def check_claim(claim: Claim) -> None:
    """Refuse a claim that could never be judged.

    Raises:
        UsageError: as `check`.
    """
    key, metric = f"claims.{claim.name}", METRICS[claim.metric]
    options = METRICS.checked(claim.metric, claim.options, f"{key}.options")
    _check_form(claim, key)
    if claim.against is not None or METRIC in claim.contrast:
        refuse_control(options if metric.of_control else {}, f"{key}.options")
    for option in ("of", "to"):
        if f"{option}_options" not in options:
            continue
        place, named = f"{key}.options.{option}", options[option]
        refuse_unknown(place, "metric", named, METRICS.names())
        METRICS.checked(named, options[f"{option}_options"], f"{place}_options")
        refuse_control(options[f"{option}_options"], f"{place}_options")
        if METRICS[named].of != "run":
            raise UsageError(place, "must be a metric of a run", named)
    if (metric.of == "curve") != (claim.at == "curve"):
        fit = "at: curve" if metric.of == "curve" else "at: matched_lr or best_lr"
        raise UsageError(f"{key}.at", f"{claim.metric} is a metric of a {metric.of}", claim.at, f"Write {fit}.")
    if claim.at == "matched_loss" and metric.course is None:
        having = ", ".join(other.name for other in METRICS.entries() if other.course is not None)
        raise UsageError(f"{key}.at", f"{claim.metric} has no value at a step", claim.at, f"These have: {having}.")
    if claim.at in ("matched_lr", "matched_loss") and metric.about_failure:
        raise UsageError(f"{key}.at", "compares only runs that train", claim.at, "Write at: best_lr, or curve.")
    for axis, pair in claim.contrast.items():
        group = axis.removesuffix(".name")
        if group != axis and group in GROUPS:
            raise UsageError(f"{key}.contrast", "no such axis", axis, f"Write {group}.")
        lengths = {len(seeds) if isinstance(seeds, list | tuple) else None for seeds in pair}
        if axis == "seed" and len(lengths) == 2:
            raise UsageError(f"{key}.contrast.seed", "two lists of unequal length", list(pair))
    if claim.at == "matched_loss" and (claim.against is not None or METRIC in claim.contrast):
        raise UsageError(f"{key}.at", "needs two arms", claim.at, "Write at: matched_lr, best_lr or every_run.")
    if metric.of != "run" and METRIC in claim.contrast:
        raise UsageError(f"{key}.contrast", f"{claim.metric} is no metric of a run", dict(claim.contrast))
    if metric.of == "arm":
        spread = METRICS[options["of"]]
        if spread.of != "run" or spread.shown_with is None:
            raise UsageError(f"{key}.options.of", "must be a metric of a run without options", options["of"])
        if claim.compare == "ratio":
            raise UsageError(f"{key}.compare", f"{claim.metric} may be 0", "ratio", "Write compare: difference.")


def _check_form(claim: Claim, key: str) -> None:
    """Refuse a claim without one thing to compare with, or without one bound of its effect."""
    if bool(claim.contrast) == (claim.against is not None):
        got = {"contrast": dict(claim.contrast), "against": claim.against}
        raise UsageError(key, "must have either contrast or against", got, "Write contrast: {norm: [batch, none]}.")
    if claim.beyond and (claim.against is not None or METRIC in {*claim.contrast, *claim.beyond}):
        raise UsageError(f"{key}.beyond", "needs a contrast of runs to be beyond", dict(claim.beyond))
    if isinstance(claim.against, str):
        reference(claim.against, f"{key}.against")
        if claim.at == "curve":
            raise UsageError(f"{key}.against", "has a value for each run, and a curve has many", claim.against)
    if METRIC in claim.contrast:
        if len(claim.contrast) > 1 or claim.metric != claim.contrast[METRIC][0]:
            raise UsageError(f"{key}.contrast", "must be of metrics alone, the claim's own first", dict(claim.contrast))
        other = claim.contrast[METRIC][1]
        if other not in METRICS.names() or METRICS[other].of != "run" or METRICS[other].shown_with is None:
            raise UsageError(f"{key}.contrast.{METRIC}", "must be a metric of a run without options", other)
    bound, absent = ("within", "smallest_effect") if claim.expect == "same" else ("smallest_effect", "within")
    if getattr(claim, absent) is not None:
        raise UsageError(f"{key}.{absent}", f"has no meaning with expect: {claim.expect}", getattr(claim, absent))
    if (least := getattr(claim, bound)) is None:
        raise UsageError(f"{key}.{bound}", "missing", remedy="It says which effect matters.")
    if claim.compare == "ratio" and least <= (1 if claim.expect == "same" else 0):
        above = 1 if claim.expect == "same" else 0
        raise UsageError(f"{key}.{bound}", f"a ratio must be above {above}", least, "2 means twice as much.")


def reference(name: str, place: str) -> Callable[[Mapping[str, Any]], float]:
    """The function `theory.NAME`, from a run's flat spec.

    Raises:
        UsageError: there is none.
    """
    group, _, function = name.partition(".")
    if group != "theory" or function not in theory.OF_SPEC:
        known = ", ".join(f"theory.{known}" for known in theory.OF_SPEC)
        raise UsageError(place, "must be a number or a formula", name, f"Formulas: {known}.")
    return theory.OF_SPEC[function]


def unknown_metric(claim: Claim) -> str | None:
    """The metric that the claim names and that is not registered, if there is one."""
    names, options = METRICS.names(), claim.options
    named = [claim.metric]
    if claim.metric in names:
        arm = METRICS[claim.metric].of == "arm"
        named = [str(options[key]) for key in ("of", "to") if key in options and (arm or f"{key}_options" in options)]
    return next((name for name in named if name not in names), None)


def threshold(claim: Claim) -> float:
    """The smallest effect on the scale of the differences; of `expect: same`, the largest one."""
    least = claim.within if claim.expect == "same" else claim.smallest_effect
    assert least is not None
    return math.log(least) if claim.compare == "ratio" else least


def allowed(claim: Claim) -> str:
    """The smallest effect that matters, in words; of `expect: same`, the largest that does not.

    >>> print(allowed(Claim(name="a", text="b", source="c", metric="d", against=1.0, at="curve", expect="same",
    ...     compare="ratio", within=1.25)))
    0.8x to 1.25x
    """
    unit = "x" if claim.compare == "ratio" else ""
    if claim.expect != "same":
        return f"{claim.smallest_effect:.3g}{unit}"
    assert claim.within is not None
    low = 1 / claim.within if claim.compare == "ratio" else -claim.within
    return f"{low:.3g}{unit} to {claim.within:.3g}{unit}"


def read_expected(file: Path, study: Study) -> dict[str, str]:
    """The decisions that `--expect-verdicts FILE` expects, by claim; the file is YAML or JSON.

    Raises:
        UsageError: no such file, not a mapping, a claim that the study does not have, no such decision.
    """
    option, form = "--expect-verdicts", "Write a line for each claim: name: decision."
    try:
        text = file.read_bytes()
        tree = safe_yaml(text)
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)  # has doubled keys, which the tree has not
    except OSError as error:
        raise UsageError(option, (error.strerror or str(error)).lower(), str(file)) from None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(option, f"cannot be read, {' '.join(str(error).split())}", str(file), form) from None
    if not isinstance(tree, Mapping) or not tree:
        raise UsageError(option, "has no claims", str(file), form)
    if len(node.value) > len(tree):
        raise UsageError(option, "has a claim twice", str(file), form)
    claims, decisions = [claim.name for claim in study.claims], list(SIGNS)
    for name, decision in tree.items():
        if name not in claims:
            raise UsageError(option, f"study {study.name} has no such claim", name, nearest(str(name), claims))
        if decision not in decisions:
            raise UsageError(option, f"no such decision for {name}", decision, nearest(str(decision), decisions))
    return dict(tree)


def unexpected(expected: Mapping[str, str], verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each claim whose decision is not the expected one."""
    decided = dict.fromkeys(expected, "not tested") | {verdict.claim.name: verdict.decision for verdict in verdicts}
    return [
        f"{name}: expected {decision}, found {decided[name]}"
        for name, decision in expected.items()
        if decided[name] != decision
    ]
