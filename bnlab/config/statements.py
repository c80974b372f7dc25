"""The sentences that bnlab answers (configs/statements.yaml), the claims that bear on them, and verdicts on these."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnlab.config.places import available, packaged_dir, results_file
from bnlab.config.studies import find
from bnlab.core.errors import UsageError
from bnlab.core.study import Claim, Study
from bnlab.core.text import command, count, number
from bnlab.core.typed import check_tree

AGREES, CONTRADICTS, UNDECIDED, NOT_JUDGED = "✓✕?–"
SIGNS = {
    AGREES: "agrees with the sentence",
    CONTRADICTS: "contradicts it",
    UNDECIDED: "undecided, or in its direction but less than the smallest effect that counts",
    NOT_JUDGED: "not judged",
}
"""What each says on a statement."""
SURE = 0.9
"""A verdict that another draw of seeds repeats less often depends on the draw."""
VERIFY = command("bnlab", "verify")
Verdicts = Mapping[str, Mapping[str, Any]]
"""Study -> the facts of its runs, and under `claims` the `facts` of each verdict by the claim's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A sentence of a note. `command` and `shows` say how to see it where no claim bears on it; by `words` people look
    for it who use others than its text; `identities`: how the names of the lines of `bnlab verify` begin that bear on
    it."""

    number: int
    note: tuple[int, ...]
    text: str
    words: str
    command: str
    shows: str
    does_not_show: str
    identities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """What a paper says; the `study` that asks the same, where there is one, and what that one does not show."""

    paper: str
    text: str
    expected: str
    study: str = ""
    does_not_show: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out on a statement: by a `claim` of a study, or that the study has not run, or without a study, by
    `bnlab verify`, or where to see it."""

    sign: str
    words: str
    study: str = ""
    claim: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A statement as every table shows it: what came out, and the commands to type with their minutes."""

    statement: Statement
    outcomes: tuple[Outcome, ...]
    commands: tuple[tuple[str, float | None], ...]


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
    """Every study of these folders of configs, by default of bnlab's own; none of those in a folder of their own, such
    as `lessons/`, which are about no statement.

    Raises:
        UsageError: one that is no study.
    """
    folders = dirs or [packaged_dir()]
    return {name: find(name, folders) for name in available("studies", folders) if "/" not in name}


def verdicts() -> dict[str, dict[str, Any]]:
    """The verdicts that come with bnlab (docs/verdicts.json)."""
    found: dict[str, dict[str, Any]] = json.loads(results_file("verdicts.json").read_text(encoding="utf-8"))
    return found


def identities() -> list[dict[str, Any]]:
    """The lines of `bnlab verify --json` that come with bnlab (docs/identities.json)."""
    found: list[dict[str, Any]] = json.loads(results_file("identities.json").read_text(encoding="utf-8"))
    return found


def by_identities(statement: Statement, checked: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """What these lines of `bnlab verify` say on a statement; one outcome, or none."""
    mine = [row for row in checked if row["name"].startswith(statement.identities)]
    if not mine:
        return []
    held, largest = sum(row["ok"] for row in mine), number(max(row["error"] for row in mine), 2)
    words = f"{held} of {count(len(mine), 'identity')} hold, the largest error is {largest}"
    return [Outcome(sign=AGREES if held == len(mine) else CONTRADICTS, words=words)]


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


def rows(of: Mapping[str, Study], known: Verdicts, checked: Sequence[Mapping[str, Any]] = ()) -> list[Row]:
    """All statements in their order, with what these studies and these lines of `bnlab verify` found."""
    found_ = []
    for one in statements():
        mine = answers(one, of.values(), known)
        asked = dict.fromkeys(answer.study.name for answer in mine)
        proven = by_identities(one, checked)
        commands = [(line(of[name]), minutes(of[name], known)) for name in asked]
        commands = [*commands, *((VERIFY, None) for _ in proven)] or [(one.command, None)]
        outcomes = [*(outcome for name in asked for outcome in _outcomes(name, mine)), *proven]
        outcomes = outcomes or [Outcome(sign=NOT_JUDGED, words=f"see {one.shows}")]
        found_.append(Row(statement=one, outcomes=tuple(outcomes), commands=tuple(commands)))
    return found_


def _outcomes(name: str, of: Iterable[Answer]) -> list[Outcome]:
    """One for each claim of a study, or one if it has not run."""
    judged = [answer for answer in of if answer.study.name == name and answer.found is not None]
    known = [Outcome(sign=one.sign, words=one.words, study=name, claim=one.claim.name) for one in judged]
    return known or [Outcome(sign=NOT_JUDGED, words="not run", study=name)]


def wrong(known: Verdicts) -> str:
    """How many of these studies may be wrong: each keeps the chance of a wrong verdict at `LEVEL`, all have more."""
    from bnlab.analysis.statistics import LEVEL  # which imports numpy

    judged = sum(any(claim["p"] is not None for claim in of["claims"].values()) for of in known.values())
    return f"of the {count(judged, 'study')} judged here, about {LEVEL * judged:.2g} may have a wrong verdict"


def line(study: Study) -> str:
    """The command that runs a study."""
    return command("bnlab", "sweep", "--config", study.name)


def minutes(study: Study, known: Verdicts) -> float | None:
    """How long a study takes on two cores: as it was measured, else as its YAML says."""
    measured = known.get(study.name, {}).get("minutes")
    return float(measured) if measured is not None else study.minutes


def tally(known: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Sign -> how many of the verdicts, by claim, are supported, refuted, undecided or not tested."""
    return in_order(Counter(sign_of(of) for of in known.values()))


def sign_of(of: Mapping[str, Any] | None) -> str:
    """Of a verdict on a claim itself."""
    signs = {"supported": AGREES, "refuted": CONTRADICTS, "not tested": NOT_JUDGED}
    return signs.get(str((of or {}).get("decision")), UNDECIDED)


def in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {sign: counts[sign] for sign in SIGNS if counts.get(sign)}


def tally_words(counts: Mapping[str, int]) -> str:
    """
    >>> tally_words({"✓": 2, "?": 1})
    '2 ✓ 1 ?'
    """
    return " ".join(f"{number_} {sign}" for sign, number_ in counts.items())


def plan(dirs: Sequence[Path], budget: float | None, wanted: Sequence[int]) -> list[Study]:
    """The studies with claims in the order to run them: next always the one that takes the fewest minutes for each
    statement that none before it answers, then those that answer nothing new, then those of unknown length. With a
    budget, in minutes, only those that fit into what is left of it.

    Raises:
        UsageError: a statement that there is not, or that no study answers.
    """
    known = {one.number for one in statements()}
    left = {name: study for name, study in studies(dirs).items() if study.claims}
    answered = {name: {int(key) for claim in study.claims for key in claim.notes} for name, study in left.items()}
    for number_ in wanted:
        if number_ not in known:
            raise UsageError("--statements", "no such statement", number_, f"There are {min(known)} to {max(known)}.")
        if not any(number_ in answers_ for answers_ in answered.values()):
            one = next(one for one in statements() if one.number == number_)
            raise UsageError("--statements", "no study answers it", number_, f"See: {one.command}")
    open_ = set(wanted) or known
    if wanted:
        left = {name: study for name, study in left.items() if answered[name] & open_}
    chosen: list[Study] = []
    while left:
        cost = {name: _cost(study, len(answered[name] & open_)) for name, study in left.items()}
        study = left.pop(min(left, key=lambda name: cost[name]))
        if budget is not None and (study.minutes is None or study.minutes > budget):
            continue
        budget = None if budget is None else budget - (study.minutes or 0.0)
        open_ -= answered[study.name]
        chosen.append(study)
    return chosen


def _cost(study: Study, new: int) -> tuple[bool, bool, float]:
    """The smaller, the earlier it is run."""
    minutes_ = study.minutes if study.minutes is not None else math.inf
    return study.minutes is None, new == 0, minutes_ / max(1, new)
