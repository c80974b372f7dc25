"""What `bnlab report` costs on many finished runs: seconds and peak memory of the whole process.

The runs are synthetic, but as large as real ones: a 10-layer MLP of 11 sites under `probes=economy`, 200 points a
run by default.

    python benchmarks/report.py [--runs 1000] [--points 200] [--probes economy|standard] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bnlab import config
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import Journal

SITES = 11
NORMS = ("none", "batch", "layer", "group", "frozen_batch")
PER_SITE = ("act_mean", "act_var", "drift_mean", "drift_logvar", "drift_mean_total", "drift_logvar_total")
PER_SITE += ("sampling_floor", "act_p15", "act_p50", "act_p85")
CLAIM = """
name: bench
base: deep_mlp
overrides: {probes: %s, probes.points: %d}
axes: {norm: "%s", optim.lr: "logspace(1e-3, 10, %d)", seed: "range(0, %d)"}
claims:
  - {name: rates, text: Batch norm trains at larger learning rates, source: a benchmark, metric: max_stable_lr,
     contrast: {norm: [batch, none]}, at: curve, expect: larger, compare: ratio, smallest_effect: 2}
  - {name: drift, text: Batch norm drifts less, source: a benchmark, metric: drift_pre,
     contrast: {norm: [batch, none]}, at: matched_lr, expect: smaller, compare: ratio, smallest_effect: 1.2}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--probes", choices=["economy", "standard"], default="economy")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bench"
        made = make(root, asked.runs, asked.points, asked.probes)
        size = sum(file.stat().st_size for file in root.rglob("journal.jsonl"))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "bnlab", "report", str(root), "--json"], check=True, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = {
            "runs": made,
            "journals_mb": round(size / 1e6),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
            "peak_mib": round(usage.ru_maxrss / 1024),
            "page_mb": round((root / "report.html").stat().st_size / 1e6, 2),
            "figures": json.loads(done.stdout)["figures"],
        }
    print(json.dumps(found) if asked.json else "\n".join(f"{key:12} {value}" for key, value in found.items()))


def make(root: Path, runs: int, points: int, probes: str) -> int:
    """Run folders of a study, finished: norms x 10 learning rates x as many seeds as needed. Its YAML is in `studies`
    beside them, where `--config-dir` finds it."""
    seeds = math.ceil(runs / len(NORMS) / 10)
    text = CLAIM % (probes, points, ",".join(NORMS), 10, seeds)
    for file in (root / "study.yaml", root.parent / "studies" / "bench.yaml"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# Synthetic runs.\n{text}")
    _, cells = config.load_study("bench", [], root.parent)
    for cell in cells[:runs]:
        _write(root.parent, cell.spec, points, probes)
    return min(runs, len(cells))


def _write(root: Path, spec: RunSpec, points: int, probes: str) -> None:
    """One run that has ended, with a realistic journal."""
    steps = spec.steps or 1000
    folder = RunFolder(root / spec.folder)
    folder.path.mkdir(parents=True)
    provenance = {
        "bnlab": "0.1.0",
        "git_sha": "0" * 40,
        "git_dirty": False,
        "torch": "2.13.0",
        "argv": ["bnlab", "sweep"],
    }
    folder.write_spec(spec.tree(), provenance)
    rng = np.random.default_rng(spec.seed)
    limit = {"none": 0.1, "batch": 5.0}.get(spec.norm.name, 1.0)
    diverged = spec.optim.lr > limit
    last = 40 if diverged else steps
    journal = Journal(folder.journal_file)
    for point, step in enumerate(np.linspace(0, steps, points, dtype=int)):
        if step > last:
            break
        journal.append(_record(int(step), point, spec, rng, steps, probes))
    journal.sync()
    journal.close()
    loss = 2.3 * math.exp(-3 * min(1.0, spec.optim.lr / 0.3)) * float(rng.lognormal(0, 0.2))
    metrics = {} if diverged else {"train_loss": loss, "train_accuracy": 0.9, "test_loss": loss, "test_accuracy": 0.9}
    status = {"status": "diverged" if diverged else "finished", "step": last, "steps": steps, "dead": False}
    folder.write_status(status | {"metrics": metrics, "timing": {"run_s": 4.0, "measure_s": 1.0}})


def _record(
    step: int, point: int, spec: RunSpec, rng: np.random.Generator, steps: int, probes: str
) -> dict[str, object]:
    def sites() -> object:
        return rng.lognormal(-2, 1, SITES).astype(np.float32)

    half = np.float32(0.5)
    loss = np.float32(2.3 * math.exp(-5 * step / steps) * rng.lognormal(0, 0.2))
    record: dict[str, object] = {
        "step": step,
        "lr": spec.optim.lr,
        "train_loss": loss,
        "train_accuracy": np.float32(0.5),
    }
    if point % 4 == 0:
        record |= {"test_loss": loss, "test_accuracy": half}
    record |= {name: sites() for name in ("batch_mean", "batch_var", "grad_norm", "update_ratio", "delta_norm")}
    record |= {"grad_norm_total": np.float32(3), "first_over_last": np.float32(2)}
    if probes == "standard" or point % 5 == 0:
        record |= {f"{name}.{where}": sites() for name in PER_SITE for where in ("pre", "act_in")}
    if probes == "standard":
        if point % 4 == 0:
            record |= {"loss_lo": loss * 0.9, "loss_hi": loss * 1.5, "loss_range": half, "grad_change": loss}
            record |= {"grad_change_rel": loss, "eta_beta_half": loss}
            record |= {f"thm41_{name}": sites() for name in ("raw", "mean", "corr", "error")}
        if point % 5 == 0:
            for site in (0, 2, 5, 8, 10):
                for where in ("pre", "act_in"):
                    record[f"histogram.{where}.L{site:02d}_fc"] = rng.poisson(60, 122).astype(np.float32)
    return record | {"wall_s": 0.1}


if __name__ == "__main__":
    main()
