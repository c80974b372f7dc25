"""`bnlab sweep --all`: the order of studies, what fits a budget, resuming, and one failure among several."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bnlab.cli import main
from bnlab.config import statements
from bnlab.core.errors import UsageError
from bnlab.core.study import Claim, Study

Said = tuple[int, str, str]
TINY = """
title: Which is better, {name}?
minutes: {minutes}
base: deep_mlp
overrides: {{steps: 2, probes: none, launch: inline, launch.lockstep: "off"}}
axes: {{norm: "none,batch", optim.lr: "0.1", seed: "0,1"}}
claims:
  - name: lower
    text: Batch norm ends lower
    source: nobody
    notes: {{"{statement}": agrees}}
    metric: final_train_loss
    contrast: {{norm: [batch, none]}}
    at: matched_lr
    expect: smaller
    compare: ratio
    smallest_effect: 1
"""


def _study(name: str, minutes: float | None, *numbers: int) -> Study:
    claim = Claim(
        name="c", text="C", source="nobody", metric="max_stable_lr", contrast={"norm": ("batch", "none")}, at="curve",
        expect="larger", compare="ratio", smallest_effect=2, notes={str(number): "agrees" for number in numbers},
    )  # fmt: skip
    return Study(name=name, base="b", minutes=minutes, claims=(claim,))


KNOWN = [
    _study("long", 9, 1, 2, 3),
    _study("short", 2, 1),
    _study("nothing_new", 1),
    _study("unknown", None, 4),
    _study("rest", 4, 2, 3),
]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "studies", lambda dirs: {study.name: study for study in KNOWN})


def _names(budget: float | None = None, wanted: Sequence[int] = ()) -> list[str]:
    return [study.name for study in statements.plan([], budget, wanted)]


@pytest.mark.usefixtures("known")
def test_the_cheapest_for_each_new_statement_comes_first() -> None:
    # short: 2 minutes for one; then rest: 4 for two; long has nothing new then; of unknown length last.
    assert _names() == ["short", "rest", "nothing_new", "long", "unknown"]


@pytest.mark.usefixtures("known")
def test_only_what_fits_the_budget_runs() -> None:
    assert _names(budget=7) == ["short", "rest", "nothing_new"]
    assert _names(budget=3) == ["short", "nothing_new"]


@pytest.mark.usefixtures("known")
def test_only_studies_of_the_statements_run() -> None:
    assert _names(wanted=[3]) == ["rest", "long"]
    with pytest.raises(UsageError, match="--statements: no such statement, got 35"):
        _names(wanted=[35])
    with pytest.raises(UsageError, match="--statements: no study answers it, got 5"):
        _names(wanted=[5])


@pytest.fixture
def bnlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process, in a directory with two tiny studies, which are all there are."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs" / "studies"
    folder.mkdir(parents=True)
    for name, minutes, statement in (("later", 5, 9), ("first", 1, 10)):
        (folder / f"{name}.yaml").write_text(TINY.format(name=name, minutes=minutes, statement=statement))
    every = statements.studies

    def two(dirs: Sequence[Path]) -> dict[str, Study]:
        return {name: study for name, study in every(dirs).items() if name in ("first", "later")}

    monkeypatch.setattr(statements, "studies", two)

    def run(*words: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(["sweep", *words])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


@pytest.mark.slow
def test_all_studies_run_in_order_and_are_skipped_when_they_have_ended(bnlab: Callable[..., Said]) -> None:
    code, out, _ = bnlab("--all", "--plain")
    assert code == 0
    assert out.index("first: Which is better, first?") < out.index("later: Which is better, later?")
    *_, first, later, all_, last = out.splitlines()
    assert [line.split() for line in (first, later, all_)] == [["first", "1", "1"], ["later", "5", "1"], ["all", "2"]]
    assert last == "gallery  runs/gallery/index.html"
    page = Path("runs/gallery/index.html").read_text()
    assert page.index("Which is better, first?") < page.index("Which is better, later?")
    code, out, _ = bnlab("--all", "--plain")
    assert code == 0
    assert out.count("all ended, nothing to do") == 2


@pytest.mark.slow
def test_a_study_that_cannot_run_does_not_cost_the_others(bnlab: Callable[..., Said]) -> None:
    file = Path("configs/studies/first.yaml")
    file.write_text(file.read_text().replace("final_train_loss", "no_such_metric"))
    code, out, err = bnlab("--all", "--json")
    assert code == 3
    assert "claims.lower.metric: no such metric" in err
    assert [study["study"] for study in json.loads(out)["studies"]] == ["later"]
    assert json.loads(out)["gallery"] == "runs/gallery/index.html"


@pytest.mark.parametrize("words", [["--all", "--dry-run"], ["--all", "--budget", "0min"]])
def test_where_nothing_ran_there_is_no_gallery(words: list[str], bnlab: Callable[..., Said]) -> None:
    code, out, _ = bnlab(*words)
    assert code == 0
    assert "gallery" not in out
    assert not Path("runs/gallery").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--all", "--config", "first"], "--config: cannot be used with --all, got 'first'."),
        (["--budget", "2h"], "--budget: needs --all, got '2h'."),
        (["--all", "--budget", "soon"], "--budget: must be a time, got 'soon'. Write 2h, or 45min."),
        (["--all", "--statements", "a"], "--statements: must be numbers between commas, got 'a'. Write 3,17."),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], error: str, bnlab: Callable[..., Said]) -> None:
    code, _, err = bnlab(*words)
    assert (code, err) == (2, f"{error}\n")
