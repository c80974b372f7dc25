"""What a run asks of a disk that many nodes share: files and bytes that stay, and files opened for writing, renamed and
removed a minute while it trains. Counted by an audit hook in the process that trains; reading is not counted.

    python benchmarks/disk.py [--seconds 60] [--nets 16] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bnlab import config
from bnlab.grids.run import Sweep
from bnlab.launch.inline import Inline

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.utime", "os.truncate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--nets", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    counts: Counter[str] = Counter()
    sys.addaudithook(lambda event, given: _count(counts, event, given))
    found = {f"{nets} at once": measured(counts, nets, asked.seconds) for nets in (1, asked.nets)}
    print(json.dumps(found) if asked.json else "\n".join(f"{key:12} {value}" for key, value in found.items()))


def _count(counts: Counter[str], event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR):
        counts["opened"] += 1
    elif event in EVENTS:
        counts[event.partition(".")[2]] += 1


def measured(counts: Counter[str], nets: int, seconds: float) -> dict[str, Any]:
    """Nets of `quickstart` that train at once for so long, and are then stopped."""
    words = ["norm=batch", "optim.lr=0.1", f"seed=range(0,{nets})", "steps=1000000", "launch.lockstep=auto"]
    _, cells = config.load_study("quickstart", words, None)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(cells, Path(folder))
        counts.clear()
        start = time.monotonic()
        sweep.run(Inline(), stopped=lambda: "the clock" if time.monotonic() - start > seconds else None)
        minutes = (time.monotonic() - start) / 60
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        each = {name: round(number / minutes / nets, 1) for name, number in sorted(counts.items())}
        return {"files": len(files) / nets, "kb": round(size / nets / 1e3), "a minute and net": each}


if __name__ == "__main__":
    main()
