"""Run folders on the disk: what is read of them, and the table of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from bnlab.analysis.load import read_runs, read_study, summary, write_summary
from bnlab.core.errors import UsageError
from bnlab.core.spec import id_of
from bnlab.core.study import Claim, Study
from bnlab.record.folder import RunFolder
from bnlab.record.journal import NOTHING, Journal

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "lr": 0.1, "train_loss": 2.5, "delta_norm": [1.0, 2.0], "wall_s": 9.5},
    {"step": 3, "lr": 0.1, "train_loss": None, "delta_norm": [None, 2e-8], "batch_mean": [-1, 0]},
    {"step": 10, "test_loss": -0.25},
]
CLAIM = Claim(
    name="c", text="t", source="s", metric="steps_to", contrast={"norm": ("batch", "none")}, at="best_lr",
    expect="smaller", compare="ratio", smallest_effect=2.0, options={"of": "train_loss", "target": 0.5, "smooth": 1},
)  # fmt: skip


def folder(path: Path, *, seed: int = 0, status: str | None = "finished", run_s: float = 1.0, **spec: Any) -> RunFolder:
    """A run folder with these files."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    tree = {"name": "study", "seed": seed, "norm": {"name": "batch", "eps": 1e-5}, "optim": {"name": "sgd", "lr": 0.1}}
    run.write_spec(tree | spec | {"launch": {"checkpoint_s": 30.0}}, {"bnlab": "0", "claims": {"c": "0123456789"}})
    if status is not None:
        ended = {"status": status, "step": 10, "steps": 10, "metrics": {"train_loss": 0.5}, "timing": {"run_s": run_s}}
        run.write_status(ended)
    journal = Journal(run.journal_file)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return run


def test_runs_that_ended_count_and_others_are_listed(tmp_path: Path) -> None:
    for index, status in enumerate(["finished", "diverged", "running", "failed", "interrupted", None]):
        folder(tmp_path / f"run{index}", seed=index, status=status)
    (tmp_path / "run6").mkdir()
    (tmp_path / "run6" / "spec.yaml").write_text("norm: [")
    (tmp_path / "run7").mkdir()
    (tmp_path / "run7" / "spec.yaml").write_text("seed: 1\n")
    (tmp_path / "run7" / "status.json").write_text("{")
    found = read_runs(tmp_path)
    assert [run.path.name for run in found.runs] == ["run0", "run1"]
    assert [run.path.name for run in found.unfinished] == [f"run{index}" for index in range(2, 8)]
    assert found.study is None


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    made = folder(tmp_path / "made", seed=5, model={"name": "mlp"}, data={"name": "digits"})
    name = f"seed=5-{id_of(made.spec(), ())}"
    (tmp_path / "a").mkdir()
    made.path.rename(tmp_path / "a" / name)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder(tmp_path / "c", name="another")
    folder(tmp_path / "d", name="a third")  # of the same spec, but for its name
    found = read_runs(tmp_path)
    assert [run.path.relative_to(tmp_path).as_posix() for run in found.runs] == [f"a/{name}", "c"]
    assert [run.path.relative_to(tmp_path).as_posix() for run in found.copies] == [f"b/{name}", "d"]


def test_a_journal_is_read_once_and_further_names_later(tmp_path: Path) -> None:
    run = folder(tmp_path / "a")
    found = read_runs(tmp_path, keep=["batch_mean"])
    assert found.runs[0].series("batch_mean").values.tolist() == [[-1, 0]]
    assert found.runs[0].series("lr").steps.tolist() == [0, 3]
    run.journal_file.unlink()
    assert found.runs[0].series("train_loss").steps.tolist() == [0, 3]
    assert found.runs[0].series("nothing") is NOTHING


def test_a_study_is_read_with_its_runs(tmp_path: Path) -> None:
    study = Study(name="s", base="b", axes={"seed": "0,1"}, claims=(CLAIM,))
    tree = json.loads(json.dumps(study.tree())) | {"provenance": {"argv": ["bnlab"]}}
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.yaml").write_text(yaml.safe_dump(tree))
    folder(tmp_path / "s" / "run")
    found = read_runs(tmp_path / "s")
    assert found.study == Study.from_tree({key: value for key, value in tree.items() if key != "provenance"})
    assert found.study is not None
    assert found.study.claims[0].digest == CLAIM.digest
    assert found.study_provenance == {"argv": ["bnlab"]}


@pytest.mark.parametrize(
    ("text", "match"),
    [("claims: [", "not YAML"), ("- 1", "not a study"), ("name: s\nbase: b\nclaims: 3\n", "claims: must be a list")],
)
def test_a_broken_study_is_refused(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UsageError, match=match):
        read_study(tmp_path / "study.yaml")


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="RUNS: no such directory"):
        read_runs(tmp_path / "none")


def test_the_summary_has_a_row_a_run(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(Study(name="s", base="b", claims=(CLAIM,)).tree())))
    )
    folder(tmp_path / "b", seed=1, data={"name": "digits", "axis": [1, 2]})
    folder(tmp_path / "a", seed=0, status="diverged")
    frame = summary(read_runs(tmp_path))
    assert frame["run"].to_list() == ["a", "b"]
    assert frame["seed"].to_list() == [0, 1]
    assert frame["data.axis"].to_list() == [None, "[1,2]"]
    assert frame["status"].to_list() == ["diverged", "finished"]
    assert frame["final_train_loss"].to_list() == [2500.0, 0.5]
    assert frame["final_train_loss.bound"].to_list() == ["at least", None]
    assert frame["loss_range"].to_list() == [None, None]
    assert "loss_range.bound" not in frame.columns
    assert frame["steps_to(of=train_loss,smooth=1,target=0.5)"].to_list() == [10.0, 10.0]
    assert frame["run_s"].to_list() == [1.0, 1.0]


def test_equal_runs_give_equal_summaries_but_for_the_clock(tmp_path: Path) -> None:
    for which, run_s in (("one", 1.0), ("other", 2.0)):
        for seed in (1, 0):
            folder(tmp_path / which / f"run{seed}", seed=seed, run_s=run_s)
        write_summary(read_runs(tmp_path / which), tmp_path / which / "summary.parquet")
    one, other = (pl.read_parquet(tmp_path / which / "summary.parquet") for which in ("one", "other"))
    assert one.columns == other.columns
    clock = [name for name in one.columns if name.endswith("_s")]
    assert clock == ["run_s"]
    assert one.drop(clock).equals(other.drop(clock))
    assert not one.equals(other)


def test_a_folder_without_runs_has_an_empty_summary(tmp_path: Path) -> None:
    assert summary(read_runs(tmp_path)).shape[0] == 0
