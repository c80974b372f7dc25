"""JSON Schema of experiments and studies, for editors that complete and check YAML. No torch here.

It says what a file may have, not all that bnlab refuses: names of options depend on the choice of their group, and
plugins bring further names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnlab.config.places import available, keys
from bnlab.core.spec import GROUPS, RunSpec
from bnlab.core.study import Study
from bnlab.core.typed import json_schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def text(kind: str, dirs: Sequence[Path]) -> str:
    """The schema as the content of a file."""
    return json.dumps(schema(kind, dirs), indent=2, ensure_ascii=False) + "\n"


def schema(kind: str, dirs: Sequence[Path]) -> Schema:
    """Of an experiment or a study; names, defaults and meanings are those of the configs in `dirs`."""
    found = _experiment(dirs) if kind == "experiment" else _study(dirs)
    return {"$schema": DIALECT, "title": f"bnlab {kind}"} | found


def _study(dirs: Sequence[Path]) -> Schema:
    """As its class, with the file's name for its own, and the names of experiments and metrics."""
    from bnlab.analysis.metrics import METRICS

    found: Schema = _plain(json_schema(Study))
    found["required"] = ["base"]
    found["additionalProperties"] = False
    found["properties"]["base"] = _names(available("experiments", dirs), "the experiment that every run starts from")
    found["properties"]["ask"] = {"anyOf": [found["properties"]["ask"], {"type": "object"}]}  # one grid, or several
    for part in (found, found["$defs"]["Scale"]):
        part["properties"]["axes"] = {"type": "object", "properties": _dotted(dirs), "description": "the grid"}
    claim = found["$defs"]["Claim"]
    claim["additionalProperties"] = False
    claim["properties"]["metric"] = _names(METRICS.names(), "bnlab list metrics")
    for key in ("overrides", "where"):
        for part in (found, claim):
            if key in part["properties"]:
                part["properties"][key] = {"type": "object", "properties": _dotted(dirs)}
    return found


def _experiment(dirs: Sequence[Path]) -> Schema:
    """Every key is optional: what is not there comes from `run.yaml`. A group is a name, or its keys."""
    found: Schema = _plain(json_schema(RunSpec))
    meanings: dict[str, list[str]] = {}
    defaults: dict[str, Any] = {}
    for key in keys(dirs):
        meanings.setdefault(key.name, []).append(": ".join(filter(None, (key.of, key.meaning))))
        if not key.of:
            defaults[key.name] = key.default
    found.pop("required", None)
    for group in GROUPS:
        kind = found["$defs"][found["properties"][group]["$ref"].rpartition("/")[2]]
        kind.pop("required", None)
        kind["properties"].pop("options", None)
        known = kind["properties"]
        for name in (name.partition(".")[2] for name in meanings if name.startswith(f"{group}.")):
            if "." not in name:
                known.setdefault(name, {})
        for name, one in known.items():
            _describe(one, meanings.get(f"{group}.{name}"), defaults, f"{group}.{name}")
        names = _names(available(group, dirs), f"bnlab list {group}")
        found["properties"][group] = {"anyOf": [names, found["properties"][group]]}
    for name, one in found["properties"].items():
        _describe(one, meanings.get(name), defaults, name)
    found["properties"]["defaults"] = {"type": "array", "description": "Hydra's list of files that this one is laid on"}
    found["additionalProperties"] = False
    return found


def _describe(one: Schema, meaning: Sequence[str] | None, defaults: Mapping[str, Any], key: str) -> None:
    if meaning and "".join(meaning):
        one["description"] = "\n".join(filter(None, meaning))
    one.pop("default", None)
    if key in defaults:
        one["default"] = defaults[key]


def _names(names: Any, meaning: str) -> Schema:
    """A text; an editor offers these names, and others are allowed."""
    return {"anyOf": [{"enum": sorted(names)}, {"type": "string"}], "description": meaning}


def _dotted(dirs: Sequence[Path]) -> Schema:
    """Keys as `overrides` and `where` have them."""
    return {key.name: {"description": key.meaning} for key in keys(dirs) if not key.of}


def _plain(node: Any) -> Any:
    """Without the titles that pydantic makes from names, and with numbers that YAML reads as texts, such as 1e-3."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _plain(item) for key, item in node.items() if not (key == "title" and isinstance(item, str))}
    if found.get("type") == "number":
        limits = {key: found.pop(key) for key in list(found) if key != "description"}
        found["anyOf"] = [limits, {"type": "string", "pattern": r"^([+-]?[\d.]+[eE][+-]?\d+|.*\$\{.*)$"}]
    return found
