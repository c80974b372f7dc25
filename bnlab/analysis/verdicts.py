"""From claims to verdicts, as a pure function of run folders. The rules and their reasons: docs/decisions/010."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnlab.analysis.claims import Decision, Verdict, allowed, check_claim, threshold, unknown_metric
from bnlab.analysis.load import Collection, read_runs
from bnlab.analysis.metrics import MetricError
from bnlab.analysis.points import Paired, paired
from bnlab.analysis.sides import NotTestedError
from bnlab.analysis.statistics import (
    EXACT_UP_TO,
    FEWEST_FOR_INTERVAL,
    FEWEST_SEEDS,
    MOST_SEEDS,
    claims_decidable,
    decide,
    holm,
    interval,
    ps,
    ps_same,
    repeated,
    seeds_to_decide,
)
from bnlab.core.study import METRIC, Claim, label
from bnlab.core.text import command, count


@dataclass(slots=True, kw_only=True)
class _Weighed:
    """A claim with its differences, their mean, interval and tests; `p` after Holm's adjustment, where it is tested."""

    claim: Claim
    paired: Paired
    cautions: tuple[str, ...]
    line: str
    """The command that ran the study, where it is known."""
    mean: float
    interval: tuple[float, float]
    p_support: float
    p_refute: float
    p: float | None = None

    @property
    def n(self) -> int:
        return len(self.paired.seeds)


def judge(*studies: Collection | Path | str) -> list[Verdict]:
    """A verdict on every claim of the studies, folders or as `read_runs` gives them, in their order. Holm's adjustment
    is over all of them.

    Raises:
        UsageError: a claim that `claims.check` refuses.
    """
    found: list[Verdict | _Weighed] = []
    for study in studies:
        collection = study if isinstance(study, Collection) else read_runs(Path(study))
        if collection.study is not None:
            found += [_weigh(collection, claim) for claim in collection.study.claims]
    tested = [one for one in found if isinstance(one, _Weighed) and one.n >= FEWEST_SEEDS]
    # Of the two p the smaller: either null hypothesis can be rejected, and only on their border are both true.
    smaller = np.array([min(one.p_support, one.p_refute) for one in tested])
    for one, p in zip(tested, holm(smaller), strict=True):
        one.p = float(p)
    return [one if isinstance(one, Verdict) else _verdict(one, len(tested)) for one in found]


def _weigh(collection: Collection, claim: Claim) -> Verdict | _Weighed:
    """The claim's differences and their tests, or the verdict that nothing can be tested."""
    cautions = (*_edited(collection, claim), *_extended(collection))
    try:
        if collection.no_plugins and (metric := unknown_metric(claim)):
            raise NotTestedError(f"no metric {metric}: {' '.join(collection.no_plugins)}")
        check_claim(claim)
        found = paired(collection, claim)
        cautions = (*found.cautions, *cautions)
        if np.isposinf(found.high).all() and (found.low == 0).all():
            raise NotTestedError(f"{claim.metric} is beyond the range of these runs in both arms, at every seed")
    except (NotTestedError, MetricError) as error:
        return Verdict(claim=claim, decision="not tested", why=str(error), cautions=cautions)
    test = ps_same if claim.expect == "same" else ps
    p_support, p_refute = test(found.low, found.high, threshold(claim))
    low, high = interval(found.values)
    return _Weighed(
        claim=claim,
        paired=found,
        cautions=cautions,
        line=str(collection.study_provenance.get("line", "")),
        mean=float(found.values.mean()),
        interval=(float(low), float(high)),
        p_support=float(p_support),
        p_refute=float(p_refute),
    )


def _edited(collection: Collection, claim: Claim) -> tuple[str, ...]:
    """Cautions about runs that began before the claim had its present text."""
    written = [run.provenance.get("claims") for run in collection.runs]
    digests = [claims.get(claim.name) if isinstance(claims, dict) else None for claims in written]
    edited, unknown = sum(digest not in (None, claim.digest) for digest in digests), digests.count(None)
    cautions = []
    if edited:
        runs = f"{edited} of {len(digests)} runs"
        cautions.append(f"the claim was edited after its first run: {runs} began under another text")
    if unknown:
        runs = f"{unknown} of {len(digests)} runs"
        cautions.append(f"{runs} began before the claim was made, or outside the study")
    return tuple(cautions)


def _extended(collection: Collection) -> tuple[str, ...]:
    """The caution of a study that got more seeds after its verdicts were there to see."""
    if not (earlier := collection.study_provenance.get("earlier_seeds")):
        return ()
    before = ", then ".join(f"seed={seeds}" for seeds in earlier)
    return (f"seeds were added after a look at verdicts ({before}), so that a wrong one is likelier than stated",)


def _verdict(one: _Weighed, tested: int) -> Verdict:
    """The verdict on a claim, one of `tested` claims that are tested together."""
    claim, found, cautions = one.claim, one.paired, one.cautions
    scale = math.exp if claim.compare == "ratio" else float
    effect = scale(one.mean)
    ends = (scale(one.interval[0]), scale(one.interval[1])) if one.n >= FEWEST_FOR_INTERVAL else None
    if one.n > 1 and np.ptp(found.values) == 0:
        cautions = (*cautions, "the effect is the same at every seed, so its interval is a point, as happens on a grid")
    decision: Decision = "direction only"
    if one.p is not None:
        same = claim.expect == "same"
        decision = decide(one.p_support, one.p_refute, one.p, one.interval, threshold(claim), same=same)
        most = claims_decidable(one.n)
        if decision == "inconclusive" and tested > most:
            cautions = (*cautions, f"with {one.n} seeds a report can decide at most {most} claims, not {tested}")
        if decision == "inconclusive":
            cautions = (*cautions, _to_decide(one, tested))
    repeat = None
    if one.p is not None:
        holm_factor = one.p / min(one.p_support, one.p_refute)
        differences = (found.values, found.low, found.high)
        repeat = repeated(decision, differences, threshold(claim), holm_factor, same=claim.expect == "same")
    unit = "x" if claim.compare == "ratio" else ""
    arms = _compared(claim, found)
    numbers = f"{effect:.3g}{unit}" + (f", 95 % {ends[0]:.3g} to {ends[1]:.3g}{unit}" if ends else "")
    return Verdict(
        claim=claim,
        decision=decision,
        effect=effect,
        interval=ends,
        p=one.p,
        n=one.n,
        seeds=found.seeds,
        treated=found.treated,
        control=found.control,
        why=f"{arms}: {numbers}{_result(one, decision)}",
        measured=arms,
        least_p=None if one.p is None else min(1.0, tested * 2.0 ** -min(one.n, EXACT_UP_TO)),
        cautions=cautions,
        repeat=repeat,
    )


def _compared(claim: Claim, found: Paired) -> str:
    """What is claimed of the two arms, in words."""
    treated, control = found.treated.label, found.control.label
    relation = "the same as" if claim.expect == "same" else f"{claim.expect} than"
    if METRIC in claim.contrast:
        return f"{treated} {relation} {control}"
    if claim.against is not None:
        return f"{claim.metric} of {treated} {relation} {control}"
    word = "as" if claim.expect == "same" else "than"
    more = "".join(f", beyond {label({key: a})} against {label({key: b})}" for key, (a, b) in claim.beyond.items())
    return f"{claim.metric} {claim.expect} with {treated} {word} with {control}{more}"


def _to_decide(one: _Weighed, tested: int) -> str:
    """About how many seeds would decide an inconclusive claim, and the command for them."""
    least, found = threshold(one.claim), one.paired
    differences = found.values
    if one.claim.expect == "same":
        differences = differences * math.copysign(1, one.mean)
    if not np.isfinite(found.low if one.mean > least else found.high).all():
        return "more seeds do not decide it: some runs fail, or end beyond their range"
    seeds = seeds_to_decide(differences, least, tested)
    if seeds is None:
        return f"more than {MOST_SEEDS} seeds would be needed to decide it"
    text = f"about {seeds} seeds would decide it, if they vary as these do"
    first = min(found.seeds)
    if not one.line or list(found.seeds) != list(range(first, first + one.n)) or "seed" in one.claim.contrast:
        return text
    words = [word for word in shlex.split(one.line) if not word.startswith("seed=")]
    return f"{text}: {command(*words, f'seed=range({first}, {first + seeds})')}"


def _result(one: _Weighed, decision: Decision) -> str:
    """What follows the numbers in the sentence of a verdict."""
    least, seeds = threshold(one.claim), count(one.n, "seed")
    if one.claim.expect == "same" and decision in ("supported", "refuted", "inconclusive"):
        words = {"supported": "within", "refuted": "beyond", "inconclusive": "not clearly within or beyond"}[decision]
        return f", {words} {allowed(one.claim)}; {seeds}, p {one.p:.2g}"
    required = f"the required {allowed(one.claim)}"
    match decision:
        case "direction only":
            toward = int((one.paired.values > 0).sum())
            return f" in {seeds}, {toward} of them in this direction; a verdict needs {FEWEST_SEEDS}"
        case "supported":
            result = f"above {required}"
        case "refuted":
            result = "in the other direction" if one.mean < min(0, least) else f"less than {required}"
        case _ if one.interval[0] > least or one.interval[1] < least:
            side = "above" if one.mean > least else "below"
            result = f"{side} {required} by the interval but not by the test"
        case _:
            result = f"not clearly above or below {required}"
    return f", {result}; {seeds}, p {one.p:.2g}"
