"""Writes docs/reference/*.md from the code: `python docs/reference.py [FOLDER]`, or `make docs`.

The pages are a function of the code alone. tests/docs/test_reference.py writes them again and compares.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml

import bnlab.cli
from bnlab import DATA, METRICS, MODELS, NORMS, OPTIMIZERS, PROBES
from bnlab.cli import app
from bnlab.cli.names import INIT, names
from bnlab.config import description, packaged_dir, places, schema
from bnlab.core.registry import Entry, Registry
from bnlab.core.spec import GROUPS, RunSpec
from bnlab.core.text import typed
from bnlab.core.typed import option_defaults, option_names

HERE = Path(__file__).parent / "reference"
CONFIGS = packaged_dir()
NOTE = "*Written from the code by `make docs`; edits here are overwritten.*\n"


def page(title: str, *parts: str) -> str:
    return "\n".join([f"# {title}\n", NOTE, *parts]).rstrip() + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns that are empty in every row are left out."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    kept = [column for column in range(len(head)) if column == 0 or any(row[column] for row in rows)]
    lines = [
        [head[column] for column in kept],
        ["---"] * len(kept),
        *([row[column] for column in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def paragraphs(text: str | None) -> str:
    """A docstring as Markdown, less its examples and its list of errors."""
    parts = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(part for part in parts if not part.startswith((">>>", "Raises:"))) + "\n"


def kind(annotation: Any) -> str:
    """A type in words.

    >>> kind(Literal["full"] | int), kind(bool | None)
    ('full or an integer', 'true, false or null')
    """
    words = _kinds(annotation)
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _kinds(annotation: Any, bounds: str = "") -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(parts[0], _bounds(parts[1:]))
    if origin is Literal:
        return [str(word) for word in parts]
    if origin in (list, tuple):
        return [f"a list of {_plural(next(part for part in parts if part is not ...))}"]
    if origin is Union or origin is type(int | str):
        return [word for part in sorted(parts, key=lambda part: part is type(None)) for word in _kinds(part)]
    if annotation is bool:
        return ["true", "false"]
    plain = {int: "an integer", float: "a number", str: "text", type(None): "null"}
    return [f"{plain[annotation]}{bounds}" if annotation in plain else "keys and values"]


def _plural(annotation: Any) -> str:
    [word] = _kinds(annotation)
    return re.sub(r"^an? (\w+)", r"\1s", word)


def _bounds(facts: Iterable[Any]) -> str:
    """` from 1`, ` above 0, below 1`; infinite bounds are left out."""
    words = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}
    said = [
        f"{word} {getattr(fact, name):g}"
        for name, word in words.items()
        for fact in facts
        if hasattr(fact, name) and abs(getattr(fact, name)) < float("inf")
    ]
    return f" {', '.join(said)}" if said else ""


def comments(file: Path) -> dict[str, str]:
    """Key -> the comment behind it in a YAML, less a list of the words that its type gives anyway."""
    return {key: re.sub(r"^(\w+ \| )+\w+($|[:;,] )", "", text) for key, text in places.comments(file).items()}


def read(file: Path) -> dict[str, Any]:
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in tree.items() if key not in ("defaults", "name")}


# -- the command line ------------------------------------------------------------------------------


def cli() -> str:
    assert bnlab.cli.main  # importing it has registered the commands
    root: Any = typer.main.get_command(app)
    parts = ["Exit codes, completion, precision and devices: [the command line](../cli.md).\n"]
    for name, command in _commands(root, "bnlab"):
        parts += [f"## {name}\n", code_block(" ".join([name, *filter(None, map(_usage, command.params)), "[OPTIONS]"]))]
        parts += [paragraphs(command.help or command.callback.__doc__)]
        rows = [row for row in map(_option, command.params) if row]
        parts += [table(["option", "default", "meaning"], rows)] if rows else []
    return page("Commands", *parts)


def code_block(text: str) -> str:
    return f"```\n{text}\n```\n"


def _commands(group: Any, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        elif not command.hidden:
            yield f"{prefix} {name}", command


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        word = parameter.metavar or parameter.name.upper()
        return word if parameter.required or word.startswith("[") else f"[{word}]"
    return f"{parameter.opts[0]} {_value(parameter)}" if parameter.required else ""


def _value(parameter: Any) -> str:
    """The word for an option's value: `PATH`."""
    if getattr(parameter, "is_flag", False):
        return ""
    return parameter.metavar or {"Path": "PATH", "int": "INTEGER", "float": "NUMBER"}.get(_type_of(parameter), "TEXT")


def _type_of(parameter: Any) -> str:
    return str(getattr(parameter.type_descriptor.annotation, "__name__", ""))


def _option(parameter: Any) -> list[str] | None:
    text = (parameter.help or "").strip()
    text, _, said = text.partition("  [default: ")
    if parameter.param_type_name == "argument":
        return [code(parameter.metavar or parameter.name.upper()), "", text]
    if parameter.hidden:
        return None
    options = " ".join([*parameter.opts, *parameter.secondary_opts])
    flag, default = getattr(parameter, "is_flag", False), parameter.default
    shown = said.rstrip("]") or ("" if flag or default is None or default == () or parameter.required else str(default))
    return [code(f"{options} {_value(parameter)}".strip()), code(shown), text]


# -- config keys -----------------------------------------------------------------------------------


def config() -> str:
    defaults, said = read(CONFIGS / "run.yaml"), comments(CONFIGS / "run.yaml")
    parts = [
        "Every key of a run. `bnlab train --config NAME --show` prints them with the values that an experiment gives\n"
        "them; `key=value` behind the command sets one. The keys that one norm, model, data set, optimizer or probe\n"
        "adds to its group are in [norms, models, data, optimizers, probes](entries.md).\n",
        "## The run\n",
        _keys(RunSpec, "", defaults, said),
    ]
    for group, kind_ in GROUPS.items():
        file = CONFIGS / f"{places.SHARED[group]}.yaml"
        parts += [f"## {group}\n", paragraphs(kind_.__doc__), _keys(kind_, f"{group}.", read(file), comments(file))]
    return page("Config keys", *parts)


def _keys(spec: Any, prefix: str, defaults: Mapping[str, Any], said: Mapping[str, str]) -> str:
    hints = get_type_hints(spec, include_extras=True)
    rows = []
    for field in dataclasses.fields(spec):
        if field.name in GROUPS or field.name in ("options", "name"):
            continue
        default = code(typed(defaults[field.name])) if field.name in defaults else ""
        rows.append([code(prefix + field.name), kind(hints[field.name]), default, said.get(field.name, "")])
    return table(["key", "values", "default", "meaning"], rows)


# -- measurements, metrics, figures ----------------------------------------------------------------


def measurements() -> str:
    parts = [
        "The series that `journal.jsonl` has, by the probe that writes them; `bnlab list measurements` prints them.\n"
        "How measuring works, on what and in which mode: [measurements](../measurements.md).\n"
    ]
    rows = names("measurements", None)
    for probe in dict.fromkeys(row["probe"] for row in rows):
        parts.append(f"## {probe or 'Always'}\n")
        if probe:
            constructor = PROBES[probe].constructor
            parts.append(paragraphs(sys.modules[constructor.__module__].__doc__))
            parts.append(paragraphs(constructor.__doc__))
        else:
            parts.append("Written by the training loop, whatever the probes.\n")
        mine = [row for row in rows if row["probe"] == probe]
        parts.append(table(["measurement", "meaning"], [[code(row["name"]), row["description"]] for row in mine]))
    return page("Measurements", *parts)


def metrics() -> str:
    titles = {
        "run": "Of a run",
        "curve": "Of a curve",
        "arm": "Of an arm",
    }
    about = {
        "run": "One number a run. Claims compare it at `best_lr`, `matched_lr` or, with a course, `matched_loss`.\n",
        "curve": "One number of an arm's runs at one seed over the learning rates. Claims compare it at `curve`.\n",
        "arm": "One number a seed, made from all seeds of an arm of the metric that the option `of` names.\n",
    }
    parts = [
        "What the claims of a study may name; `bnlab list metrics` prints the same. [Claims](../claims.md) says how.\n"
    ]
    found = [METRICS[name] for name in METRICS.names()]
    for of, title in titles.items():
        rows = [
            [
                code(metric.name),
                metric.meaning + (f"; options: {', '.join(map(code, metric.options))}" if metric.options else ""),
                metric.unit,
                metric.better or "",
                "yes" if metric.course else "",
                metric.source,
            ]
            for metric in found
            if metric.of == of
        ]
        parts += [f"## {title}\n", about[of], table(["metric", "meaning", "unit", "better", "course", "source"], rows)]
    return page("Metrics", *parts)


def figures() -> str:
    rows = [[code(row["name"]), row["description"]] for row in names("figures", None)]
    about = (
        "The plots of a report, in its order, as `bnlab list figures` prints them. Each is an SVG, a PNG and a CSV in\n"
        "`figures/`.\n"
    )
    return page("Figures", about, table(["figure", "shows"], rows))


# -- entries ---------------------------------------------------------------------------------------


def entries() -> str:
    parts = [
        "What can be chosen in each group, with the options that it adds to the group's own keys\n"
        "([config keys](config.md)).\n"
    ]
    parts += ["## Experiments\n", "`bnlab train --config NAME`.\n", _listing("experiments")]
    parts += ["## Studies\n", "`bnlab sweep --config NAME`.\n", _listing("studies")]
    for title, registry in {
        "Norms": NORMS,
        "Models": MODELS,
        "Data sets": DATA,
        "Optimizers": OPTIMIZERS,
    }.items():
        parts.append(f"## {title}\n")
        parts += [
            _entry(registry, entry, CONFIGS / registry.group / f"{entry.name}.yaml") for entry in registry.entries()
        ]
    parts += ["## Probes\n", "`probes=PRESET` chooses several:\n", _presets()]
    parts += [_entry(PROBES, entry, CONFIGS / "probes/one" / f"{entry.name}.yaml") for entry in PROBES.entries()]
    return page("Norms, models, data, optimizers, probes", *parts)


def _listing(folder: str) -> str:
    files = sorted(file for file in (CONFIGS / folder).glob("*.yaml") if not file.stem.startswith("_"))
    return table(["name", "what it is"], [[code(file.stem), description(file)] for file in files])


def _entry(registry: Registry[Any], entry: Entry, file: Path) -> str:
    """One choice: its description, its traits, its options."""
    defaults = option_defaults(entry.constructor) | read(file)
    own = comments(file)
    group = f"{registry.group}.{entry.name}" if registry is PROBES else registry.group
    parts = [f"### {entry.name}\n", description(file) + "\n"]
    doc = "" if registry is PROBES else paragraphs(entry.constructor.__doc__).split("\n\n")[0]
    parts += [doc.rstrip() + "\n"] if doc.strip() else []
    if entry.traits:
        parts.append(f"Traits: {', '.join(code(trait) for trait in sorted(entry.traits))}.\n")
    hints = _hints(entry.constructor)
    keys = (["every"] if registry is PROBES else []) + option_names(entry.constructor)
    hints["every"] = hints.get("every", Annotated[int, Bound(ge=1)])
    rows = [[code(f"{group}.{key}"), kind(hints[key]), _default(defaults, key), own.get(key, "")] for key in keys]
    shared = [code(f"{registry.group}.{key}={typed(value)}") for key, value in defaults.items() if key not in keys]
    parts += [f"Sets {', '.join(shared)}.\n"] if shared else []
    return "\n".join([*parts, *([table(["option", "values", "default", "meaning"], rows)] if rows else [])])


@dataclasses.dataclass
class Bound:
    """A lower bound, as annotated_types have it."""

    ge: float


def _default(defaults: Mapping[str, Any], key: str) -> str:
    return code(typed(defaults[key])) if key in defaults else ""


def _hints(constructor: Callable[..., Any]) -> dict[str, Any]:
    function: Any = constructor.__init__ if inspect.isclass(constructor) else constructor
    return get_type_hints(function, include_extras=True)


def _presets() -> str:
    rows = []
    for file in sorted((CONFIGS / "probes").glob("[!_]*.yaml")):
        chosen = _chosen(file)
        said = [
            f"`{name}` ({options['every']})"
            for name, options in sorted(chosen.items(), key=lambda item: item[1]["every"])
        ]
        rows.append([code(file.stem), description(file), ", ".join(said)])
    return table(["preset", "what it is", "probes (due at every n-th measured step)"], rows)


def _chosen(file: Path) -> dict[str, dict[str, Any]]:
    """Probe -> options of a preset."""
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for item in tree.pop("defaults"):
        if "@" in item:
            found[item.partition("@")[2]] = read(CONFIGS / "probes" / f"{item.partition('@')[0]}.yaml")
        elif not item.startswith("_"):
            found |= _chosen(CONFIGS / "probes" / f"{item}.yaml")
    for name, options in tree.items():
        found[name] = found[name] | options
    return found


PAGES: dict[str, Callable[[], str]] = {
    "cli": cli,
    "config": config,
    "measurements": measurements,
    "metrics": metrics,
    "figures": figures,
    "entries": entries,
}


def write(folder: Path = HERE, schemas: Path = CONFIGS / "schema") -> None:
    """The pages, and the schemas that the first lines of configs name."""
    pages = {folder / f"{name}.md": made() for name, made in PAGES.items()}
    for file, text in (pages | {schemas / f"{kind}.json": schema.text(kind, [CONFIGS]) for kind in INIT}).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:3]))
