"""What a sweep costs beside its runs: parallel efficiency, and the start of a run.

    python benchmarks/sweep.py [--json] [--workers W] [--runs N] [--steps N]

A grid of equal runs (`mlp_digits`, only the seed differs) is swept by W workers, as `bnlab sweep` does.

launch       until the first process is ready: the server imports torch, once for a sweep of any size
process      a process that does nothing, start to end
beside       what a run takes of its worker's time beyond its own `run_s`: process, data, net, status; the sweep's time
             times W, less the sum of the runs' own times, over the number of runs
efficiency   sum of the runs' own times / W / time of the sweep, from its first run on
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bnlab import config
from bnlab.grids.run import Sweep, seconds
from bnlab.launch.base import cores
from bnlab.launch.local import Local

BUDGETS = {"process_s": 0.1, "efficiency": 0.9}


def measure(workers: int, runs: int, steps: int) -> dict[str, Any]:
    """All figures, in seconds."""
    executor = Local([{}] * workers)
    launch_s = _timed(executor, 1)
    process_s = statistics.median(_timed(Local([{}]), 1) for _ in range(40))
    _, cells = config.load_study("mlp_digits", [f"steps={steps}", f"seed=range({runs})"])
    with tempfile.TemporaryDirectory() as folder:
        grid = Sweep(cells, Path(folder))
        start = time.perf_counter()
        grid.run(executor)
        wall_s = time.perf_counter() - start
    assert not grid.failures, grid.failures[0].error
    own = [seconds(standing.status) or 0.0 for standing in grid.standings.values()]
    return {
        "workers": workers,
        "runs": runs,
        "launch_s": launch_s,
        "process_s": process_s,
        "run_s": statistics.median(own),
        "beside_s": (workers * wall_s - sum(own)) / runs,
        "wall_s": wall_s,
        "efficiency": sum(own) / workers / wall_s,
    }


def _timed(executor: Local, items: int) -> float:
    start = time.perf_counter()
    for outcome in executor.run(time.sleep, [0.0] * items):
        assert outcome.error is None, outcome.error
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    found = measure(given.workers, given.runs, given.steps)
    if given.json:
        json.dump(found, sys.stdout)
        return
    table = Table(title=f"{given.runs} runs of {given.steps} steps on {given.workers} workers")
    for head in ("", "s", "budget"):
        table.add_column(head, justify="right" if head else "left")
    for name, value in found.items():
        if name not in ("workers", "runs"):
            sign = ">=" if name == "efficiency" else "<="
            table.add_row(name.removesuffix("_s"), f"{value:.3f}", f"{sign} {BUDGETS[name]}" if name in BUDGETS else "")
    Console().print(table)


if __name__ == "__main__":
    main()
