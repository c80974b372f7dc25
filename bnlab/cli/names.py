"""`bnlab list`, `init`, `ask` and `data fetch`: the names that configs and claims may use, a config to begin with,
answers to a question, and files of data sets."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bnlab.cli import INTERRUPTED, RUNS, ConfigDir, Json, Plain, RunsDir, app, words_out, writing
from bnlab.core.errors import UsageError, nearest, refuse_path
from bnlab.core.text import command, typed
from bnlab.terminal.signs import complain, print_json, say

Rows = list[dict[str, str]]
data = typer.Typer(help="Data sets that do not come with bnlab.", no_args_is_help=True)


def _metrics() -> Rows:
    from bnlab.analysis.metrics import table

    return table()


def _measurements() -> Rows:
    from bnlab.analysis.metrics import measurements
    from bnlab.core.registry import load_plugins

    load_plugins([])
    return [{"name": name, "description": text, "probe": probe} for name, (text, probe) in measurements().items()]


def _figures() -> Rows:
    from bnlab.report.figures import in_order

    found = [*in_order("verdicts"), *in_order("study"), *in_order()]
    return [{"name": figure.name, "description": figure.subject} for figure in found]


KINDS: dict[str, str | Callable[[], Rows]] = {
    "configs": "experiments",
    "experiments": "experiments",
    "studies": "studies",
    "norms": "norm",
    "models": "model",
    "data": "data",
    "optim": "optim",
    "probes": "probes",
    "keys": "",
    "measurements": _measurements,
    "metrics": _metrics,
    "figures": _figures,
}
"""What `bnlab list` takes: the folder of configs that a kind stands for, or what lists it."""

RENAMED = {
    "metrics": "what a journal has is listed by: bnlab list measurements",
    "figures": "what a claim may name is listed by: bnlab list metrics",
}
"""Kinds that once had another meaning, and where that is now (docs/decisions/018-one-house.md)."""


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")],
    config_dir: ConfigDir = None,
    plugin: Annotated[str | None, typer.Option(metavar="FILE", help="List what your own file registers too.")] = None,
    runs: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """List the names of one kind, with a line on each.

    keys: what can be set behind a command, with defaults. measurements: the series that probes and the loop write to a
    journal. metrics: what the claims of a study may name. figures: the plots of a report. studies: their questions,
    minutes on two cores, claims, and the verdicts of the last report below --runs.
    """
    found = names(kind, config_dir, plugin)
    if kind == "studies":
        listed = [_study_row(row, config_dir, runs) for row in found]
        if as_json:
            print_json({kind: listed})
        else:
            from bnlab.terminal.tables import show_studies

            show_studies(listed)
            if not any(row["last_run"] for row in listed):
                say(f"none of them has run below {runs}; to begin: bnlab sweep --config quickstart")
    elif as_json:
        print_json({kind: found})
    elif found:
        from bnlab.terminal.tables import show_names

        show_names(found)
        if kind in RENAMED:
            complain(RENAMED[kind])
    else:
        say(f"no {kind}")


INIT = {"experiment": ("bnlab", "train", "--config"), "study": ("bnlab", "sweep", "--dry-run", "--config")}
"""What `bnlab init` writes, and what to type then, before its name."""


@app.command()
def init(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(INIT)}.")],
    name: Annotated[str, typer.Argument(help="The name of the file, and of the folder of its runs.")],
    config_dir: ConfigDir = None,
) -> None:
    """Write the YAML of an experiment or a study of your own, with comments, below ./configs. It runs as it is."""
    if kind not in INIT:
        raise UsageError("KIND", "nothing of this kind", kind, nearest(kind, INIT))
    refuse_path("NAME", name)
    mine = config_dir or Path("configs")
    file = mine / {"experiment": "experiments", "study": "studies"}[kind] / f"{name}.yaml"
    text = (Path(__file__).parent / f"init_{kind}.yaml.txt").read_text(encoding="utf-8")
    if file.exists():
        raise UsageError("NAME", "is there already", str(file), "Give another name, or edit it.")
    with writing(file, "NAME"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8") as written:
            written.write(text.replace("NAME", name))
    say(f"written  {file}")
    say(f"written  {_write_schema(kind, mine)}, for editors")
    say(f"then     {command(*INIT[kind], name, config_dir=config_dir)}")


def _write_schema(kind: str, mine: Path) -> Path:
    """The schema that the first line of a YAML in `mine` names, with the names that are there now."""
    from bnlab.config import config_dirs, schema

    file = mine / "schema" / f"{kind}.json"
    with writing(file, "NAME"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(schema.text(kind, config_dirs(mine)), encoding="utf-8")
    return file


@app.command("schema")
def schema_command(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(INIT)}.")], config_dir: ConfigDir = None
) -> None:
    """Print the JSON Schema of an experiment or a study, for an editor that completes and checks YAML."""
    if kind not in INIT:
        raise UsageError("KIND", "nothing of this kind", kind, nearest(kind, INIT))
    from bnlab.config import config_dirs, schema

    say(schema.text(kind, config_dirs(config_dir)).rstrip())


def names(kind: str, config_dir: Path | None, plugin: str | None = None) -> Rows:
    """Name and description of everything of one kind, with what a plugin registers.

    Raises:
        UsageError: an unknown kind, or a plugin that cannot be loaded.
    """
    if kind not in KINDS:
        raise UsageError("KIND", "nothing of this kind", kind, nearest(kind, KINDS))
    from bnlab.core.registry import load_plugins

    if kind == "keys":
        return _keys(config_dir)
    brought = load_plugins([plugin]) if plugin else []
    source = KINDS[kind]
    if not isinstance(source, str):
        return source()
    from bnlab.config import available, config_dirs, description

    dirs = config_dirs(config_dir)
    found = [(name, description(file)) for name, file in available(source, dirs).items()]
    if kind == "probes":
        single = available("probes/one", dirs).items()
        found += [(name, f"{description(file)} `probes=NAME` adds it to economy.") for name, file in single]
    listed = {name for name, _ in found}
    for registry, name in brought:
        if registry.group == source and name not in listed:
            lines = (inspect.getdoc(registry[name].constructor) or "").splitlines()
            found.append((name, lines[0] if lines else f"From {plugin}."))
    return [{"name": name, "description": text} for name, text in found]


def _keys(config_dir: Path | None) -> Rows:
    """Every key of a run, and what it is if it is not set."""
    from bnlab.config import config_dirs, keys

    rows = []
    for key in keys(config_dirs(config_dir)):
        said = ": ".join(filter(None, (key.of, key.meaning)))
        rows.append({"name": f"{key.name}={typed(key.default)}", "description": said})
    return rows


def _study_row(row: Mapping[str, str], config_dir: Path | None, runs: Path) -> dict[str, Any]:
    """What is known of a study, and of its runs. A file that is no study keeps its description."""
    from bnlab.analysis.load import VERDICTS_FILE
    from bnlab.config import config_dirs
    from bnlab.config.statements import tally
    from bnlab.config.studies import find

    known: dict[str, Any] = {**row, "title": "", "minutes": None, "claims": None, "verdicts": None, "last_run": None}
    with contextlib.suppress(UsageError):
        study = find(row["name"], config_dirs(config_dir))
        known |= {"title": study.title, "minutes": study.minutes, "claims": len(study.claims)}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        file = runs / row["name"] / VERDICTS_FILE
        known["verdicts"] = tally(json.loads(file.read_text(encoding="utf-8"))["claims"])
    ended = [file.stat().st_mtime for file in (runs / row["name"]).glob("*/*/*/status.json")]
    if ended:
        known["last_run"] = datetime.fromtimestamp(max(ended)).isoformat(" ", "minutes")
    return known


@app.command()
def ask(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="Such as: learning rate.")],
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> None:
    """Find statements about batch norm, studies and metrics by words.

    Prints the five that fit best, each with the verdicts that come with bnlab and a command that shows it; the first
    with every claim that bears on it.
    """
    from bnlab.analysis.metrics import table
    from bnlab.config import config_dirs, search, statements

    of = statements.studies(config_dirs(config_dir))
    hits = search.search(" ".join(words), search.everything(of, statements.verdicts(), table()))
    if not hits:
        remedy = "Try other words, or see: bnlab list studies"
        raise UsageError("WORDS", "no statement, study or metric has them", " ".join(words), remedy)
    if as_json:
        keys = ("kind", "name", "text", "answer", "command")
        claims = [[claim for _, lines in hit.parts for claim in lines] for hit in hits]
        rows = [{key: getattr(hit, key) for key in keys} for hit in hits]
        print_json({"hits": [row | {"claims": of_hit} for row, of_hit in zip(rows, claims, strict=True)]})
    else:
        from bnlab.terminal.tables import show_hits

        best, *others = hits
        parts = [best.parts, *(((hit.command, (hit.answer,) * bool(hit.answer)),) for hit in others)]
        headed = [(f"{hit.name}: {hit.text}", some) for hit, some in zip(hits, parts, strict=True)]
        show_hits(headed, below="; ".join(f"{sign} {meaning}" for sign, meaning in statements.SIGNS.items()))


@data.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="The data set; `bnlab list data` lists them.")],
    origin: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Copy files from this folder; download nothing.")
    ] = None,
    as_json: Json = False,
    plain: Plain = False,
) -> None:
    """Download a data set and check it, or copy it from a folder."""
    from bnlab.core.registry import DATA
    from bnlab.files import sources
    from bnlab.terminal.progress import Bars

    DATA.entry(name)  # importing it registers its source
    source = sources.SOURCES.get(name)
    if source is None:
        raise UsageError(f"data={name}", "has no files to fetch", remedy="It comes with bnlab: use it as it is.")
    if origin is not None and not origin.is_dir():
        raise UsageError("--from", "no such directory", str(origin))
    try:
        with Bars(words_out(as_json), plain=plain or as_json, of_bytes=True) as report:
            fetched = sources.fetch(source, report, origin)
    except KeyboardInterrupt:
        complain("interrupted; nothing is left half-written")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        print_json({"data": name, "folder": str(fetched.folder), "how": fetched.how})
    else:
        done: dict[str, Any] = {"present": "already there", "copied": "copied", "downloaded": "downloaded"}
        say(f"{name}: {done[fetched.how]} and checked, in {fetched.folder}")
