"""`bnlab ask` and `bnlab list studies`: what is known, by words and by study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnlab.cli import main
from bnlab.config import statements

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
    assert name in [hit["name"] for hit in hits[:3]]
    assert all(hit["command"].startswith("bnlab ") for hit in hits)


def test_ask_shows_the_committed_verdict_and_the_command(bnlab: Callable[..., Said]) -> None:
    code, out, _ = bnlab("ask", "quickstart")
    counts = statements.tally(statements.verdicts()["quickstart"]["claims"])
    assert code == 0
    assert f"    {statements.tally_words(counts)}\n    bnlab sweep --config quickstart\n" in out


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
    [line] = [line for line in bnlab("list", "studies")[1].splitlines() if line.startswith("drift")]
    assert "2 ✓ 1 ✕ 1 ?" in line
    assert rows["drift"]["last_run"][:10] in line


def test_a_file_that_is_no_study_is_listed_with_its_description(bnlab: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "configs" / "studies" / "broken.yaml").write_text("# Broken.\nbase: [\n")
    code, out, _ = bnlab("list", "studies")
    assert code == 0
    assert "Broken." in out
