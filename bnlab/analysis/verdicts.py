"""From claims to verdicts, as a pure function of run folders. The rules and their reasons: docs/decisions/010."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bnlab.analysis.base import Decision, Verdict
from bnlab.analysis.claims import check_claim, threshold, unknown_metric
from bnlab.analysis.load import Collection
from bnlab.analysis.points import Paired, paired
from bnlab.analysis.sides import NotTestedError
from bnlab.analysis.statistics import FEWEST_FOR_INTERVAL, FEWEST_SEEDS, claims_decidable, decide, holm, interval, ps
from bnlab.core.study import Claim
from bnlab.core.text import count


def judge(*collections: Collection) -> list[Verdict]:
    """A verdict on every claim of the collections' studies, in their order. Holm's adjustment is over all of them.

    Raises:
        UsageError: a claim that `claims.check` refuses.
    """
    found: list[_Weighed] = []
    for collection in collections:
        if collection.study is not None:
            found += [_weigh(collection, claim) for claim in collection.study.claims]
    tested = [weighed for weighed in found if weighed.tested]
    adjust = holm(np.array([weighed.p for weighed in tested])) if tested else np.zeros(0)
    adjusted = {id(weighed): float(p) for weighed, p in zip(tested, adjust, strict=True)}
    return [_verdict(weighed, adjusted.get(id(weighed)), len(tested)) for weighed in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weighed:
    """A claim, its differences, their tests and their interval, before Holm's adjustment."""

    claim: Claim
    paired: Paired | None = None
    reason: str = ""
    cautions: tuple[str, ...] = ()
    mean: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    p_support: float = 1.0
    p_refute: float = 1.0

    @property
    def n(self) -> int:
        return len(self.paired.seeds) if self.paired else 0

    @property
    def tested(self) -> bool:
        return self.n >= FEWEST_SEEDS

    @property
    def p(self) -> float:
        """The smaller one: either null hypothesis can be rejected, and only on their border are both true."""
        return min(self.p_support, self.p_refute)

    @property
    def threshold(self) -> float:
        return threshold(self.claim)


def _weigh(collection: Collection, claim: Claim) -> _Weighed:
    try:
        if collection.no_plugins and (metric := unknown_metric(claim)):
            raise NotTestedError(f"no metric {metric}: {' '.join(collection.no_plugins)}")
        check_claim(claim)
        found = paired(collection, claim)
    except NotTestedError as error:
        return _Weighed(claim=claim, reason=str(error), cautions=tuple(_edited(collection, claim)))
    cautions = (*found.cautions, *_edited(collection, claim))
    if np.isposinf(found.high).all() and (found.low == 0).all():
        reason = f"{claim.metric} is beyond the range of these runs in both arms, at every seed"
        return _Weighed(claim=claim, reason=reason, cautions=cautions)
    p_support, p_refute = ps(found.low, found.high, threshold(claim))
    low, high = interval(found.values)
    return _Weighed(
        claim=claim,
        paired=found,
        cautions=cautions,
        mean=float(found.values.mean()),
        interval=(float(low), float(high)),
        p_support=float(p_support),
        p_refute=float(p_refute),
    )


def _edited(collection: Collection, claim: Claim) -> list[str]:
    """Cautions about runs that began before the claim had its present text."""
    digests = [run.provenance.get("claims") for run in collection.runs]
    known = [found.get(claim.name) for found in digests if isinstance(found, dict)]
    edited = sum(digest is not None and digest != claim.digest for digest in known)
    unknown = len(digests) - sum(digest is not None for digest in known)
    found = []
    if edited:
        found.append(
            f"the claim was edited after its first run: {edited} of {len(digests)} runs began under another text"
        )
    if unknown:
        found.append(f"{unknown} of {len(digests)} runs began before the claim was made, or outside the study")
    return found


def _verdict(weighed: _Weighed, p: float | None, tested: int) -> Verdict:
    claim, found = weighed.claim, weighed.paired
    if found is None:
        return Verdict(claim=claim, decision="not tested", why=weighed.reason, cautions=weighed.cautions)
    scale = math.exp if claim.compare == "ratio" else float
    effect = scale(weighed.mean)
    ends = (scale(weighed.interval[0]), scale(weighed.interval[1])) if weighed.n >= FEWEST_FOR_INTERVAL else None
    decision: Decision = "direction only"
    cautions = weighed.cautions
    if weighed.n > 1 and np.ptp(found.values) == 0:
        cautions = (*cautions, "the effect is the same at every seed, so its interval is a point, as happens on a grid")
    if p is not None:
        decision = decide(weighed.p_support, weighed.p_refute, p, weighed.interval, weighed.threshold)
        if decision == "inconclusive" and tested > claims_decidable(weighed.n):
            most = claims_decidable(weighed.n)
            cautions = (*cautions, f"with {weighed.n} seeds a report can decide at most {most} claims, not {tested}")
    return Verdict(
        claim=claim,
        decision=decision,
        effect=effect,
        interval=ends,
        p=p,
        n=weighed.n,
        seeds=found.seeds,
        treated=found.treated,
        control=found.control,
        why=_why(weighed, decision, effect, ends, p),
        cautions=cautions,
    )


def _why(
    weighed: _Weighed, decision: Decision, effect: float, ends: tuple[float, float] | None, p: float | None
) -> str:
    claim, found = weighed.claim, weighed.paired
    assert found is not None
    unit = "x" if claim.compare == "ratio" else ""
    numbers = f"{effect:.3g}{unit}" + (f", 95 % {ends[0]:.3g} to {ends[1]:.3g}{unit}" if ends else "")
    required = f"{claim.smallest_effect:.3g}{unit}"
    seeds = count(weighed.n, "seed")
    shown = f", p {p:.2g}" if p is not None else ""
    arms = f"{claim.metric} {claim.expect} with {found.treated.label} than with {found.control.label}"
    match decision:
        case "direction only":
            toward = int((found.values > 0).sum())
            return f"{arms}: {numbers} in {seeds}, {toward} of them in this direction; a verdict needs {FEWEST_SEEDS}"
        case "supported":
            result = f"above the required {required}"
        case "refuted":
            result = "in the other direction" if weighed.mean < 0 else f"less than the required {required}"
        case _ if weighed.interval[0] > weighed.threshold or weighed.interval[1] < weighed.threshold:
            side = "above" if weighed.mean > weighed.threshold else "below"
            result = f"{side} the required {required} by the interval but not by the test"
        case _:
            result = f"not clearly above or below the required {required}"
    return f"{arms}: {numbers}, {result}; {seeds}{shown}"
