"""What users name is shown as it is: it is no HTML, no Markdown, no mathematics, and no command of a terminal."""

from __future__ import annotations

import contextlib
import html
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from bnlab.board import card
from bnlab.cli import main
from bnlab.core.errors import UsageError
from bnlab.core.spec import id_of
from bnlab.core.text import markdown, printable
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal
from bnlab.report.build import _is_whole, named
from bnlab.report.views import View
from bnlab.terminal.frames import Frames
from bnlab.terminal.signs import say

EVIL = "<img src=x onerror=alert(1)>|![x](http://x.y/z)[red]$\\frac$\x1b]0;owned\x07\x9b31m\u202e`*`"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A study whose every name, text and message is `EVIL`, as somebody else may have written it."""
    root = tmp_path / "runs" / "s"
    claim = {"text": EVIL, "source": EVIL, "metric": "final_train_loss", "contrast": {"norm": ["batch", EVIL]}}
    claim |= {"at": "best_lr", "expect": "smaller", "compare": "ratio", "smallest_effect": 1.1, "name": EVIL}
    figures = [{"kind": "steps", "of": f"../../../../{EVIL}"}, {"kind": EVIL}]
    study = {"name": "s", "base": EVIL, "title": EVIL, "claims": [claim], "figures": figures}
    study |= {"axes": {"norm": f"batch,{EVIL}", "seed": "0,1"}, "overrides": {EVIL: EVIL}}
    root.mkdir(parents=True)
    (root / "study.yaml").write_text(yaml.safe_dump(study | {"provenance": {"line": EVIL}}))
    for norm in ("batch", EVIL):
        for seed in (0, 1):
            of = {
                "name": "s",
                "seed": seed,
                "steps": 20,
                "loss": "cross_entropy",
                "reduction": "mean",
                "plugins": [EVIL],
            }
            of |= {
                "model": {"name": EVIL, "activation": EVIL, "depth": 3},
                "optim": {"name": EVIL, "lr": 0.1, "schedule": EVIL},
            }
            of |= {"norm": {"name": norm}, "data": {"name": EVIL, "batch_size": 64}, "probes": {}}
            name = f"seed={seed}-{id_of(of, ['0' * 64])}"
            folder = RunFolder(root / norm.replace("/", "-")[:40] / "lr=0.1" / name)
            folder.path.mkdir(parents=True)
            told = {
                "bnlab": EVIL,
                "git_sha": EVIL,
                "torch": EVIL,
                "device": EVIL,
                "platform": EVIL,
                "plugins": ["0" * 64],
            }
            folder.write_spec(of, told | {"argv": ["bnlab", "train", "--config", EVIL, f"{EVIL}=1"]})
            journal = Journal(folder.journal_file)
            for step in range(0, 21, 2):
                journal.append({"step": step, "train_loss": 2.0 * 0.9**step, EVIL: 1.0})
            journal.close()
            failed = seed == 1 and norm == EVIL
            status: dict[str, Any] = {
                "status": "failed" if failed else "finished",
                "step": 20,
                "steps": 20,
                "error": EVIL,
            }
            folder.write_status(status | {"metrics": {"train_loss": 0.2 + seed, "test_accuracy": 0.5, EVIL: 1.0}})
    return root


def said(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out), pytest.raises(SystemExit):
        main(words)
    return out.getvalue()


def test_the_pages_of_a_hostile_study_show_its_names_as_they_are(hostile: Path) -> None:
    shown = said("report", str(hostile))
    assert "Traceback" not in shown
    assert not CONTROL.search(shown)
    pages = [(hostile / "report.html").read_text(encoding="utf-8")]
    said("report", "--gallery", str(hostile.parent))
    pages += [file.read_text(encoding="utf-8") for file in (hostile.parent / "gallery").rglob("*.html")]
    for page in pages:
        assert html.escape(EVIL[:28]) in page
        assert "<img src=x" not in page
        assert not re.search(r"<(script|iframe|object)|\son\w+=[^&]*>", page)
    drawn = sorted(file.name for file in (hostile / "figures").iterdir())
    assert drawn, shown
    places = {file.relative_to(hostile.parent.parent).parts[:2] for file in hostile.parent.parent.rglob("*")}
    assert places == {("runs",), ("runs", "s"), ("runs", "gallery")}


def test_a_figure_is_a_file_of_the_report_whatever_it_is_called(hostile: Path) -> None:
    view = cast(View, SimpleNamespace(setting=""))
    assert Path(named("steps-../../../../x", view, 0)).name == "steps-..-..-..-..-x"
    whole = {"figures": {"forest": ""}, "claims": {"a": {"decision": "supported"}}, "minutes": 1.0}
    assert _is_whole(whole)
    outside, file = hostile.parent.parent / "stolen.svg", hostile / "verdicts.json"
    outside.write_text("<svg/>")
    for damaged in ({}, {"claims": {"a": 1}}, {"claims": []}, {"minutes": None}, {"figures": {"../../../stolen": ""}}):
        assert not _is_whole(whole | damaged if damaged else damaged)
    file.write_text(json.dumps(whole | {"claims": {"a": 1}}))
    assert "Traceback" not in said("list", "studies", "--runs", str(hostile.parent))
    file.write_text(json.dumps(whole | {"figures": {"../../../stolen": ""}}))
    assert "made of    1 study" in said("report", "--gallery", str(hostile.parent))
    assert [*hostile.parent.parent.rglob("stolen*")] == [outside]


@pytest.mark.parametrize(
    "words", [("runs",), ("runs", "--sort", "norm"), ("report",), ("evaluate",), ("runs", "--where", f"norm={EVIL}")]
)
def test_a_terminal_gets_no_commands_from_names(words: tuple[str, ...], hostile: Path) -> None:
    command, *options = words
    shown = said(command, str(hostile), *options)
    assert shown
    assert "Traceback" not in shown
    assert not CONTROL.search(shown)
    run = next(hostile.rglob("spec.yaml")).parent
    assert not CONTROL.search(said("runs", str(run)))


def test_cards_of_tensorboard_have_one_row_a_line_and_no_markup(hostile: Path) -> None:
    folder = RunFolder(next(hostile.rglob("spec.yaml")).parent)
    text = card.card(folder.spec(), EVIL)
    assert text.count("\n") == 13
    assert not re.search(r"<(?!/?code>)|!\[|\]\(", text)
    assert all(line.count("|") == 3 for line in text.splitlines())
    assert not CONTROL.search(text.replace("\n", ""))


def test_markdown_is_what_was_written() -> None:
    assert html.unescape(markdown("a*b* [c](d) <e> `f` | g & h")) == "a*b* [c](d) <e> `f` | g & h"
    assert markdown("two\nlines\x1b[0m") == "two lines&#92;x1b&#91;0m"


def test_errors_are_one_line_without_commands_and_of_a_sane_length() -> None:
    for text in (EVIL, "x" * 10**6, "\ud800\udcff", "a\nb"):
        error = UsageError(text, text, text, text)
        assert len(str(error)) < 2000
        assert str(error).isprintable()
    assert str(UsageError("k", "p", 10**5000)) == "k: p, got int that is too long to print."


def test_what_is_said_and_drawn_has_no_commands_but_bnlabs_own() -> None:
    out = io.StringIO()
    say(f"a\tb\n{EVIL}", out)
    assert out.getvalue() == f"a\tb\n{printable(EVIL)}\n"
    assert not CONTROL.search(printable(EVIL))
    from rich.segment import Segment

    screen = io.StringIO()
    frames = Frames(lambda width, height: [[Segment(EVIL[:40] + "\x1b]0;x\x07")]], screen)
    assert "\x1b]" not in frames._frame()
    assert "\\x1b]0;" in Frames(lambda width, height: [[Segment("\x1b]0;x\x07")]], screen)._frame()
