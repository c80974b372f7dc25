"""`bnlab ask` and `bnlab list studies`: what is known, by words and by study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main
from bnlab.config import search, statements

Said = tuple[int, str, str]


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process, in an empty directory: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["learning", "rates"], "statement 9"),
        (["initial weights"], "statement 24"),
        (["initialization"], "statement 24"),
        (["dropout"], "statement 25"),
        (["roses"], "statement 27"),
        (["is", "batch", "norm", "slower"], "statement 22"),
        (["single", "test", "image"], "statement 33"),
        (["information", "loss"], "statement 14"),
        (["EWMA"], "statement 34"),
        (["where do I put batch norm"], "statement 30"),
        (["Hessian"], "statement 8"),
        (["depthwise", "convolutions"], "statement 19"),
        (["exploding gradients"], "statement 6"),
        (["small", "batches"], "statement 29"),
        (["noisy", "batches"], "statement 12"),  # by the beginning of a word
        (["max_stable_lr"], "max_stable_lr"),
        (["quickstart"], "quickstart"),
    ],
)
def test_ask_finds_a_statement_a_study_or_a_metric(words: list[str], name: str, bnlab: Callable[..., Said]) -> None:
    code, out, _ = bnlab("ask", *words, "--json")
    hits = json.loads(out)["hits"]
    assert code == 0
    assert 1 <= len(hits) <= 5
    assert hits[0]["name"] == name
    assert all(hit["command"].startswith("bnlab ") for hit in hits)


def test_ask_shows_every_claim_of_the_best_hit_with_its_committed_verdict(bnlab: Callable[..., Said]) -> None:
    code, out, _ = bnlab("ask", "initialization")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "statement 24: With batch norm, training depends less on the initial weights."
    known = statements.verdicts()["init_sensitivity"]["claims"]
    study = statements.studies()["init_sensitivity"]
    for claim, shown in zip(study.claims, lines[1:], strict=False):
        found = known[claim.name]
        answer = statements.Answer(study=study, claim=claim, support="agrees", found=found)
        assert shown == f"    {answer.sign} {claim.text}: {found['decision']}, {answer.words}"
    assert lines[1 + len(study.claims)] == "    bnlab sweep --config init_sensitivity"
    counts = statements.tally_words(statements.tally(known))
    assert f"    {counts}\n    bnlab sweep --config init_sensitivity\n" in out  # the study itself, in short
    assert lines[-1].startswith("✓ agrees with the sentence; ✕ contradicts it; ")


def test_the_study_that_says_most_on_a_statement_comes_first() -> None:
    kept = search.everything(statements.studies(), statements.verdicts(), [])
    hit = next(hit for hit in kept if hit.name == "statement 9")
    assert hit.command == "bnlab sweep --config lr_range"
    judged = [sum(not line.startswith("–") for line in lines) for _, lines in hit.parts]
    assert judged == sorted(judged, reverse=True)
    assert len(hit.parts) == len({command for command, _ in hit.parts}) > 3


def test_a_claim_that_opposes_the_statement_says_both_its_verdict_and_the_sign() -> None:
    kept = search.everything(statements.studies(), statements.verdicts(), [])
    lines = [line for hit in kept if hit.name == "statement 7" for _, some in hit.parts for line in some]
    assert any(line.startswith("✕") and ": supported, " in line for line in lines)


def test_hits_that_fit_far_less_than_the_best_are_left_out(bnlab: Callable[..., Said]) -> None:
    hits = json.loads(bnlab("ask", "dropout", "--json")[1])["hits"]
    assert [hit["name"] for hit in hits] == ["statement 25", "regularization"]
    assert len(hits[0]["claims"]) == 2
    assert all(": " in claim for claim in hits[0]["claims"])


def test_a_claim_that_was_not_tested_is_counted_apart() -> None:
    decisions = ("supported", "not tested", "direction only", "inconclusive")
    counts = statements.tally({decision: {"decision": decision} for decision in decisions})
    assert statements.tally_words(counts) == "1 ✓ 2 ? 1 –"


@pytest.mark.parametrize("words", [["zzz"], ["what", "is", "batch", "norm"]])
def test_ask_says_so_where_nothing_is_found(words: list[str], bnlab: Callable[..., Said]) -> None:
    code, out, err = bnlab("ask", *words)
    assert (code, out) == (2, "")
    assert err.startswith("WORDS: no statement, study or metric has them, got ")
    assert len(err.splitlines()) == 1


def test_list_studies_has_the_question_and_what_ran_here(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    rows = {row["name"]: row for row in json.loads(bnlab("list", "studies", "--json")[1])["studies"]}
    assert rows["drift"]["title"].endswith("?")
    assert rows["drift"]["claims"] == len(statements.studies()["drift"].claims)
    assert all(row["verdicts"] is None and row["last_run"] is None for row in rows.values())
    bare = bnlab("list", "studies")[1].splitlines()
    assert bare[-1].startswith("none of them has run below runs; ")
    assert "verdicts here" not in bare[0]

    folder = tmp_path / "runs" / "drift"
    (folder / "none" / "lr=0.1" / "seed=0-abc").mkdir(parents=True)
    (folder / "none" / "lr=0.1" / "seed=0-abc" / "status.json").write_text("{}")
    claims: dict[str, Any] = {"a": "supported", "b": "refuted", "c": "inconclusive", "d": "supported"}
    found = {"claims": {name: {"decision": decision} for name, decision in claims.items()}}
    (folder / "verdicts.json").write_text(json.dumps(found))
    rows = {row["name"]: row for row in json.loads(bnlab("list", "studies", "--json")[1])["studies"]}
    assert rows["drift"]["verdicts"] == {"✓": 2, "✕": 1, "?": 1}
    assert rows["drift"]["last_run"]
    assert rows["ics"]["verdicts"] is None
    lines = bnlab("list", "studies")[1].splitlines()
    assert lines[0].split("  ")[-2:] == ["verdicts here", "last run here"]
    [line] = [line for line in lines if line.startswith("drift")]
    assert rows["drift"]["title"] in line
    assert "2 ✓ 1 ✕ 1 ?" in line
    assert rows["drift"]["last_run"][:10] in line


def test_a_file_that_is_no_study_is_listed_with_its_description(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "configs" / "studies" / "broken.yaml").write_text("# Broken.\nbase: [\n")
    code, out, _ = bnlab("list", "studies")
    assert code == 0
    assert "Broken." in out
