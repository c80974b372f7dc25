"""What the TensorBoard view costs: to write it, and to open many runs of it.

    python benchmarks/board.py [--json] [--rounds N] [--runs 10,100,1000] [--full 100] [--no-load]

Writing: the board, tensorboard's own EventFileWriter with all scalars of a record in one event, and torch's
SummaryWriter with a call for each, write the same records in turn, in one process; seconds of the processor, of all its
threads, medians over rounds.

Opening: folders of synthetic runs that have ended (those of report.py: an 11-site net under `probes=economy`, 200
points), whose event files are rewritten from their journals; then `bnlab view`'s server on them, until it serves the
results of all runs. Peak memory is the sum over the server's processes. `card`: the loss of all runs, as the page
asks for it.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import statistics
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import SITES, _record, make
from rich.console import Console
from rich.table import Table
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

from bnlab import config
from bnlab.board.run import Board, Extent, rebuild
from bnlab.board.serve import update_events
from bnlab.board.serve.server import Server, command
from bnlab.board.tags import LIGHT, tags
from bnlab.board.thin import Template
from bnlab.record.folder import find_runs
from bnlab.record.journal import Record
from bnlab.run import host

NAMES = [f"L{site:02d}_fc" for site in range(SITES)]
SLOW = "torch, SummaryWriter"


def records(count: int) -> list[Record]:
    """The records of a run with `count` points, without histograms."""
    spec, rng = config.load("deep_mlp", []), np.random.default_rng(0)
    return [_record(5 * point, point, spec, rng, 5 * count, "economy") for point in range(count)]


def by_board(profile: Any) -> Callable[[Path, Sequence[Record]], None]:
    def write(folder: Path, records: Sequence[Record]) -> None:
        extent = Extent(records=len(records), steps=records[-1]["step"])
        board = Board(folder, NAMES, extent=extent, profile=profile)
        board.rewrite(records)
        board.end({}, records, 0)

    return write


def by_tensorboard(folder: Path, records: Sequence[Record]) -> None:
    """The fastest way with tensorboard's own writer."""
    writer = EventFileWriter(str(folder))
    for step, wall_s, values in scalars(records):
        message = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(step=step, wall_time=wall_s, summary=message))
    writer.close()


def by_torch(folder: Path, records: Sequence[Record]) -> None:
    """The usual way."""
    writer = SummaryWriter(str(folder))
    for step, wall_s, values in scalars(records):
        for tag, value in values.items():
            writer.add_scalar(tag, value, step, wall_s)
    writer.close()


def scalars(records: Sequence[Record]) -> list[tuple[int, float, dict[str, float]]]:
    """What the board shows, for writers that take names and numbers; computed outside their time."""
    if id(records) not in _SCALARS:
        found = []
        for record in records:
            template = Template(tags(record, NAMES), SITES)
            values = dict(zip(template.tags, template.values(record).tolist(), strict=True))
            found.append((record["step"], record["wall_s"], values))
        _SCALARS[id(records)] = found
    return _SCALARS[id(records)]


_SCALARS: dict[int, list[tuple[int, float, dict[str, float]]]] = {}


def writing(rounds: int) -> list[dict[str, Any]]:
    short, long = records(200), records(2000)
    contestants = {
        "bnlab, full": (by_board("full"), short),
        "bnlab, light": (by_board("light"), short),
        "tensorboard, EventFileWriter": (by_tensorboard, short),
        SLOW: (by_torch, short),
        "bnlab, full, 2,000 points": (by_board("full"), long),
        "tensorboard, EventFileWriter, 2,000 points": (by_tensorboard, long),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    size: dict[str, int] = {}
    for these in (short, long):
        scalars(these)
    for _ in range(rounds):
        for name, (write, these) in contestants.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                write(Path(folder), these)
                seconds[name].append(time.process_time() - start)
                size[name] = sum(file.stat().st_size for file in Path(folder).iterdir())
    rows = []
    for name, (_, these) in contestants.items():
        shown = set(LIGHT) if name == "bnlab, light" else {tag for _, _, values in scalars(these) for tag in values}
        count = sum(len(shown & values.keys()) for _, _, values in scalars(these))
        middle = statistics.median(seconds[name])
        rows.append(
            {
                "writer": name,
                "scalars": count,
                "record_us": middle / len(these) * 1e6,
                "per_s": count / middle,
                "bytes": size[name],
            }
        )
    return rows


def opening(counts: Sequence[int], full: int) -> list[dict[str, Any]]:
    rows = []
    for runs, profile in [*((count, "light") for count in counts), *([(full, "full")] if full else [])]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "bench"
            make(root, runs, 200, "economy")
            start = time.perf_counter()
            for run in find_runs(root):
                rebuild(run, profile)  # type: ignore[arg-type]
            wrote_s = time.perf_counter() - start
            start = time.perf_counter()
            update_events(root, full=profile == "full", say=print)  # nothing to do, nothing to print
            looked_s = time.perf_counter() - start
            size = sum(file.stat().st_size for file in root.rglob("*tfevents*"))
            for file in root.rglob("journal.jsonl"):
                file.unlink()
            found = {"runs": runs, "profile": profile, "write_s": wrote_s, "look_s": looked_s, "mb": size / 1e6}
            rows.append(found | served(root, runs))
            shutil.rmtree(root)
    return rows


def served(root: Path, runs: int) -> dict[str, float]:
    """Seconds until the server answers, and until it serves everything; its memory then; seconds for one card."""
    start = time.perf_counter()
    with Server(command(root, port=0, bind_all=False, runs=runs)) as server:
        base = server.address()
        up_s = time.perf_counter() - start
        wait = 0.05
        while sum("9_result/diverged" in of for of in _get(base, "data/plugin/scalars/tags").values()) < runs:
            time.sleep(wait)
            wait = min(1.0, 1.5 * wait)  # the request itself costs the server time
        all_s = time.perf_counter() - start
        start = time.perf_counter()
        request = urllib.parse.urlencode(
            {"requests": json.dumps([{"plugin": "scalars", "tag": "1_progress/train_loss"}])}
        )
        [card] = _get(base, "data/plugin/timeseries/timeSeries", request.encode())
        card_s = time.perf_counter() - start
        assert len(card["runToSeries"]) == runs
        memory = sum(_peak_kib(pid) for pid in _below(server._child.pid)) / 1024
    return {"up_s": up_s, "all_s": all_s, "card_s": card_s, "peak_mib": memory}


def _get(base: str, path: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(f"{base.rstrip('/')}/{path}", body, timeout=120) as answer:
        return json.loads(answer.read())


def _below(pid: int) -> list[int]:
    """A process and all its descendants, from Linux's /proc."""
    children = [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
    return [pid, *(below for child in children for below in _below(child))]


def _peak_kib(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", default="10,100,1000", help="of how many light runs")
    parser.add_argument("--full", type=int, default=100, help="of how many full runs; 0: none")
    parser.add_argument("--no-load", action="store_true", help="writing only")
    asked = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    host.prepare(1)
    written = writing(asked.rounds)
    opened = [] if asked.no_load else opening([int(count) for count in asked.runs.split(",")], asked.full)
    if asked.json:
        print(json.dumps({"writing": written, "opening": opened, "machine": host.provenance("cpu", 1)["platform"]}))
        return
    console = Console(width=120)
    table = Table(title=f"Writing the records of one run, {platform.machine()}")
    for column in ("writer", "scalars", "us a record", "scalars a second", "KB"):
        table.add_column(column, justify="left" if column == "writer" else "right")
    for row in written:
        numbers = (f"{row['record_us']:.0f}", f"{row['per_s']:,.0f}", f"{row['bytes'] / 1e3:,.0f}")
        table.add_row(row["writer"], f"{row['scalars']:,}", *numbers)
    console.print(table)
    table = Table(title="Opening many runs in TensorBoard")
    names = (
        "runs",
        "profile",
        "MB",
        "written in s",
        "checked in s",
        "answers after s",
        "all served after s",
        "card s",
    )
    for column in (*names, "peak MiB"):
        table.add_column(column, justify="right")
    for row in opened:
        seconds = [f"{row[key]:.2f}" for key in ("write_s", "look_s", "up_s", "all_s", "card_s")]
        table.add_row(str(row["runs"]), row["profile"], f"{row['mb']:.1f}", *seconds, f"{row['peak_mib']:.0f}")
    if opened:
        console.print(table)


if __name__ == "__main__":
    main()
