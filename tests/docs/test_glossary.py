"""The glossary has each word once, and its states and decisions are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from bnlab.analysis.claims import Decision
from bnlab.record.runs import State

TEXT = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8")


def _first_cells(heading: str, text: str = TEXT) -> list[str]:
    """The first cell of each row of the first table behind a line."""
    table = text[text.index(heading) :].partition("| --- |" if "| --- |" in text else "|---|")[2]
    return re.findall(r"^\| `?([^|`]+?)`? \|", table.partition("\n\n")[0], re.M)


def test_the_states_of_a_run_are_those_of_the_code() -> None:
    assert _first_cells("`record.runs.State`") == list(get_args(State))


def test_the_decisions_of_a_verdict_are_those_of_the_code() -> None:
    assert _first_cells("`analysis.claims.Decision`") == list(get_args(Decision))


def test_a_word_is_defined_once() -> None:
    words = re.findall(r"^\| ([^|]+?) \|", TEXT, re.M)
    words = [word for word in words if word not in ("word", "---", "state", "decision")]
    assert len(words) >= 35
    assert sorted(words) == sorted(set(words))
