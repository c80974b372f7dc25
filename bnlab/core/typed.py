"""Values checked against annotations, with pydantic, whose errors become `UsageError`s.

Strict: an integer may stand where a float is wanted, and nothing else is converted.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from bnlab.core.errors import UsageError, nearest


def check_tree(kind: type, tree: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass `kind` from nested mappings.

    Raises:
        UsageError: naming the first offending key by its dotted path.
    """
    try:
        # Through JSON, because pydantic's strict mode accepts lists for tuples and mappings for dataclasses only there.
        return _adapter(kind).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise _usage_error(error, tree, prefix) from None


def check_options(constructor: Callable[..., Any], options: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`options` against the keyword-only parameters of `constructor`.

    Raises:
        UsageError: an option that the constructor does not know, one it lacks, one of the wrong type, or one that its
            author gave none.
    """
    known = option_names(constructor)
    for name in options:
        if name not in known:
            raise UsageError(f"{prefix}.{name}", "no such option", options[name], nearest(name, known))
    for name in known:
        if name not in options:
            raise UsageError(f"{prefix}.{name}", "missing", remedy="Its YAML must give it a value.")
    untyped = [name for name in known if name not in _hints(constructor, prefix)]
    if untyped:
        raise UsageError(
            f"{prefix}.{untyped[0]}", "has no type", remedy="Annotate it in the constructor: `eps: float`."
        )
    try:
        checked = options_model(constructor).model_validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        raise _usage_error(error, options, prefix=f"{prefix}.") from None
    return {name: getattr(checked, name) for name in known}


def json_schema(kind: type) -> dict[str, Any]:
    """What `check_tree` takes, as JSON Schema."""
    return _adapter(kind).json_schema()


def words_of(kind: Any) -> list[str]:
    """The words that stand for values of a type, as they are typed: of a number there are none.

    >>> words_of(Literal["full"] | int), words_of(bool | None)
    (['full'], ['false', 'true', 'null'])
    """
    if get_origin(kind) is Annotated:
        return words_of(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if kind is bool or kind is type(None):
        return ["false", "true"] if kind is bool else ["null"]
    if get_origin(kind) in (list, tuple, dict):
        return []
    return [word for member in get_args(kind) for word in words_of(member)]


def option_defaults(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Those options that the constructor itself gives a value, as a user's own may; bnlab's defaults are in YAML."""
    return {option.name: option.default for option in _options(constructor) if option.default is not option.empty}


def option_names(constructor: Callable[..., Any]) -> list[str]:
    """The keyword-only parameters: what a YAML must set. Positional ones are what bnlab passes itself."""
    return [option.name for option in _options(constructor)]


def _options(constructor: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = inspect.signature(constructor).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _hints(constructor: Callable[..., Any], prefix: str) -> dict[str, Any]:
    """The types of its parameters.

    Raises:
        UsageError: an annotation that is not a name in its module.
    """
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UsageError(prefix, f"a type of its constructor is unknown: {error}") from None


@cache
def options_model(constructor: Callable[..., Any]) -> Any:
    """What `check_options` checks against. It takes 5 ms to make, once a process."""
    hints = _hints(constructor, "")
    fields: dict[str, Any] = {name: (hints[name], ...) for name in option_names(constructor)}
    config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    return create_model("Options", __config__=config, **fields)


def _usage_error(error: ValidationError, tree: Mapping[str, Any], prefix: str) -> UsageError:
    """The first offending key; where its type is a union, every alternative's complaint."""
    found = error.errors(include_url=False)
    path = _path(found[0]["loc"], tree)
    mine = [item for item in found if _path(item["loc"], tree) == path]
    problem = "must " + " or ".join(dict.fromkeys(_wanted(item) for item in mine))
    if mine[0]["type"] == "missing":
        return UsageError(prefix + ".".join(str(part) for part in found[0]["loc"]), "missing")
    value: Any = tree
    for part in path:
        value = value[part]
    choices = re.findall(r"'([^']*)'", problem)
    hint = nearest(value, choices) if isinstance(value, str) and choices else ""
    return UsageError(prefix + ".".join(path), problem, value, hint if hint.startswith("Did") else "")


def _path(loc: tuple[int | str, ...], tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The part of pydantic's location that names keys of `tree`; the rest names union members and list items."""
    path: list[str] = []
    node: Any = tree
    for part in loc:
        if not isinstance(node, Mapping) or (part not in node and path):
            break
        path.append(str(part))
        node = node.get(part)
    return tuple(path)


def _wanted(item: Any) -> str:
    """What the value must be, as it follows `must`."""
    bound = item.get("ctx", {})
    match item["type"]:
        case "greater_than":
            return f"be a number above {bound['gt']:g}"
        case "greater_than_equal":
            return f"be at least {bound['ge']:g}"
        case "less_than" if math.isinf(bound["lt"]):
            return "be finite"
        case "less_than":
            return f"be below {bound['lt']:g}"
        case "less_than_equal":
            return f"be at most {bound['le']:g}"
        case "too_short" if bound["min_length"] == 1:
            return "not be empty"
        case "too_short":
            return f"have at least {bound['min_length']} values"
        case "too_long":
            return f"have at most {bound['max_length']} values"
        case "none_required":
            return "be null"
        case "tuple_type" | "list_type":
            return "be a list"
        case _:
            told = str(item["msg"]).removeprefix("Input should be ").replace("a valid ", "a ")
            return f"be {told.replace('a integer', 'an integer')}"
