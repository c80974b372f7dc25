"""Verdicts in a terminal: exact texts, wide and narrow, with and without colours and signs; and what was expected."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from bnlab.analysis.claims import SIGNS, Verdict, read_expected, unexpected
from bnlab.cli.runs import tree
from bnlab.core.errors import UsageError
from bnlab.core.study import Claim, Study
from bnlab.report.ranking import Ranked, Ranking
from bnlab.terminal.tables import show_ranking, show_verdicts

CLAIM = Claim(
    name="larger_learning_rates",
    text="Batch norm trains at learning rates at which the same net without it fails",
    source="Ioffe & Szegedy 2015 sec. 3.3",
    metric="max_stable_lr",
    contrast={"norm": ("batch", "none")},
    at="curve",
    expect="larger",
    compare="ratio",
    smallest_effect=2,
)
SUPPORTED = Verdict(
    claim=CLAIM,
    decision="supported",
    effect=31.6227,
    interval=(10.0, 100.0),
    p=0.015625,
    n=6,
    seeds=(0, 1, 2, 3, 4, 5),
    treated=None,
    control=None,
    why="ratio 31.6, above 2",
    cautions=("the best learning rate of none is at the grid's edge",),
)


def verdict(decision: Any, **more: Any) -> Verdict:
    import dataclasses

    return dataclasses.replace(SUPPORTED, decision=decision, **more)


class Terminal(io.StringIO):
    """A terminal that says what it can show."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._name = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._name

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return monkeypatch


def test_in_a_pipe_there_are_two_lines_and_one_for_each_caution() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    show_verdicts([SUPPORTED, verdict("not tested", effect=None, why="no runs of norm=batch", cautions=())], out)
    out.flush()
    assert out.buffer.getvalue().decode().splitlines() == [  # type: ignore[attr-defined]
        "✓ supported       Batch norm trains at learning rates at which the same net without it fails",
        "                  ratio 31.6 [10, 100] (matters from 2), n 6, p 0.016",
        "                  ! the best learning rate of none is at the grid's edge",
        "· not tested      Batch norm trains at learning rates at which the same net without it fails",
        "                  no runs of norm=batch",
    ]


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (60, ["arm", "lr", "diverged", "test acc", "train loss", "better than"]),
        (44, ["arm", "diverged", "test acc", "train loss"]),
    ],
)
def test_a_narrow_ranking_keeps_its_arms(columns: int, heads: list[str], terminal: pytest.MonkeyPatch) -> None:
    terminal.setenv("COLUMNS", str(columns))
    terminal.setenv("NO_COLOR", "1")
    rows = tuple(
        Ranked(
            arm=arm, lr=0.1, n=6, runs=12, diverged=1, loss=0.0123, loss_interval=None, score=0.951,
            score_interval=None, seconds=1.5,
        )
        for arm in ("batch norm", "no norm")
    )  # fmt: skip
    out = Terminal()
    show_ranking(Ranking(by="test_accuracy", rows=rows), out)
    head, rule, first, second = re.sub(r"\x1b\[\d*m", "", out.getvalue()).splitlines()
    assert re.split(r" {2,}", head.strip()) == heads
    assert set(rule.strip()) == {"─"}
    assert [word for word in first.split() if word != "0.1"][:4] == ["batch", "norm", "1/12", "0.951"]
    assert [word for word in second.split() if word != "0.1"][:4] == ["no", "norm", "1/12", "0.951"]


def test_a_narrow_terminal_folds_lines_and_loses_no_word(terminal: pytest.MonkeyPatch) -> None:
    terminal.setenv("COLUMNS", "44")
    terminal.setenv("NO_COLOR", "1")
    out = Terminal()
    show_verdicts([SUPPORTED], out)
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 44
    assert " ".join(" ".join(lines).split()) == (
        "✓ supported Batch norm trains at learning rates at which the same net without it fails "
        "ratio 31.6 [10, 100] (matters from 2), n 6, p 0.016 "
        "! the best learning rate of none is at the grid's edge"
    )
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("decision", "code"), [("supported", "32"), ("refuted", "31"), ("inconclusive", "33"), ("direction only", "36")]
)
def test_a_decision_has_its_colour(decision: str, code: str, terminal: pytest.MonkeyPatch) -> None:
    out = Terminal()
    show_verdicts([verdict(decision)], out)
    assert out.getvalue().startswith(f"\x1b[{code}m{SIGNS[decision]} {decision}\x1b[0m")


@pytest.mark.parametrize("decision", list(SIGNS))
def test_ascii_terminals_get_ascii(decision: str, terminal: pytest.MonkeyPatch) -> None:
    out = Terminal("ascii")
    show_verdicts([verdict(decision)], out)
    assert out.getvalue().isascii()
    assert "?" not in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines(terminal: pytest.MonkeyPatch) -> None:
    terminal.setenv("TERM", "dumb")
    out = Terminal()
    show_verdicts([SUPPORTED], out)
    assert "\x1b" not in out.getvalue()
    assert len(out.getvalue().splitlines()) == 3


def test_what_json_says_of_a_verdict() -> None:
    assert tree(SUPPORTED) == {
        "name": "larger_learning_rates",
        "verdict": "supported",
        "effect": 31.6227,
        "interval": [10.0, 100.0],
        "p": 0.015625,
        "n": 6,
        "why": "ratio 31.6, above 2",
        "cautions": ["the best learning rate of none is at the grid's edge"],
        "repeat": None,
    }


# -- expectations ------------------------------------------------------------------------------------------------------

STUDY = Study(name="mine", base="deep_mlp", claims=(CLAIM,))


@pytest.mark.parametrize("text", ["larger_learning_rates: supported\n", '{"larger_learning_rates": "supported"}'])
def test_expectations_are_yaml_or_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "expected").write_text(text)
    expected = read_expected(tmp_path / "expected", STUDY)
    assert unexpected(expected, [SUPPORTED]) == []
    assert unexpected(expected, [verdict("refuted")]) == ["larger_learning_rates: expected supported, found refuted"]
    assert unexpected(expected, []) == ["larger_learning_rates: expected supported, found not tested"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("larger: supported", "study mine has no such claim, got 'larger'. "),
        ("larger_learning_rates: suported", "no such decision for larger_learning_rates, got 'suported'. Did you"),
        ("larger_learning_rates: [1]", "no such decision for larger_learning_rates, got [1]"),
        ("[1]", "has no claims"),
        ("", "has no claims"),
        ("a: [", "cannot be read"),
    ],
)
def test_expectations_that_cannot_be_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "expected").write_text(text)
    with pytest.raises(UsageError, match=r"^--expect-verdicts: ") as caught:
        read_expected(tmp_path / "expected", STUDY)
    assert message in str(caught.value)
