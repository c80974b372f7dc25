"""Reading a run's folder: its spec, and series of its journal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnlab.core.spec import NEWER, RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal, columns, read
from bnlab.record.runs import flat, read_run

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "lr": 0.1, "train_loss": 2.5, "delta_norm": [1.0, 2.0], "wall_s": 9.5},
    {"step": 3, "lr": 0.1, "train_loss": None, "delta_norm": [None, 2e-8], "batch_mean": [-1, 0]},
    {"step": 10, "test_loss": -0.25},
]


def written(path: Path) -> RunFolder:
    """A run's folder with a spec, a status and these records."""
    path.mkdir()
    run = RunFolder(path)
    tree = {"name": "study", "seed": 0, "norm": {"name": "batch", "eps": 1e-5}, "optim": {"name": "sgd", "lr": 0.1}}
    run.write_spec(tree | {"launch": {"checkpoint_s": 30.0}}, {"bnlab": "0", "claims": {"c": "0123456789"}})
    run.write_status({"status": "finished", "step": 10, "steps": 10})
    journal = Journal(run.journal_file)
    for record in RECORDS:
        journal.append(record)
    journal.close()
    return run


def test_a_spec_is_flat_and_a_group_is_its_choice(tmp_path: Path) -> None:
    found = read_run(written(tmp_path / "a"))
    assert found.spec == {"seed": 0, "norm": "batch", "norm.eps": 1e-5, "optim": "sgd", "optim.lr": 0.1}
    assert found.provenance["claims"] == {"c": "0123456789"}
    assert flat({"model": {"name": "mlp", "name_of": 1}, "probes": {"landscape": {"low": 0.5}}}) == {
        "model": "mlp", "model.name_of": 1, "probes.landscape.low": 0.5,
    }  # fmt: skip


def test_a_run_from_before_there_was_a_key_is_one_with_its_default(
    tmp_path: Path, spec_of: Callable[..., RunSpec]
) -> None:
    found = []
    for name, kept in (("now", True), ("before", False)):
        (tmp_path / name).mkdir()
        tree = spec_of().tree()
        for group, key, default in NEWER:
            assert tree[group][key] == default
            if not kept:
                del tree[group][key]
        RunFolder(tmp_path / name).write_spec(tree, {})
        found.append(read_run(RunFolder(tmp_path / name)).spec)
    assert found[0] == found[1]


def test_series_are_those_of_the_records(tmp_path: Path) -> None:
    """The slow reference parses every record."""
    run = written(tmp_path / "a")
    names = ["train_loss", "delta_norm", "test_loss", "batch_mean", "nothing"]
    found = columns(run.journal_file, names)
    records = list(read(run.journal_file))
    assert sorted(found) == sorted(names[:-1])
    for name, series in found.items():
        having = [record for record in records if name in record]
        assert series.steps.tolist() == [record["step"] for record in having]
        slow = np.array([record[name] for record in having], dtype=np.float64)
        np.testing.assert_array_equal(series.values, slow)


def test_a_record_cut_off_by_a_kill_is_none(tmp_path: Path) -> None:
    run = written(tmp_path / "a")
    with open(run.journal_file, "ab") as file:
        file.write(b'{"step":11,"train_loss":7.0')
    assert columns(run.journal_file, ["train_loss"])["train_loss"].steps.tolist() == [0, 3]
    assert columns(tmp_path / "none.jsonl", ["train_loss"]) == {}
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert columns(tmp_path / "empty.jsonl", ["train_loss"]) == {}


def test_blanks_between_names_and_values_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    assert columns(file, ["delta_norm"])["delta_norm"].values[0].tolist() == [1.0, 2.0]
