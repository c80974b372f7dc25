"""The sentences that bnlab answers (configs/statements.yaml), the claims that bear on them, and verdicts on these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnlab.analysis.claims import Verdict
from bnlab.config.places import available, packaged_dir, verdicts_file
from bnlab.config.studies import find
from bnlab.core.study import Claim, Study
from bnlab.core.text import command, number
from bnlab.core.typed import check_tree

AGREES, CONTRADICTS, UNDECIDED, NOT_JUDGED = "✓✕?–"
SURE = 0.9
"""A verdict that another draw of seeds repeats less often depends on the draw."""
Verdicts = Mapping[str, Mapping[str, Any]]
"""Study -> the facts of its runs, and under `claims` the `facts` of each verdict by the claim's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A sentence of a note. `command` and `shows` say how to see it where no claim bears on it."""

    number: int
    note: tuple[int, ...]
    text: str
    command: str
    shows: str
    does_not_show: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What a paper says; the `study` that asks the same, where there is one."""

    paper: str
    text: str
    expected: str
    study: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A claim that bears on a statement, and the facts of its verdict, None where there is none of the claim as it is
    written now."""

    study: Study
    claim: Claim
    support: str
    """Whether support of the claim `agrees` with the statement or `opposes` it."""
    found: Mapping[str, Any] | None

    @property
    def sign(self) -> str:
        """What the verdict says on the statement. A refuted claim speaks on the other side, but for two cases in
        between: an effect in the direction of a claim that agrees, though less than it requires; and a refuted claim
        that opposes, without an effect in the other direction."""
        if self.found is None or self.found["decision"] == "not tested":
            return NOT_JUDGED
        low, high = self._ends()
        agrees = self.support == "agrees"
        if self.found["decision"] == "supported":
            return AGREES if agrees else CONTRADICTS
        if self.found["decision"] != "refuted":
            return UNDECIDED
        if self.claim.expect == "same":
            return CONTRADICTS if agrees else AGREES
        if agrees:
            return UNDECIDED if low > 0 else CONTRADICTS
        return AGREES if high < 0 else UNDECIDED

    @property
    def words(self) -> str:
        """Effect and interval, and what qualifies them."""
        if self.found is None:
            return "not run"
        if self.found["effect"] is None:
            return "not judged"
        unit = "x" if self.claim.compare == "ratio" else ""
        text = f"{number(self.found['effect'])}{unit}"
        if self.found["interval"]:
            text += f" ({' to '.join(number(end) for end in self.found['interval'])})"
        if self.found["decision"] == "refuted" and self.claim.expect != "same" and self._ends()[0] > 0:
            text += f", less than the required {number(self.claim.smallest_effect)}{unit}"
        if self.depends:
            text += ", depends on the draw"
        return text

    @property
    def depends(self) -> bool:
        """Whether another draw of seeds may well decide otherwise."""
        repeat = self.found.get("repeat") if self.found else None
        return repeat is not None and repeat < SURE

    def _ends(self) -> tuple[float, float]:
        """The ends of the interval, or the effect twice, on the scale of differences."""
        assert self.found is not None
        low, high = self.found["interval"] or [self.found["effect"]] * 2
        if self.claim.compare == "ratio":
            return tuple(math.log(end) if end > 0 else -math.inf for end in (low, high))  # type: ignore[return-value]
        return float(low), float(high)


def statements() -> list[Statement]:
    """The sentences of the notes, in their order."""
    return [check_tree(Statement, tree) for tree in _read()["statements"]]


def papers() -> list[Paper]:
    return [check_tree(Paper, tree) for tree in _read()["papers"]]


def sources() -> dict[int, str]:
    """The notes' titles, by number."""
    return dict(_read()["sources"])


def _read() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((packaged_dir() / "statements.yaml").read_text(encoding="utf-8"))
    return tree


def studies(dirs: Sequence[Path] = ()) -> dict[str, Study]:
    """Every study of these folders of configs, by default of bnlab's own.

    Raises:
        UsageError: one that is no study.
    """
    folders = dirs or [packaged_dir()]
    return {name: find(name, folders) for name in available("studies", folders)}


def verdicts() -> dict[str, dict[str, Any]]:
    """The verdicts that come with bnlab (docs/verdicts.json)."""
    found: dict[str, dict[str, Any]] = json.loads(verdicts_file().read_text(encoding="utf-8"))
    return found


def facts(verdict: Verdict) -> dict[str, Any]:
    """A verdict as verdicts.json has it."""
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


def found(study: Study, claim: Claim, known: Verdicts) -> Mapping[str, Any] | None:
    """The facts of the verdict on a claim; None where there is none, or one on another version of it."""
    of: Mapping[str, Any] | None = known.get(study.name, {}).get("claims", {}).get(claim.name)
    return of if of is not None and of["digest"] == claim.digest else None


def answers(statement: Statement, of: Iterable[Study], known: Verdicts) -> list[Answer]:
    """The claims that bear on a statement, study by study."""
    return [
        Answer(study=study, claim=claim, support=support, found=found(study, claim, known))
        for study in of
        for claim in study.claims
        if (support := claim.notes.get(str(statement.number)))
    ]


def line(study: Study) -> str:
    """The command that runs a study."""
    return command("bnlab", "sweep", "--config", study.name)


def minutes(study: Study, known: Verdicts) -> float | None:
    """How long a study takes on two cores: as it was measured, else as its YAML says."""
    measured = known.get(study.name, {}).get("minutes")
    return float(measured) if measured is not None else study.minutes
