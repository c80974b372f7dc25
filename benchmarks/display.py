"""What the live display of `bnlab train` costs: the real loop with it on a terminal, against plain lines there.

    python benchmarks/display.py [--json] [--turns N]

Three of each train the same net with one thread in one process, in turns (turns.py) of about a second, so that the
display draws as often as it may; each writes to a pseudo-terminal of its own, of 100 by 30, which another process
reads. There are three because one loop is up to 3 % faster than another that does the same, for as long as the process
lives. A ratio is the median over rounds of what the three with the display took over what the three with plain lines
did: in seconds of wall time, and in CPU seconds of their threads, which other load on the machine affects less.
*Plain alone*: the least and the largest such ratio of one loop with plain lines to all three. *Inside*: the share of
its time that a loop spends in calls of the display, by wall time around them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from turns import Contestant, race

from bnlab import config
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.run import host
from bnlab.run.setup import assemble
from bnlab.run.train import train
from bnlab.terminal.live import LiveTable
from bnlab.terminal.progress import PlainLines, Progress, Record

Tick = Callable[[], None]
Seconds = Sequence[Sequence[float]]
"""By loop and round."""
EACH = 3
COLUMNS, LINES = 100, 30
STEPS, EVERY = 10**7, 10
BUDGET = 1.02
READER = "import os\ntry:\n    while os.read(0, 65536): pass\nexcept OSError: pass"
NETS = {
    "mlp_digits": ("mlp_digits", [], 1500),
    "20 layers": ("deep_mlp", ["model.depth=20", "probes=economy"], 400),
}
"""Experiment, overrides, steps of a turn."""


class Counted:
    """A file that counts the frames written to it, the characters in them, and the seconds of the writer."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.frames, self.signs = file, 0, 0
        self.inside_s, self.all_s = 0.0, 0.0
        self.cpu_s: list[float] = []
        self.encoding = file.encoding

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.frames, self.signs = self.frames + text.count("\x1b[?2026h"), self.signs + len(text)
        return self.file.write(text)

    def flush(self) -> None:
        self.file.flush()


def terminal() -> tuple[TextIO, subprocess.Popen[bytes]]:
    """The inner end of a pseudo-terminal, and the process that reads its outer end."""
    outside, inside = pty.openpty()
    reader = subprocess.Popen([sys.executable, "-c", READER], stdin=outside)
    os.close(outside)
    return open(inside, "w", encoding="utf-8"), reader


def spec_of(experiment: str, overrides: list[str]) -> RunSpec:
    """Enough steps that no plain line but the first falls into a turn; a measurement every `EVERY` steps."""
    points = [f"steps={STEPS}", f"probes.points={STEPS // EVERY}", "probes.eval_points=1"]
    return config.load(experiment, [*overrides, *points])


def loop(spec: RunSpec, steps: int, folder: Path, out: Counted, live: bool) -> Callable[[Tick], object]:
    """`bnlab train` with its display."""

    def body(tick: Tick) -> None:
        setup = assemble(spec)
        kind, sites = (LiveTable, [[site.name for site in setup.net.sites]]) if live else (PlainLines, [])
        progress: Progress = kind(spec.name, setup.steps, lambda: 0, out, *sites)  # type: ignore[arg-type]
        since = time.perf_counter()

        def listen(record: Record) -> None:
            start = time.perf_counter()
            progress.listen(record)
            out.inside_s += time.perf_counter() - start

        def stopped() -> None:
            nonlocal since
            start = time.perf_counter()
            progress.tick()
            end = time.perf_counter()
            out.inside_s += end - start
            out.all_s += end - since
            if progress.step % steps == 0:
                out.cpu_s.append(time.thread_time())
            tick()  # waits here for its next turn
            since = time.perf_counter()

        train(setup, RunFolder(folder), listen=listen, stopped=stopped)

    return body


def over(mine: Seconds, theirs: Seconds) -> float:
    """The median over rounds of the mean time of some loops over that of others."""
    rounds = zip(zip(*mine, strict=True), zip(*theirs, strict=True), strict=True)
    return statistics.median(statistics.fmean(some) / statistics.fmean(others) for some, others in rounds)


def contest(net: str, turns: int, folder: Path) -> dict[str, Any]:
    """One net with and without the display."""
    experiment, overrides, steps = NETS[net]
    spec = spec_of(experiment, overrides)
    files, readers = zip(*(terminal() for _ in range(2 * EACH)), strict=True)
    outs = [Counted(file) for file in files]
    contestants = [
        Contestant(str(index), loop(spec, steps, folder / str(index), out, live=index % 2 == 0))
        for index, out in enumerate(outs)
    ]
    race(contestants, turns=turns + 1, steps=steps)
    for file, reader in zip(files, readers, strict=True):
        file.close()
        reader.wait()
    clock = [contestant.slices for contestant in contestants]
    cpu = [[end - begin for begin, end in itertools.pairwise(out.cpu_s)][1:] for out in outs]
    alone = [over([one], cpu[1::2]) for one in cpu[1::2]]
    return {
        "net": net,
        "step_ms": 1e3 * statistics.median(itertools.chain(*clock[1::2])) / steps,
        "ratio": over(clock[::2], clock[1::2]),
        "cpu_ratio": over(cpu[::2], cpu[1::2]),
        "plain_alone": [min(alone), max(alone)],
        "inside": statistics.fmean(out.inside_s / out.all_s for out in outs[::2]),
        "frames_a_second": statistics.fmean(out.frames / out.all_s for out in outs[::2]),
        "signs_a_frame": outs[0].signs / outs[0].frames,
        "budget": BUDGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ |= {"COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
    host.prepare(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [contest(net, arguments.turns, Path(folder) / net) for net in NETS]
    machine = host.provenance("cpu", 1)
    if arguments.json:
        print(json.dumps({"rows": rows, "machine": {key: machine[key] for key in ("platform", "cores", "torch")}}))
        return
    table = Table(title=f"The live display, {COLUMNS}x{LINES}, one thread, torch {machine['torch']}")
    heads = ["net", "ms a step", "ratio", "CPU ratio", "plain alone", "inside"]
    for column in (*heads, "frames/s", "signs a frame", "budget"):
        table.add_column(column, justify="left" if column == "net" else "right")
    for row in rows:
        low, high = row["plain_alone"]
        figures = [f"{row['step_ms']:.2f}", f"{row['ratio']:.3f}", f"{row['cpu_ratio']:.3f}"]
        figures += [f"{low:.3f} to {high:.3f}", f"{100 * row['inside']:.2f} %"]
        figures += [f"{row['frames_a_second']:.1f}", f"{row['signs_a_frame']:.0f}"]
        table.add_row(row["net"], *figures, f"{row['budget']:.2f}")
    os.environ.pop("COLUMNS")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
