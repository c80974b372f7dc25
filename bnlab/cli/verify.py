"""What `bnlab verify` shows: each identity as it is checked, and whether all hold."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from bnlab.terminal.signs import print_json, say
from bnlab.terminal.tables import console

HOLDS, BROKEN = 0, 3


def show(as_json: bool) -> int:
    """Check every identity; the exit code."""
    from bnlab.run import host
    from bnlab.verify import identities

    host.prepare(1)
    start = time.perf_counter()
    checked = [
        {
            "name": identity.name,
            "left": identity.left,
            "right": identity.right,
            "error": identity.error,
            "tolerance": identity.tolerance,
            "ok": identity.ok,
        }
        for identity in identities()
    ]
    broken = [row for row in checked if not row["ok"]]
    if as_json:
        print_json({"identities": checked})
    else:
        say_table(checked)
        count = f"{len(checked) - len(broken)} of {len(checked)} identities hold"
        say(f"{count}, {time.perf_counter() - start:.1f} s" + "".join(f"\nbroken: {row['name']}" for row in broken))
    return BROKEN if broken else HOLDS


def say_table(rows: Iterable[Mapping[str, Any]]) -> None:
    """Both sides of every identity, how far apart they are, and how far they may be."""
    table = Table(box=None, pad_edge=False)
    for head in ("identity", "one side", "the other", "error", "tolerance", ""):
        table.add_column(head, justify="right" if head in ("error", "tolerance") else "left", overflow="fold")
    for row in rows:
        sign = Text("ok", style="green") if row["ok"] else Text("BROKEN", style="bold red")
        error, tolerance = f"{row['error']:.1e}", f"{row['tolerance']:.0e}"
        table.add_row(Text(row["name"]), Text(row["left"]), Text(row["right"]), error, tolerance, sign)
    console(sys.stdout).print(table)
