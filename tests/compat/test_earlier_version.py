"""Runs, reports and plugins of an earlier version: see README.md in this folder."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bnlab import config
from bnlab.cli import main
from bnlab.cli.verify import check_plugin
from bnlab.core.registry import REGISTRIES
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.setup import assemble
from bnlab.run.train import train

HERE = Path(__file__).parent
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
STATES = {"stopped": "interrupted"}
"""States that have another name now."""
Told = Callable[..., Any]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old runs, in ./runs."""
    with tarfile.open(HERE / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def told(old: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    """`told("runs", "runs")`: what a command prints as JSON."""

    def tell(*words: str) -> Any:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*words, "--json"])
        return json.loads(capsys.readouterr().out)

    return tell


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _rows(text: str) -> list[list[Any]]:
    return [[_number(cell) for cell in row] for row in csv.reader(io.StringIO(text))]


def _assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers to rounding."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert set(found) >= set(expected), where
        for key, value in expected.items():
            _assert_same(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_same(one, other, f"{where}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-12, nan_ok=True), where
    else:
        assert found == expected, where


def test_a_report_has_the_same_verdicts_figures_and_summary(told: Told, old: Path) -> None:
    report = told("report", "runs/old_study")
    expected = EXPECTED["report"]
    for claim, before in zip(report["claims"], expected["claims"], strict=True):
        for key in ("name", "verdict", "effect", "interval", "p", "n"):
            _assert_same(claim[key], before[key], f"{before['name']}/{key}")
        assert len(claim["cautions"]) == len(before["cautions"])
    assert report["runs"] == expected["runs"] == 24
    assert set(report["figures"]) >= set(expected["figures"])
    for name, text in EXPECTED["figures"].items():
        rows = _rows(text)
        for place in (index for index, head in enumerate(rows[0]) if head == "layer"):
            rows[1:] = [[*row[:place], row[place] - 1, *row[place + 1 :]] for row in rows[1:]]  # it counted from 1
        _assert_same(_rows((old / "old_study" / "figures" / name).read_text()), rows, name)
    found = pl.read_parquet(old / "old_study" / "summary.parquet").sort("run").to_dicts()
    before = sorted(EXPECTED["summary"], key=lambda row: str(row["run"]))
    plain = [{key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()} for row in found]
    _assert_same(plain, before, "summary")


def test_old_runs_are_listed_with_their_states(told: Told) -> None:
    found = {row["run"]: row for row in told("runs", "runs")["runs"]}
    expected = {row["run"]: row | {"status": STATES.get(row["status"], row["status"])} for row in EXPECTED["runs"]}
    _assert_same(found, expected)
    assert sorted({row["status"] for row in found.values()}) == ["diverged", "failed", "finished", "interrupted"]


def test_an_old_run_killed_on_this_machine_is_interrupted(told: Told, old: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    [killed] = (old / "others" / "quickstart" / "none" / "lr=0.3").iterdir()
    owner = {"host": socket.gethostname(), "pid": ended.pid, "heartbeat_s": 1e9}
    (killed / "owner.json").write_text(json.dumps(owner))
    [row] = told("runs", str(killed.parent))["runs"]
    assert (row["status"], row["step"], row["steps"]) == ("interrupted", 12, 30)


def test_an_old_checkpoint_is_resumed(old: Path) -> None:
    [killed] = (old / "others" / "quickstart" / "none" / "lr=0.3").iterdir()
    folder = RunFolder(killed)
    before = [without_clock(record) for record in read(folder.journal_file)]
    written = folder.spec()
    del written["provenance"]
    status = train(assemble(RunSpec.from_tree(written)), folder)
    assert (status["status"], status["step"]) == ("finished", 30)
    after = [without_clock(record) for record in read(folder.journal_file)]
    assert after[: len(before)] == before
    assert [record["step"] for record in after][-1] == 30
    assert re.search(r"from step 1[23] of 30", (killed / "log.txt").read_text())


def test_an_old_checkpoint_is_evaluated(told: Told) -> None:
    run = EXPECTED["evaluate"]["evaluations"][0]["run"]
    for words, key in (((), "evaluate"), (("eval_bn=batch", "eval_batch_size=32"), "evaluate_batch")):
        found, expected = told("evaluate", run, *words)["evaluations"], EXPECTED[key]["evaluations"]
        for one, before in zip(found, expected, strict=True):
            assert {k: one[k] for k in before if k != "metrics"} == {k: before[k] for k in before if k != "metrics"}
            # The net is run again here, on a processor that may sum otherwise.
            assert one["metrics"]["test_loss"] == pytest.approx(before["metrics"]["test_loss"], rel=1e-4)
            accuracy = before["metrics"]["test_accuracy"]
            assert one["metrics"]["test_accuracy"] == pytest.approx(accuracy, abs=1.5 / one["examples"])


def test_ids_of_old_runs_and_of_all_experiments_are_the_same(old: Path) -> None:
    folders = [file.parent for file in old.rglob("spec.yaml")]
    assert len(folders) == 27
    for folder in folders:
        tree = RunFolder(folder).spec()
        del tree["provenance"]
        assert folder.name.endswith(f"-{RunSpec.from_tree(tree).id}")
    assert {name: config.load(config.RENAMED.get(name, name), ()).id for name in EXPECTED["ids"]} == EXPECTED["ids"]


# -- plugins ---------------------------------------------------------------------------------------


@pytest.fixture
def unregistered() -> Iterator[None]:
    """Takes a plugin and what it registered away again."""
    yield
    for registry in REGISTRIES:
        for name, entry in list(registry._entries.items()):
            if entry.constructor.__module__.startswith("bnlab_plugin_"):
                registry.forget(name)
    for name in [name for name in sys.modules if name.startswith("bnlab_plugin_")]:
        del sys.modules[name]


@pytest.mark.usefixtures("unregistered")
@pytest.mark.parametrize("file", sorted((HERE / "plugins").glob("*.py")), ids=lambda file: file.stem)
def test_an_old_plugin_keeps_the_contract(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = check_plugin(str(file), None, False)
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "checks hold" in shown
