"""Tables, cards and the verdicts on claims, as they are printed."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnlab.core.text import age, file_size, number, printable, typed
from bnlab.terminal.signs import DRAWN, is_screen, put, say, signs_for

if TYPE_CHECKING:
    from bnlab.analysis.claims import Verdict
    from bnlab.report.ranking import Ranking

Record = Mapping[str, Any]
Cell = str | tuple[str, str]
"""A text, or a text and its style."""

STYLES = {
    "finished": "green",
    "running": "cyan",
    "diverged": "red",
    "failed": "bold red",
    "unreadable": "bold red",
    "interrupted": "yellow",
}
LOOKS = {
    "supported": ("+", "green"),
    "refuted": ("-", "red"),
    "inconclusive": ("~", "yellow"),
    "direction only": (">", "cyan"),
    "not tested": (".", "dim"),
}
"""Decision -> its ASCII sign and its style."""
WORD = max(len(decision) for decision in LOOKS)
ASCII_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
FEW = 3
"""Extra columns of a table of runs that are worth more than whole paths."""
UNLIMITED = 10_000
"""Width of a table in a pipe, where nothing is cut."""


def console(out: TextIO) -> Console:
    """Colours and the screen's width on a screen; elsewhere neither, so that nothing is cut in a pipe."""
    screen = is_screen(out)
    return Console(file=out, force_terminal=screen, width=None if screen else UNLIMITED, legacy_windows=False)


def show_runs(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None, more: Sequence[str] = ()) -> None:
    """One line per run, with the keys `more` as extra columns. On a narrow screen columns are left out: the age, the
    extra ones from the right, the step; then of the path its beginning, and all of it."""
    out = out or sys.stdout
    heads = ["status", "norm", "lr", "seed", *more, "step", "train loss", "test acc", "age", "run"]
    cells = [_run_cells(row) | {key: "-" if row[key] is None else _plain(row[key]) for key in more} for row in rows]
    for spare in ("", "age", "step", *reversed(more[FEW:]), "...", *reversed(more[:FEW]), "run"):
        if spare == "...":
            for cell in cells:
                cell["run"] = f"...{cell['run'].rpartition('/')[2][-11:]}"
        heads = [head for head in heads if head != spare]
        widths = [max(len(head), *(len(cell[head]) for cell in cells)) for head in heads]
        if sum(widths) + 2 * (len(widths) - 1) <= console(out).width:
            break
    texts = [key for key in more if any(isinstance(row[key], str | list) for row in rows)]
    right = {head for head in heads if head not in ("status", "norm", "run", *texts)}
    lines: list[list[Cell]] = [
        [(cell[head], _style(cell[head])) if head == "status" else cell[head] for head in heads] for cell in cells
    ]
    _show(out, lines, heads, right=right, folded=("run",))


def show_names(items: Sequence[Mapping[str, str]], out: TextIO | None = None) -> None:
    """Name and description."""
    _show(out, [[(item["name"], "bold"), item["description"]] for item in items])


def show_studies(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """Name, question, minutes, number of claims; verdicts and date of the last runs, where there are any."""
    out = out or sys.stdout
    lines: list[list[Cell]] = []
    for row in rows:
        verdicts = " ".join(f"{count} {sign}" for sign, count in (row["verdicts"] or {}).items())
        cells = ["" if row[key] is None else number(row[key]) for key in ("minutes", "claims")]
        question = row["title"] or re.split(r"(?<=[.?:]) ", row["description"])[0]
        lines.append([(row["name"], "bold"), question, *cells, encoded(verdicts, out), (row["last_run"] or "")[:10]])
    heads = ["study", "question", "min", "claims", "verdicts here", "last run here"]
    kept = [index for index in range(len(heads)) if index < 4 or any(line[index] for line in lines)]
    rows_ = [[line[index] for index in kept] for line in lines]
    _show(out, rows_, [heads[index] for index in kept], right={"min", "claims"}, folded={"question"})


def show_tallies(rows: Sequence[tuple[str, float | None, Mapping[str, int]]], out: TextIO | None = None) -> None:
    """Study, its minutes, and how many verdicts of each sign; the sum below."""
    out = out or sys.stdout
    signs = list(dict.fromkeys(sign for *_, counts in rows for sign in counts))
    total = {sign: sum(counts.get(sign, 0) for *_, counts in rows) for sign in signs}
    lines = [
        [name, "" if minutes is None else number(minutes), *(str(counts.get(sign, "")) for sign in signs)]
        for name, minutes, counts in [*rows, *([("all", None, total)] if signs else [])]
    ]
    _show(out, lines, ["study", "min", *(encoded(sign, out) for sign in signs)], right={"min"})


def show_hits(
    hits: Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]], out: TextIO | None = None, below: str = ""
) -> None:
    """A heading each, then its answers, those of each command above it, on a line that can be copied; a line `below`
    all."""
    out = out or sys.stdout
    width = console(out).width
    for heading, parts in hits:
        lines = folded_lines(heading, 4, width)
        for typed_, answers in parts:
            lines += [part for text in answers for part in folded_lines(f"    {encoded(text, out)}", 6, width)]
            lines.append(f"    {typed_}")
        for text in lines:
            say(text, out)
    for text in folded_lines(encoded(below, out), 4, width) if below else ():
        say(text, out)


def encoded(text: str, out: TextIO) -> str:
    """Signs of verdicts in ASCII, where the output cannot show them."""
    return text if signs_for(out.encoding) is DRAWN else text.translate({ord("✓"): "+", ord("✕"): "-", ord("–"): "."})


def show_ranking(ranking: Ranking, out: TextIO | None = None) -> None:
    """A row an arm, at its best learning rate, the best first; on a narrow screen without intervals and times, on a
    still narrower one without what the rest says too: the arm stays."""
    out = out or sys.stdout
    heads, lines = ranking.cells()
    score = heads[4]
    spare = [
        "",
        "parameters",
        "ms/step",
        "95 % train loss",
        "s/run",
        f"95 % {score}",
        "n",
        "lr",
        "better than",
        "train loss",
    ]
    gone: set[str] = set()
    for more in spare:
        gone |= {more} - {score}
        kept = [index for index, head in enumerate(heads) if head not in gone]
        widths = [max(len(heads[index]), *(len(line[index]) for line in lines)) for index in kept]
        if sum(widths) + 2 * (len(widths) - 1) <= console(out).width:
            break
    cells = [[line[index] for index in kept] for line in lines]
    _show(out, cells, [heads[index] for index in kept], right=set(heads) - {"arm"}, folded={"arm"})
    for note in ranking.notes:
        for text in folded_lines(f"! {note}", 2, console(out).width):
            say(text, out)


def show_table(heads: Sequence[str], lines: Sequence[Sequence[str]], out: TextIO | None = None) -> None:
    """Texts below their heads; columns of numbers stand right."""
    numbers = {
        head for index, head in enumerate(heads) if all(re.match(r"[+-]?[\d.]|-$", line[index]) for line in lines)
    }
    _show(out, lines, heads, right=numbers)


def show_cells(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """The cells of a grid: state, values of the axes, id."""
    keys = list(rows[0]["values"]) if rows else []
    heads = ["state", *(key.rpartition(".")[2] for key in keys), "id"]
    lines = [
        [(row["state"], _style(row["state"])), *(_plain(row["values"][key]) for key in keys), row["id"]] for row in rows
    ]
    _show(out, lines, heads, folded=())


def show_answers(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """What nets were evaluated with, and the values found."""
    heads = ["shift", "strength", "eval_bn", "batch", "test loss", "test acc", "step", "run"]
    lines: list[list[Cell]] = []
    for row in rows:
        values = [number(row["metrics"].get(name), 4) for name in ("test_loss", "test_accuracy")]
        setting = [row["shift"], number(row["shift_strength"], 6), row["eval_bn"], str(row["eval_batch_size"])]
        lines.append([*setting, *values, str(row["step"]), row["run"]])
    _show(out, lines, heads, right=set(heads) - {"shift", "eval_bn", "run"}, folded=("run",))


def show_failures(rows: Sequence[tuple[str, str, str]], out: TextIO | None = None) -> None:
    """Run, error and log of runs that failed."""
    _show(out, [[(run, "bold red"), " ".join(error.split()), log] for run, error, log in rows], ["run", "error", "log"])


def show_identities(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """Both sides of every identity, their error, and the tolerance."""
    heads = ["identity", "one side", "the other", "error", "tolerance", ""]
    lines = [
        [row["name"], row["left"], row["right"], f"{row['error']:.1e}", f"{row['tolerance']:.0e}", _holds(row["ok"])]
        for row in rows
    ]
    _show(out, lines, heads, right={"error", "tolerance"})


def show_plugin_checks(rows: Sequence[Mapping[str, Any]], out: TextIO | None = None) -> None:
    """Every check of a plugin's entries, and whether it holds."""
    _show(out, [[row["entry"], row["check"], _holds(row["ok"])] for row in rows], ["entry", "checked", ""])


def show_norms(lines: Sequence[Sequence[str]], out: TextIO | None = None) -> None:
    """By site and tensor of its norm: over channels the mean, sd, smallest and largest, and where it comes from."""
    keys = ("channels", "mean", "sd", "min", "max")
    _show(out, lines, ["site", "", *keys, ""], right=keys)


def show_card(card: Mapping[str, Any], out: TextIO | None = None) -> None:
    """Everything about one run."""
    spec = card["spec"]
    groups = ("model", "norm", "data", "optim", "probes")
    lines: list[tuple[str, Cell]] = [("run", card["run"]), ("status", (_status(card), _style(card["status"])))]
    lines += [(name, _pairs(card[name])) for name in ("diverged", "metrics", "timing") if card.get(name)]
    lines += [("" if at else "findings", finding["text"]) for at, finding in enumerate(card["findings"])]
    lines += [(group, _pairs(spec[group])) for group in groups if group in spec]
    rest = {key: value for key, value in spec.items() if key not in groups and not isinstance(value, Mapping)}
    origin = {key: value for key, value in card["provenance"].items() if value != {}}
    lines += [(name, _pairs(pairs)) for name, pairs in (("spec", rest), ("from", origin)) if pairs]
    lines.append(("files", ", ".join(f"{name} {file_size(size)}" for name, size in card["files"].items())))
    _show(out, [[(name, "bold"), cell] for name, cell in lines])


def _show(
    out: TextIO | None,
    lines: Sequence[Sequence[Cell]],
    heads: Sequence[str] = (),
    *,
    right: Iterable[str] = (),
    folded: Iterable[str] | None = None,
) -> None:
    """Print a table; without heads, of a name and a text. Columns are folded to the screen: all, or those named."""
    out = out or sys.stdout
    rule = box.SIMPLE_HEAD if signs_for(out.encoding) is DRAWN else ASCII_RULE
    table = Table(
        box=rule if heads else None,
        show_header=bool(heads),
        header_style="dim",
        # A gap of two: one blank of padding, and one for the line between columns.
        padding=(0, 1, 0, 0) if heads else (0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for head in heads:
        whole = folded is not None and head not in folded
        table.add_column(head, justify="right" if head in right else "left", no_wrap=whole, overflow="fold")
    if not heads:
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
    for line in lines:
        cells = ((cell, "") if isinstance(cell, str) else cell for cell in line)
        table.add_row(*(Text(printable(text), style) for text, style in cells))
    target = console(out)
    with target.capture() as captured:
        target.print(table)
    for text in captured.get().splitlines():
        put(text.rstrip(), out)  # without the blanks that fill the last column


def _style(state: str) -> str:
    return STYLES.get(state, "")


def _holds(ok: bool) -> Cell:
    return ("ok", "green") if ok else ("BROKEN", "bold red")


def _run_cells(row: Mapping[str, Any]) -> dict[str, str]:
    step, steps, seed = ("-" if row[key] is None else str(row[key]) for key in ("step", "steps", "seed"))
    return {
        "status": row["status"],
        "norm": row["norm"] or "-",
        "lr": number(row["lr"], 12),
        "seed": seed,
        "step": f"{step}/{steps}",
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
    """A value in a table: numbers with few digits, the items of a list between blanks."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "[]"
    return number(value, 6) if isinstance(value, float) else typed(value)


# -- verdicts --------------------------------------------------------------------------------------------------------


def show_verdicts(verdicts: Sequence[Verdict], out: TextIO | None = None) -> None:
    """Print of each verdict the sign, decision and claim; then effect, interval, n, p; then a line for each caution."""
    from bnlab.analysis.claims import SIGNS  # which imports numpy

    out = out or sys.stdout
    target = console(out)
    drawn = signs_for(out.encoding) is DRAWN
    for verdict in verdicts:
        ascii_sign, style = LOOKS[verdict.decision]
        sign = SIGNS[verdict.decision] if drawn else ascii_sign
        for index, line in enumerate(verdict_lines(verdict, sign, target.width)):
            text = Text(printable(line))
            if index == 0:
                text.stylize(style, 0, 2 + len(verdict.decision))
            with target.capture() as captured:
                target.print(text, soft_wrap=True, end="")
            put(captured.get(), out)


def verdict_lines(verdict: Verdict, sign: str, width: int) -> Iterator[str]:
    """The lines of one verdict, folded to `width`; on a narrow screen the numbers are less indented."""
    indent = 2 + WORD + 2 if width >= 60 else 2
    yield from folded_lines(f"{sign} {verdict.decision:<{WORD}}  {verdict.claim.text}", indent, width)
    for text in (_numbers(verdict), *(f"! {caution}" for caution in verdict.cautions)):
        yield from folded_lines(" " * indent + text, indent, width)


def _numbers(verdict: Verdict) -> str:
    """Effect, interval, n and p, as far as they are known; without an effect, the reason."""
    if verdict.effect is None:
        return verdict.why
    effect = f"{verdict.claim.compare} {number(verdict.effect)}"
    if verdict.interval is not None:
        effect += f" [{number(verdict.interval[0])}, {number(verdict.interval[1])}]"
    from bnlab.analysis.claims import allowed  # which imports numpy

    least = verdict.claim.smallest_effect
    effect += f" (no effect within {allowed(verdict.claim)})" if least is None else f" (matters from {number(least)})"
    p = [] if verdict.p is None else [f"p {number(verdict.p, 2)}"]
    return ", ".join([effect, f"n {verdict.n}", *p])


def folded_lines(text: str, indent: int, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False) or [text]
