"""What readers rely on in the small files of a run: checked once, where they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnlab.core.typed import check_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """What readers rely on in a line of answers.jsonl."""

    metrics: Mapping[str, float | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusShape(AnswerShape):
    """What readers rely on in status.json."""

    status: Literal["running", "finished", "diverged", "failed", "interrupted"]
    step: int | None = None
    steps: int | None = None
    timing: Mapping[str, float | None] | None = None
    dead: bool | None = None
    error: str | None = None
    diverged: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    name: str | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Provenance:
    plugins: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    axes: tuple[str, ...] | None = None
    titles: Mapping[str, str] | None = None
    claims: Mapping[str, str] | None = None
    classes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecShape:
    """What readers rely on in spec.yaml."""

    name: str | None = None
    seed: int | None = None
    steps: int | None = None
    plugins: tuple[str, ...] = ()
    model: _Named = _Named()
    norm: _Named = _Named()
    data: _Named = _Named()
    optim: _Named = _Named()
    provenance: _Provenance | None = None


def read_tree(file: Path, read: Callable[[bytes], Any], shape: type) -> dict[str, Any]:
    """The keys and values in a file; empty if there is no such file.

    Raises:
        ValueError: in one line, why it cannot be read, or which key is wrong.
    """
    try:
        tree = read(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from None
    if not isinstance(tree, dict):
        raise ValueError("it is empty" if tree is None else f"has {type(tree).__name__} in place of keys")
    try:
        check_tree(shape, tree)
    except ValueError as error:
        raise ValueError(" ".join(str(error).split()).rstrip(".")) from None
    return tree
