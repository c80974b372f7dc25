"""docs/statements.md is what its script makes of the committed files, and these fit each other."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnlab import config
from bnlab.config import statements
from bnlab.config.conditions import load_conditions
from bnlab.core.spec import DataSpec
from bnlab.core.study import Claim, Study

DOCS = Path(__file__).parents[2] / "docs"
STUDIES = statements.studies()
STATEMENTS = statements.statements()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("statements_script", DOCS / "statements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_committed_files_give(script: ModuleType) -> None:
    kept = (DOCS / "statements.md").read_text(encoding="utf-8")
    assert script.page() == kept, "docs/statements.md is out of date; run `make docs`"


def test_every_statement_is_there_once_and_in_order() -> None:
    assert [one.number for one in STATEMENTS] == list(range(1, 35))
    assert {note for one in STATEMENTS for note in one.note} == set(statements.sources())


def test_verdicts_are_on_claims_as_they_are_written_now() -> None:
    stale = {
        name
        for name, of in statements.verdicts().items()
        for claim, facts in of["claims"].items()
        if name not in STUDIES or facts["digest"] not in {c.digest for c in STUDIES[name].claims if c.name == claim}
    }
    assert stale == set(), f"run again, then `python docs/statements.py RUNS`: {', '.join(sorted(stale))}"


def test_claims_name_statements_that_there_are() -> None:
    known = {str(one.number) for one in STATEMENTS}
    named = {(name, key) for name, study in STUDIES.items() for claim in study.claims for key in claim.notes}
    assert {(name, key) for name, key in named if key not in known} == set()


@pytest.mark.parametrize("line", sorted({one.command for one in STATEMENTS}))
def test_the_command_of_a_statement_is_one_that_bnlab_takes(line: str) -> None:
    program, verb, *words = shlex.split(line)
    assert program == "bnlab"
    name = words[1] if words[:1] == ["--config"] else ""
    if verb == "train":
        _refuse_half_a_shift(config.load(name, words[2:]).data)
    elif verb == "sweep":
        fewer = [word for word in words[2:] if not word.startswith("seed=")]
        assert config.load_study(name, [*fewer, "seed=0"])[1]
    elif verb == "evaluate":
        for condition in load_conditions(words[1:]):
            assert ("data.shift" in condition) == ("data.shift_strength" in condition)
    else:
        assert (verb, words) == ("verify", [])


def _refuse_half_a_shift(spec: DataSpec) -> None:
    """A shift and its strength need each other, which only a run's own data set checks."""
    assert (spec.shift == "none") == (spec.shift_strength is None)


def test_statements_name_lines_of_verify_that_there_are() -> None:
    names = [row["name"] for row in statements.identities()]
    named = {(one.number, start) for one in STATEMENTS for start in one.identities}
    assert {pair for pair in named if not any(name.startswith(pair[1]) for name in names)} == set()
    assert {number for number, _ in named} >= {5, 31, 32}


def test_a_statement_is_answered_by_the_lines_of_verify_that_bear_on_it() -> None:
    one = next(one for one in STATEMENTS if one.number == 5)
    lines = [{"name": f"{one.identities[0]}, {k}d", "error": k * 1e-9, "ok": True} for k in (1, 2)]
    other = {"name": "another line", "error": 0.5, "ok": False}
    (outcome,) = statements.by_identities(one, [*lines, other])
    assert (outcome.sign, outcome.words) == ("✓", "2 of 2 identities hold, the largest error is 2e-9")
    (outcome,) = statements.by_identities(one, [lines[0], lines[1] | {"ok": False}])
    assert (outcome.sign, outcome.words[:6]) == ("✕", "1 of 2")
    assert statements.by_identities(one, [other]) == []
    row = statements.rows({}, {}, lines)[4]
    assert (row.commands, len(row.outcomes)) == ((("bnlab verify", None),), 1)
    assert statements.rows({}, {})[4].outcomes[0].sign == "–"


def test_thumbnails_are_small_and_those_of_studies_with_verdicts() -> None:
    wanted = {name for name, of in statements.verdicts().items() if of["figure"]}
    files = {file.stem: file for file in (DOCS / "images" / "studies").glob("*.png")}
    assert set(files) == wanted
    assert [name for name, file in files.items() if file.stat().st_size >= 60_000 or _size(file)[0] != 480] == []


def test_a_figure_of_any_kind_becomes_a_small_thumbnail(script: ModuleType, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 1120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "small.png").write_bytes(data := script.thumbnail(tmp_path / "noise.png"))
    assert _size(tmp_path / "small.png") == (480, 129)
    assert len(data) < 60_000


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


CASES = [
    ("supported", "agrees", 3.0, (2.5, 4.0), "✓"),
    ("supported", "opposes", 3.0, (2.5, 4.0), "✕"),
    ("refuted", "agrees", 0.5, (0.4, 0.7), "✕"),
    ("refuted", "agrees", 1.0, (0.9, 1.1), "✕"),
    ("refuted", "agrees", 1.5, (1.3, 1.8), "?"),  # in its direction, though less than required
    ("refuted", "opposes", 0.5, (0.4, 0.7), "✓"),
    ("refuted", "opposes", 1.0, (0.9, 1.1), "?"),  # no effect against it is no effect for it
    ("inconclusive", "agrees", 1.5, (0.9, 4.0), "?"),
    ("direction only", "agrees", 3.0, None, "?"),
    ("not tested", "agrees", None, None, "–"),
]


@pytest.mark.parametrize(("decision", "support", "effect", "interval", "sign"), CASES)
def test_the_sign_is_what_a_verdict_says_on_the_statement(
    decision: str, support: str, effect: float | None, interval: tuple[float, float] | None, sign: str
) -> None:
    answer = _answer(support, decision=decision, effect=effect, interval=interval)
    assert answer.sign == sign


def test_a_verdict_that_another_draw_may_change_says_so() -> None:
    assert "depends on the draw" in _answer("agrees", repeat=0.6).words
    assert _answer("agrees", repeat=1.0).words == "3x (2.5 to 4)"


def test_a_verdict_on_an_earlier_text_of_a_claim_does_not_count() -> None:
    answer = _answer("agrees")
    known = {"s": {"claims": {"larger": {"digest": answer.claim.digest}}}}
    assert statements.found(answer.study, answer.claim, known) is not None
    known["s"]["claims"]["larger"]["digest"] = "other"
    assert statements.found(answer.study, answer.claim, known) is None


def _answer(support: str, **changes: Any) -> statements.Answer:
    claim = Claim(
        name="larger", text="Larger", source="nobody", metric="max_stable_lr", contrast={"norm": ("batch", "none")},
        at="curve", expect="larger", compare="ratio", smallest_effect=2, notes={"9": "agrees"},
    )  # fmt: skip
    facts = {"decision": "supported", "effect": 3.0, "interval": (2.5, 4.0), "repeat": None} | changes
    return statements.Answer(study=Study(name="s", base="b"), claim=claim, support=support, found=facts)
