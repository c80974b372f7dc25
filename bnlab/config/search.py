"""Statements, studies and metrics by words: `bnlab ask`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bnlab.config.statements import (
    NOT_JUDGED,
    VERIFY,
    Answer,
    Verdicts,
    answers,
    by_identities,
    found,
    identities,
    in_order,
    line,
    sign_of,
    statements,
    tally,
    tally_words,
)
from bnlab.core.study import Study
from bnlab.core.text import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What some words find: a statement, a study or a metric, its answer in short, and in full: a command to type for
    each study, the one that says most first, with a line for each of its claims. It is found by its name, its text and
    its `words`, and less by those of `more`."""

    kind: str
    name: str
    text: str
    answer: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]
    words: str = ""
    more: str = ""

    @property
    def command(self) -> str:
        return self.parts[0][0]


FAR = 0.3
"""A hit with less than this part of the best one's score is left out."""
WEIGHTS = {"statement": 1.5, "study": 1.0, "metric": 0.7}
COMMON = re.compile(
    "a|all|an|and|are|as|at|be|been|batch|by|can|do|does|for|from|has|have|how|i|in|is|it|its|net|nets|no|norm|normalization|not|"
    "of|on|or|so|that|the|there|this|to|what|when|which|why|will|with|without"
)
"""Words that tell nothing apart."""


def search(words: str, of: Sequence[Hit], most: int = 5) -> list[Hit]:
    """The hits that fit the words best, one of that very name first. A word fits those that begin as it does, and
    counts more the fewer have it."""
    wanted = dict.fromkeys(word for word in _words(words) if not COMMON.fullmatch(word))
    texts = [(set(_words(f"{hit.name} {hit.text} {hit.words}")), set(_words(hit.more))) for hit in of]
    scores = [0.0] * len(of)
    for word in wanted:
        fits = [max(2 * _fits(word, own), _fits(word, more)) for own, more in texts]
        rarity = math.log1p(len(of) / max(1, sum(fit > 0 for fit in fits)))
        for index, (fit, hit) in enumerate(zip(fits, of, strict=True)):
            scores[index] += fit * rarity * WEIGHTS[hit.kind]
    best = sorted(range(len(of)), key=lambda index: (of[index].name != words, -scores[index]))
    least = FAR * max(scores, default=0.0)
    return [of[index] for index in best[:most] if scores[index] > least or (scores[index] and of[index].name == words)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("_", " "))


def _fits(word: str, known: Iterable[str]) -> float:
    """1 for the word itself, 0.7 for one that begins as it does, up to the last letters of the shorter of both.

    >>> _fits("noisy", ["noise"]), _fits("initialization", ["initial"]), _fits("explosion", ["explode"])
    (0.7, 0.7, 0.7)
    >>> _fits("noise", ["noise"]), _fits("channel", ["change"])
    (1.0, 0.0)
    """
    if word in known:
        return 1.0
    shorter = ((other, min(len(word), len(other))) for other in known)
    stems = ((other, max(4, size - (2 if size > 6 else 1))) for other, size in shorter)
    return 0.7 if any(len(other) >= stem and word[:stem] == other[:stem] for other, stem in stems) else 0.0


def everything(of: Mapping[str, Study], known: Verdicts, metrics: Iterable[Mapping[str, str]]) -> list[Hit]:
    """All statements, studies and metrics, with the verdicts that are known."""
    found_: list[Hit] = []
    checked = identities()
    for one in statements():
        mine = answers(one, of.values(), known)
        proven = by_identities(one, checked)
        counts = Counter([*(answer.sign for answer in mine if answer.found is not None), *(of_.sign for of_ in proven)])
        see = f"see {one.shows}"
        lines = [(VERIFY, (f"{of_.sign} {of_.words}",)) for of_ in proven]
        said = tally_words(in_order(counts)) or ("not run" if mine else see)
        more = " ".join([one.does_not_show, one.shows, *(answer.claim.text for answer in mine)])
        hit = Hit(kind="statement", name=f"statement {one.number}", text=one.text, answer=said,
            parts=(*_parts([(answer, answer.sign) for answer in mine]), *lines) or ((one.command, (see,)),),
            words=one.words, more=more)  # fmt: skip
        found_.append(hit)
    for study in of.values():
        judged = [
            Answer(study=study, claim=claim, support="agrees", found=found(study, claim, known))
            for claim in study.claims
        ]
        said = tally_words(tally(known.get(study.name, {}).get("claims", {}))) or "not run"
        more = " ".join(f"{claim.text} {claim.metric} {claim.source}" for claim in study.claims)
        text = study.title or "; ".join(claim.text for claim in study.claims[:2])
        parts = _parts([(one, sign_of(one.found)) for one in judged]) or ((line(study), ()),)
        found_.append(Hit(kind="study", name=study.name, text=text, answer=said, parts=parts, more=more))
    for row in metrics:
        name, text = row["name"], row["description"]
        users = [study for study in of.values() if any(claim.metric == name for claim in study.claims)]
        said = f"used by {count(len(users), 'study')}" if users else ""
        typed_ = line(users[0]) if users else "bnlab list metrics"
        found_.append(Hit(kind="metric", name=name, text=text, answer=said, parts=((typed_, (said,) * bool(said)),)))
    return found_


def _parts(of: Sequence[tuple[Answer, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Claims with their signs, study by study: those with the most verdicts first, then those that are faster."""
    by_study: dict[str, list[tuple[Answer, str]]] = {}
    for answer, sign in of:
        by_study.setdefault(answer.study.name, []).append((answer, sign))

    def place(some: Sequence[tuple[Answer, str]]) -> tuple[int, float]:
        study = some[0][0].study
        verdicts_ = sum(answer.found is not None for answer, _ in some)
        return -verdicts_, math.inf if study.minutes is None else study.minutes

    return tuple((line(some[0][0].study), _lines(some)) for some in sorted(by_study.values(), key=place))


def _lines(of: Sequence[tuple[Answer, str]]) -> tuple[str, ...]:
    """`✓ Batch norm trains at larger rates: supported, 16x (11 to 25)`."""
    judged = [(answer, sign) for answer, sign in of if answer.found is not None]
    lines = [f"{sign} {one.claim.text}: {(one.found or {})['decision']}, {one.words}" for one, sign in judged]
    return tuple(lines) or (f"{NOT_JUDGED} not run",)
