"""What other tools read of a run's event file is what its journal has: the scripts of docs/export.md, as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
IMPORT, LOG = re.findall(r"```python\n(.*?)```", PAGE, re.S)
TRAIN = ["train", "--config", "deep_mlp", "steps=4", "model.depth=2", "probes.activations.histogram_sites=2"]
STAND_IN = """
import json
class Histogram:
    def __init__(self, np_histogram):
        self.counts, self.edges = map(list, np_histogram)
class Run:
    def __enter__(self):
        return self
    def __exit__(self, *error):
        pass
    def log(self, row, step):
        print(json.dumps([step, row], default=vars))
def init(project, name, config):
    print(json.dumps([project, name, config]))
    return Run()
"""
"""Prints what it is given, in the place of wandb."""


def _python(words: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one run in runs/quickstart, and the scripts of the page."""
    made = tmp_path_factory.mktemp("export")
    _python(["-m", "bnlab", *TRAIN], made)
    (made / "runs" / "deep_mlp").rename(made / "runs" / "quickstart")
    (made / "to_trackio.py").write_text(IMPORT, encoding="utf-8")
    (made / "to_wandb.py").write_text(LOG, encoding="utf-8")
    return made


def _losses(folder: Path) -> dict[int, float]:
    [journal] = folder.rglob("journal.jsonl")
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    found = {record["step"]: record["train_loss"] for record in records if "train_loss" in record}
    assert len(found) >= 4
    return found


def _run_name(folder: Path) -> str:
    [spec] = folder.rglob("spec.yaml")
    return spec.parent.relative_to(folder / "runs" / "quickstart").as_posix()


def test_the_script_for_wandb_logs_the_journals_values(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(STAND_IN, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    head, *rows = map(
        json.loads, _python(["to_wandb.py", "runs/quickstart", "mine"], folder, PYTHONPATH=path).splitlines()
    )
    assert (head[0], head[1], head[2]["norm"]["name"]) == ("mine", _run_name(folder), "batch")
    logged = {step: row["1_progress/train_loss"] for step, row in rows if "1_progress/train_loss" in row}
    assert logged == {step: pytest.approx(loss, rel=1e-6) for step, loss in _losses(folder).items()}
    histograms = [value for _, row in rows for value in row.values() if isinstance(value, dict)]
    assert histograms
    for one in histograms:
        assert len(one["edges"]) == len(one["counts"]) + 1
        assert one["edges"] == sorted(one["edges"])
        assert sum(one["counts"]) > 0


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_takes_what_the_script_logs(folder: Path, tmp_path: Path) -> None:
    words = ["to_wandb.py", "runs/quickstart", "mine"]
    _python(words, folder, WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    [log] = tmp_path.rglob("offline-run-*/*.wandb")
    text = log.read_bytes()
    assert b"1_progress/train_loss" in text
    assert b'"histogram"' in text


@pytest.mark.skipif(
    not (importlib.util.find_spec("trackio") and importlib.util.find_spec("tbparse")), reason="trackio is not installed"
)
def test_trackio_imports_the_journals_values(folder: Path, tmp_path: Path) -> None:
    offline = {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    _python(["to_trackio.py"], folder, **offline)
    query = [
        "get",
        "metric",
        "--project",
        "quickstart",
        "--run",
        _run_name(folder),
        "--metric",
        "1_progress/train_loss",
    ]
    code = "import sys; from trackio.cli import main; sys.argv[0] = 'trackio'; main()"
    found = json.loads(_python(["-c", code, *query, "--json"], folder, **offline))
    assert {one["step"]: one["value"] for one in found["values"]} == {
        step: pytest.approx(loss, rel=1e-6) for step, loss in _losses(folder).items()
    }
