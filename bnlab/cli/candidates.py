"""What a parameter of a command can be, from the files that are there, for a shell that completes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Offer = tuple[str, str]
"""A word for the place of the one that was begun, and what it means."""

SHELLS = ("bash", "zsh")
MOST_FOLDERS = 200
"""Folders that are looked into, to see whether there are runs below one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A word that was begun as a value of the parameter `name` of a command; `given` are the values of arguments and
    options before it."""

    command: str
    name: str
    word: str
    given: Mapping[str, Sequence[str]]

    @property
    def config_dir(self) -> Path | None:
        given = self.given.get("config_dir")
        return Path(given[-1]).expanduser() if given else None


def candidates(begun: Begun) -> list[Offer]:
    """The words that begin so; none where the names of files do as well."""
    found = VALUES[begun.name](begun) if begun.name in VALUES else []
    return [(word, meaning) for word, meaning in found if word.startswith(begun.word)]


def sentence(text: str | None) -> str:
    """The first one, in one line.

    >>> sentence("Train one run, or go on\\nwith it. And more.")
    'Train one run, or go on with it'
    """
    return " ".join((text or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def has_runs(folder: Path) -> bool:
    """Whether there is a run in the folder or below, as far as is seen at once."""
    for count, (_, folders, files) in enumerate(os.walk(folder)):
        folders.sort()
        if "spec.yaml" in files:
            return True
        if count >= MOST_FOLDERS:
            return False
    return False


def _described(begun: Begun, *kinds: str) -> list[Offer]:
    from bnlab.config import available, config_dirs, description

    dirs = config_dirs(begun.config_dir)
    files = {name: file for kind in kinds for name, file in available(kind, dirs).items()}
    return [(name, sentence(description(file))) for name, file in sorted(files.items())]


def _configs(begun: Begun) -> list[Offer]:
    return _described(begun, "experiments", *(["studies"] if begun.command == "sweep" else []))


def _overrides(begun: Begun) -> list[Offer]:
    from bnlab.config import completing

    given = begun.given.get("overrides", [])
    if begun.command == "evaluate":
        from bnlab.config.questions import KEYS

        return completing.questions(begun.word, given, KEYS)
    config, several = begun.given.get("config", [None])[-1], begun.command == "sweep"
    return completing.overrides(begun.word, given, config=config, config_dir=begun.config_dir, several=several)


def _conditions(begun: Begun) -> list[Offer]:
    from bnlab.config import completing

    columns = [(f"{key}=", "") for key in _columns()]
    return columns + completing.overrides(begun.word, [], config=None, config_dir=None, several=True)


def _sort_keys(begun: Begun) -> list[Offer]:
    from bnlab.config import completing

    minus, word = ("-", begun.word[1:]) if begun.word.startswith("-") else ("", begun.word)
    keys = completing.overrides(word, [], config=None, config_dir=None, several=False)
    return [(f"{minus}{key.rstrip('=')}", "") for key in dict.fromkeys([*_columns(), *(key for key, _ in keys)])]


def _columns() -> list[str]:
    from bnlab.cli.runs import RunRow

    return [name for name in RunRow.__slots__ if name not in ("norm", "seed", "steps")]  # those are keys too


def _kinds(begun: Begun) -> list[Offer]:
    from bnlab.cli.list import KINDS

    return [(kind, "") for kind in KINDS]


def _any_folder(begun: Begun) -> list[Offer]:
    return [(f"{name}/", "") for name, _ in _folders(begun.word)]


def _runs(begun: Begun) -> list[Offer]:
    """Runs and folders of them; any folder where there are none, or where runs are to go. A run is a whole word, a
    folder may go on."""
    if begun.command in ("train", "sweep"):
        return _any_folder(begun)
    found = [(name, folder) for name, folder in _folders(begun.word) if has_runs(folder)]
    words = [(name if (folder / "spec.yaml").is_file() else f"{name}/", "") for name, folder in found]
    return words or _any_folder(begun)


def _folders(word: str) -> Iterator[tuple[str, Path]]:
    """Folders whose path begins so, as it is typed."""
    head, slash, tail = word.rpartition("/")
    above = Path(head + slash or ".").expanduser()
    for folder in sorted(above.iterdir()):
        hidden = folder.name.startswith(".") and not tail.startswith(".")
        if folder.name.startswith(tail) and not hidden and folder.is_dir():
            yield f"{head}{slash}{folder.name}", folder


VALUES: dict[str, Callable[[Begun], list[Offer]]] = {
    "config": _configs,
    "overrides": _overrides,
    "where": _conditions,
    "sort": _sort_keys,
    "runs": _runs,
    "config_dir": _any_folder,
    "origin": _any_folder,
    "kind": _kinds,
    "name": lambda begun: _described(begun, "data"),
    "shell": lambda begun: [(shell, "") for shell in SHELLS],
}
"""By the name of a parameter."""
