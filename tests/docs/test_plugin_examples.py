"""Plugins that docs/plugins.md shows: data, optimizer, metric, figure. (Norm, probe, net: tests/verify.)"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`(my_\w+)\.py`[^`\n]*\n\n```python\n(.*?)```", TEXT, re.S))
STUDY = """
base: deep_mlp
overrides: {{steps: 30, probes.points: 30, plugins: [my_metric.py]}}
axes: {{norm: "none,batch", optim.lr: "0.01,0.1", seed: "0,1"}}
claims:
  - name: quieter
    text: The end of training is quieter with batch norm
    source: nobody
    metric: {metric}
    options: {{last: {last}}}
    contrast: {{norm: [batch, none]}}
    at: matched_lr
    expect: smaller
    compare: difference
    smallest_effect: 0
"""


def _bnlab(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnlab", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _commands(name: str) -> list[list[str]]:
    lines = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.S)).splitlines()
    return [line.partition("  #")[0].split()[1:] for line in lines if f"{name}.py" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my_data", "my_optimizer"])
def test_a_data_set_and_an_optimizer_keep_the_contract_and_train(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
    verify, train = _commands(name)
    done = _bnlab(tmp_path, *verify)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks hold" in done.stdout
    done = _bnlab(tmp_path, *train, "steps=300", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["test_accuracy"] > 0.6  # chance is 0.5 and 0.1


def test_a_metric_is_held_to_its_declaration(tmp_path: Path) -> None:
    (tmp_path / "my_metric.py").write_text(EXAMPLES["my_metric"])
    [verify] = _commands("my_metric")
    done = _bnlab(tmp_path, *verify)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"metric=my_metric\s+declared\s+ok", done.stdout)
    (tmp_path / "my_metric.py").write_text(EXAMPLES["my_metric"].replace('source="our own", ', ""))
    done = _bnlab(tmp_path, *verify)
    assert done.returncode == 2
    assert "source" in done.stderr


def _swept(folder: Path, metric: str = "my_metric", last: str = "10") -> Any:
    (folder / "configs" / "studies").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "studies" / "mine.yaml").write_text(STUDY.format(metric=metric, last=last))
    (folder / "my_metric.py").write_text(EXAMPLES["my_metric"])
    done = _bnlab(folder, "sweep", "--config", "mine", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.slow
def test_a_metric_is_what_a_claim_compares(tmp_path: Path) -> None:
    swept = _swept(tmp_path)
    [claim] = swept["claims"]
    noise: dict[tuple[str, int], list[float]] = {}
    for run in swept["runs"]:
        journal = (tmp_path / run["run"] / "journal.jsonl").read_text().splitlines()
        losses = [loss for line in journal if (loss := json.loads(line).get("train_loss")) is not None]
        noise.setdefault((run["values"]["norm"], run["values"]["seed"]), []).append(float(np.std(np.log(losses[-10:]))))
    by_seed = [np.mean(noise["none", seed]) - np.mean(noise["batch", seed]) for seed in (0, 1)]
    assert claim["effect"] == pytest.approx(np.mean(by_seed), rel=1e-6)
    assert claim["verdict"] == "direction only"


def test_a_metric_that_no_plugin_brings_is_refused_before_anything_runs(tmp_path: Path) -> None:
    error = _swept(tmp_path, metric="my_metrik")
    assert error.startswith(("claims.quieter", "metric"))
    assert "my_metric" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_figure_is_in_the_report_with_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "my_figure.py").write_text(EXAMPLES["my_figure"])
    verify, sweep = _commands("my_figure")
    done = _bnlab(tmp_path, *verify)
    assert done.returncode == 0, done.stdout + done.stderr
    done = _bnlab(tmp_path, *sweep, "steps=40", "optim.lr=0.1", "seed=0,1", "--json")
    assert done.returncode == 0, done.stderr
    swept = json.loads(done.stdout)
    [table] = (tmp_path / "runs" / "quickstart").rglob("my_figure.csv")
    head, *rows = [line.split(",") for line in table.read_text().splitlines() if not line.startswith("#")]
    assert head == ["arm", "lr", "seed", "test_accuracy"]
    given = sorted(run["metrics"]["test_accuracy"] for run in swept["runs"])
    assert sorted(float(row[3]) for row in rows) == pytest.approx(given, rel=1e-6)
