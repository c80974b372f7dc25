"""Verdicts in a terminal: what was decided of each claim, and below it the numbers."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.text import Text

from bnlab.analysis.base import Verdict
from bnlab.terminal.signs import DRAWN, is_screen, number, say, signs_for
from bnlab.terminal.tables import console


@dataclass(frozen=True, slots=True)
class Look:
    """How a decision is shown: its sign, the one for ASCII, its style."""

    sign: str
    ascii: str
    style: str


LOOKS = {
    "supported": Look("✓", "+", "green"),
    "refuted": Look("✕", "-", "red"),
    "inconclusive": Look("~", "~", "yellow"),
    "direction only": Look("→", ">", "cyan"),
    "not tested": Look("·", ".", "dim"),
}
WORD = max(len(decision) for decision in LOOKS)


def show(verdicts: Sequence[Verdict], out: TextIO | None = None) -> None:
    """Print each: sign, decision and claim; then effect, interval, n, p; then a line for each caution."""
    out = out or sys.stdout
    target = console(out)
    drawn = signs_for(out.encoding) is DRAWN
    width = target.width if is_screen(out) else None
    for verdict in verdicts:
        look = LOOKS[verdict.decision]
        for index, line in enumerate(lines(verdict, look.sign if drawn else look.ascii, width)):
            text = Text(line)
            if index == 0:
                text.stylize(look.style, 0, 2 + len(verdict.decision))
            with target.capture() as captured:
                target.print(text, soft_wrap=True, end="")
            say(captured.get(), out)


def lines(verdict: Verdict, sign: str, width: int | None) -> Iterator[str]:
    """The lines of one verdict, folded to `width` where there is one. Where there is little room the numbers stand at
    the left."""
    indent = 2 + WORD + 2 if width is None or width >= 60 else 2
    yield from _folded(f"{sign} {verdict.decision:<{WORD}}  {verdict.claim.text}", indent, width)
    below = [numbers(verdict), *(f"! {caution}" for caution in verdict.cautions)]
    for text in below:
        yield from _folded(" " * indent + text, indent, width)


def numbers(verdict: Verdict) -> str:
    """Effect, interval, n and p, as far as there are any; where there is no effect, why."""
    if verdict.effect is None:
        return verdict.why
    facts = [f"{verdict.claim.compare} {number(verdict.effect)}"]
    if verdict.interval is not None:
        facts[0] += f" [{number(verdict.interval[0])}, {number(verdict.interval[1])}]"
    facts[0] += f" (matters from {number(verdict.claim.smallest_effect)})"
    facts.append(f"n {verdict.n}")
    if verdict.p is not None:
        facts.append(f"p {number(verdict.p, 2)}")
    return ", ".join(facts)


def tree(verdict: Verdict) -> dict[str, Any]:
    """As `--json` has it."""
    return {
        "name": verdict.claim.name,
        "verdict": verdict.decision,
        "effect": verdict.effect,
        "interval": None if verdict.interval is None else list(verdict.interval),
        "p": verdict.p,
        "n": verdict.n,
        "why": verdict.why,
        "cautions": list(verdict.cautions),
    }


def _folded(text: str, indent: int, width: int | None) -> Iterable[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, drop_whitespace=True) or [text]
