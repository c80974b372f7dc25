"""What a folder of very many runs costs the commands that look at all of them: seconds and peak memory of each as a
process. The runs are synthetic and have ended (report.py), so a sweep over them has nothing to train.

    python benchmarks/ledger.py [--runs 10000] [--points 50] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import make

COMMANDS = {
    "runs": "runs ROOT/bench",
    "runs, some": "runs ROOT/bench --where norm=batch --where optim.lr>=1 --sort -test_accuracy",
    "sweep, what is left": "sweep --config bench --config-dir ROOT --runs ROOT --dry-run",
    "sweep, typed again": "sweep --config bench --config-dir ROOT --runs ROOT --plain",
    "report": "report ROOT/bench",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        start = time.perf_counter()
        made = make(root / "bench", asked.runs, asked.points, "economy")
        files = [file for file in (root / "bench").rglob("*") if file.is_file()]
        found: dict[str, object] = {
            "runs": made,
            "files": len(files),
            "mb": round(sum(file.stat().st_size for file in files) / 1e6),
            "made_s": round(time.perf_counter() - start, 1),
        }
        for name, line in COMMANDS.items():
            found[name] = cost([word.replace("ROOT", folder) for word in line.split()])
    print(json.dumps(found) if asked.json else "\n".join(f"{key:22} {value}" for key, value in found.items()))


def cost(words: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory in MiB of `bnlab` with these words."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "bnlab", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, words
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 1), "cpu": round(cpu, 1), "mib": round(usage.ru_maxrss / 1024)}


if __name__ == "__main__":
    main()
