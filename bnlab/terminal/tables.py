"""Tables of runs and of names, and the card of one run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnlab.terminal.signs import DRAWN, age, is_screen, number, say, signs_for

STYLES = {
    "finished": "green",
    "running": "cyan",
    "diverged": "red",
    "failed": "bold red",
    "unreadable": "bold red",
    "interrupted": "yellow",
}
ASCII_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
WIDE = 10_000
"""Width of a table that no screen cuts."""


def console(out: TextIO) -> Console:
    """Colours and the screen's width on a screen; elsewhere neither, so that nothing is cut in a pipe."""
    screen = is_screen(out)
    return Console(
        file=out,
        force_terminal=screen,
        width=None if screen else WIDE,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def show_runs(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None, more: Sequence[str] = ()) -> None:
    """One line a run, with the keys `more` as columns of their own. On a narrow screen columns go that the path tells
    as well."""
    out = out or sys.stdout
    target = console(out)
    heads = ["status", "norm", "lr", "seed", "step", "train loss", "test acc", *more, "age", "run"]
    cells = [_cells(row) | {key: "-" if row[key] is None else _plain(row[key]) for key in more} for row in rows]
    for spare in ([], ["seed"], ["norm", "lr"], ["age"], ["step"]):
        heads = [head for head in heads if head not in spare]
        widths = [max(len(head), *(len(cell[head]) for cell in cells)) for head in heads]
        if sum(widths) + 2 * (len(widths) - 1) <= target.width:
            break
    table = _table(out)
    for head in heads:
        right = head in ("lr", "seed", "step", "train loss", "test acc", "age")
        right = right or (head in more and not any(isinstance(row[head], str | list) for row in rows))
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "run", overflow="fold")
    for cell in cells:
        table.add_row(
            *(Text(cell[head], style=STYLES.get(cell[head], "") if head == "status" else "") for head in heads)
        )
    _put(target, table, out)


def show_names(items: Sequence[Mapping[str, str]], out: TextIO | None = None) -> None:
    """Name and description, folded to the screen."""
    out = out or sys.stdout
    target = console(out)
    table = _table(out, heads=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for item in items:
        table.add_row(Text(item["name"]), Text(item["description"]))
    _put(target, table, out)


def show_cells(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """The cells of a grid: state, values of the axes, id."""
    out = out or sys.stdout
    table = _table(out)
    keys = list(rows[0]["values"]) if rows else []
    for head in ("state", *(key.rpartition(".")[2] for key in keys), "id"):
        table.add_column(head, no_wrap=True)
    for row in rows:
        values = [Text(_plain(row["values"][key])) for key in keys]
        table.add_row(Text(row["state"], style=STYLES.get(row["state"], "")), *values, Text(row["id"]))
    _put(console(out), table, out)


def show_answers(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """What nets were asked, and the figures of their answers."""
    out = out or sys.stdout
    table = _table(out)
    for head in ("shift", "strength", "eval_bn", "batch", "test loss", "test acc", "step", "run"):
        right = head not in ("shift", "eval_bn", "run")
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "run", overflow="fold")
    for row in rows:
        figures = [number(row["metrics"].get(name), 4) for name in ("test_loss", "test_accuracy")]
        asked = [row["shift"], number(row["shift_strength"], 6), row["eval_bn"], str(row["eval_batch_size"])]
        table.add_row(*(Text(cell) for cell in (*asked, *figures, str(row["step"]), row["run"])))
    _put(console(out), table, out)


def show_failures(rows: Sequence[Mapping[str, str]], out: TextIO | None = None) -> None:
    """Runs without a result: which, why, and where their log is."""
    out = out or sys.stdout
    table = _table(out)
    for head in ("run", "error", "log"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(Text(row["run"], style="bold red"), Text(" ".join(row["error"].split())), Text(row["log"]))
    _put(console(out), table, out)


def show_card(card: Mapping[str, Any], out: TextIO | None = None) -> None:
    """Everything about one run."""
    out = out or sys.stdout
    target = console(out)
    spec = card["spec"]
    groups = ("model", "norm", "data", "optim", "probes")
    table = _table(out, heads=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    table.add_row("run", Text(card["run"]))
    table.add_row("status", Text(_status(card), style=STYLES.get(card["status"], "")))
    for name in ("diverged", "metrics", "timing"):
        if card.get(name):
            table.add_row(name, Text(_pairs(card[name])))
    for group in groups:
        if group in spec:
            table.add_row(group, Text(_pairs(spec[group])))
    rest = {key: value for key, value in spec.items() if key not in groups and not isinstance(value, Mapping)}
    for name, pairs in (("spec", rest), ("from", card["provenance"])):
        if pairs:
            table.add_row(name, Text(_pairs(pairs)))
    table.add_row("files", Text(", ".join(f"{name} {_size(size)}" for name, size in card["files"].items())))
    _put(target, table, out)


def _put(target: Console, table: Table, out: TextIO) -> None:
    """Without the blanks that fill the last column."""
    with target.capture() as captured:
        target.print(table)
    for line in captured.get().splitlines():
        say(line.rstrip(), out)


def _table(out: TextIO, *, heads: bool = True) -> Table:
    rule = box.SIMPLE_HEAD if signs_for(out.encoding) is DRAWN else ASCII_RULE
    # One blank of padding and one that stands for the line between two columns: a gap of two.
    padding = (0, 1, 0, 0) if heads else (0, 2, 0, 0)
    return Table(
        box=rule if heads else None,
        show_header=heads,
        header_style="dim",
        padding=padding,
        pad_edge=False,
        show_edge=False,
    )


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    step, steps = row["step"], row["steps"]
    return {
        "status": row["status"],
        "norm": row["norm"] or "-",
        "lr": number(row["lr"], 12),
        "seed": "-" if row["seed"] is None else str(row["seed"]),
        "step": f"{'-' if step is None else step}/{'-' if steps is None else steps}",
        "train loss": number(row["train_loss"], 4),
        "test acc": number(row["test_accuracy"], 4),
        "age": age(row["age_s"]),
        "run": row["run"],
    }


def _status(card: Mapping[str, Any]) -> str:
    facts = [card["status"]]
    if "step" in card:
        facts.append(f"step {card['step']}/{card.get('steps', '?')}")
    if card.get("dead"):
        facts.append("no better than chance")
    if "error" in card:
        facts.append(str(card["error"]))
    return ", ".join([*facts, f"{age(card['age_s'])} ago"])


def _pairs(tree: Any) -> str:
    if not isinstance(tree, Mapping):
        return _plain(tree)
    return ", ".join(key if isinstance(value, Mapping) else f"{key} {_plain(value)}" for key, value in tree.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 6)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return " ".join(str(item) for item in value) if value else "[]"
    return str(value)


def _size(size: int) -> str:
    """In decimal units.

    >>> _size(999), _size(12_345), _size(3_000_000)
    ('999 B', '12 kB', '3 MB')
    """
    for unit, scale in (("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.0f} {unit}"
    return f"{size} B"
