"""The command that makes a run again, from what the run knows of itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from bnlab.core.study import Study
from bnlab.record.runs import Run


def line(run: Run, study: Study | None) -> str | None:
    """The `bnlab train` line: the experiment and the changes that were typed, or that the study has, with this run's
    own values in the place of axes. None where the run does not tell its experiment."""
    typed = [str(word) for word in run.provenance.get("argv", [])][1:]
    if study is not None and "train" not in typed[:1]:
        config: str | None = study.base
        changes = {key: _value(value) for key, value in study.overrides.items()}
        changes |= {key: _value(run.spec[key]) for key in study.axes if key in run.spec}
    else:
        config = _after(typed, "--config")
        changes = dict(word.split("=", 1) for word in typed if "=" in word and not word.startswith("-"))
        several = "sweep" in typed[:1]
        changes = {
            key: _value(run.spec[key]) if several and key in run.spec else value for key, value in changes.items()
        }
    if config is None:
        return None
    changes["name"] = name_of(run)
    return shlex.join(["bnlab", "train", "--config", config, *(f"{key}={value}" for key, value in changes.items())])


def name_of(run: Run) -> str:
    """The study or experiment: a run lies in NAME/norm/lr=.../seed=..."""
    return run.path.absolute().parents[2].name


def _after(words: list[str], flag: str) -> str | None:
    for word, following in zip_longest(words, words[1:]):
        if word == flag:
            return str(following) if following is not None else None
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _value(value: Any) -> str:
    """As it is typed.

    >>> [_value(x) for x in (0.1, 1e-05, True, None, [3, 4], "batch")]
    ['0.1', '1e-05', 'true', 'null', '[3,4]', 'batch']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
