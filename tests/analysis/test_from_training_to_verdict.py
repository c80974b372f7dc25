"""Folders written by training: their table and their verdicts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.analysis.load import Collection, read_runs, summary
from bnlab.analysis.verdicts import judge
from bnlab.core.spec import RunSpec
from bnlab.core.study import Claim, Study

CLAIMS = (
    Claim(
        name="rates", text="t", source="s", metric="max_stable_lr", contrast={"norm": ("batch", "none")}, at="curve",
        expect="larger", compare="ratio", smallest_effect=1.0,
    ),
    Claim(
        name="loss", text="t", source="s", metric="final_train_loss", contrast={"norm": ("batch", "none")},
        at="best_lr", expect="smaller", compare="ratio", smallest_effect=1.0,
    ),
)  # fmt: skip


@pytest.fixture
def sweep(spec_of: Callable[..., RunSpec], run: Callable[..., Any], tmp_path: Path) -> Callable[[str], Collection]:
    """Trains two norms at two rates, of which 1e9 diverges, with two seeds, below a folder of that name."""

    def trained(where: str) -> Collection:
        study = Study(name=where, base="deep_mlp", axes={"norm": "batch,none"}, claims=CLAIMS)
        for norm in ("batch", "none"):
            for lr in ("0.1", "1e9"):
                for seed in (0, 1):
                    spec = spec_of(f"norm={norm}", f"optim.lr={lr}", f"seed={seed}", "probes.activations.batch=24")
                    run(spec, where=f"{where}/{norm}/{lr}/{seed}")
        (tmp_path / where / "study.yaml").write_text(yaml.safe_dump(study.tree()))
        return read_runs(tmp_path / where)

    return trained


def test_equal_sweeps_have_equal_tables_and_verdicts(sweep: Callable[[str], Collection], tmp_path: Path) -> None:
    one, other = sweep("one"), sweep("other")
    tables = [summary(collection) for collection in (one, other)]
    clock = [name for name in tables[0].columns if name.endswith("_s")]
    assert {"run_s", "measure_s"} <= set(clock)
    assert tables[0].drop(clock).equals(tables[1].drop(clock))
    assert tables[0]["status"].to_list().count("diverged") >= 2
    assert tables[0]["drift_pre"].drop_nulls().len() >= 4
    assert judge(one) == judge(other)
    # Copies of folders and missing checkpoints change nothing.
    shutil.copytree(tmp_path / "one" / "batch" / "0.1" / "0", tmp_path / "one" / "copy")
    for file in tmp_path.glob("one/**/checkpoint.pt"):
        file.unlink()
    again = read_runs(tmp_path / "one")
    assert len(again.copies) == 1
    assert judge(again) == judge(other)


def test_what_diverges_at_the_upper_rate_is_stable_at_the_lower(sweep: Callable[[str], Collection]) -> None:
    rates, loss = judge(sweep("one"))
    assert (rates.decision, rates.n, loss.n) == ("direction only", 2, 2)
    assert rates.control is not None
    assert rates.control.values == (0.1, 0.1)
    assert loss.control is not None
    assert (loss.control.point, loss.cautions[0]) == ("lr 0.1", "batch is best at lr 0.1, the grid's smallest")
