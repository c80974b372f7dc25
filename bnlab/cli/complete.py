"""`bnlab completion`: the script of a shell, and what can follow on a line that is being typed. Typer's own scripts are
not used: bash splits words at `=`, and these complete `norm=ba`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bnlab.cli import app
from bnlab.core.errors import UsageError, nearest
from bnlab.terminal.signs import say

Offer = tuple[str, str]
"""A whole word in place of the one that was begun, and what it means."""

MOST_FOLDERS = 200
"""Folders that are searched for runs below one."""

SHELLS = ("bash", "zsh")


@app.command()
def completion(shell: Annotated[str, typer.Argument(help="bash or zsh.")]) -> None:
    """Print the completion script of a shell.

    It completes commands, configs, keys, values and folders of runs.

    In ~/.bashrc: eval "$(bnlab completion bash)"

    In ~/.zshrc, after compinit: eval "$(bnlab completion zsh)"
    """
    say(script(shell).rstrip("\n"))


def script(shell: str) -> str:
    """What a shell reads to complete.

    Raises:
        UsageError: an unknown shell.
    """
    if shell not in SHELLS:
        raise UsageError("SHELL", "no completion for it", shell, nearest(shell, SHELLS))
    return Path(__file__).with_name(f"completion.{shell}").read_text(encoding="utf-8")


@app.command("complete-line", hidden=True)
def complete_line(line: str, breaks: Annotated[str, typer.Argument()] = "") -> None:
    """Print the words that can end LINE, one a line. With BREAKS, bash replaces only what follows the last of these
    characters and needs it quoted; without, the meaning of a word follows it after a tab."""
    try:
        begun, found = completed(typer.main.get_command(app), line)
    except Exception:  # a message would be written into the line that is being typed
        return
    kept = max((index + 1 for index, sign in enumerate(begun) if sign in breaks and not sign.isspace()), default=0)
    for word, meaning in found:
        quoted = re.sub(r"([^\w@%+=:,./~\[\]-])", r"\\\1", word[kept:])
        say(quoted if breaks else f"{word}\t{meaning}" if meaning else word)


def completed(tree: Any, line: str) -> tuple[str, list[Offer]]:
    """The last word of `line`, empty after a blank, and the words that can replace it; `tree` is the click command.

    Raises:
        ValueError: the line ends inside quotes.
    """
    words = shlex.split(line)
    begun = words.pop() if words and not line[-1].isspace() else ""
    while words and "=" in words[0]:  # environment variables before the command
        words.pop(0)
    walk = Walk(tree)
    for word in words[1:]:
        walk.past(word)
    return begun, walk.offers(begun) if words else []


@dataclass(slots=True)
class Walk:
    """Reads a command line word by word."""

    command: Any
    names: list[str] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)
    positions: int = 0
    option: Any = None
    """An option whose value comes next."""
    word: str = ""
    """The beginning of a value that is to be completed."""

    def past(self, word: str) -> None:
        """Read one whole word."""
        options, (name, equals, value) = self.options(), word.partition("=")
        if self.option is not None:
            self.given.setdefault(self.option.name, []).append(word)
            self.option = None
        elif word in options:
            self.option = None if options[word].is_flag else options[word]
            self.given.setdefault(options[word].name, [])
        elif equals and name in options:
            self.given.setdefault(options[name].name, []).append(value)
        elif word in getattr(self.command, "commands", {}):
            self.command, self.positions = self.command.commands[word], 0
            self.names.append(word)
        elif (argument := self.argument()) is not None:
            self.given.setdefault(argument.name, []).append(word)
            self.positions += 1

    def offers(self, begun: str) -> list[Offer]:
        """What can replace the beginning of a word here."""
        if self.option is not None:
            return self._values(self.option, begun)
        if begun.startswith("-"):
            options, (name, equals, value) = self.options(), begun.partition("=")
            if equals and name in options:
                return [(f"{name}={word}", meaning) for word, meaning in self._values(options[name], value)]
            left = {name: one for name, one in options.items() if one.multiple or one.name not in self.given}
            found = [(name, sentence(one.help)) for name, one in left.items() if name.startswith("--")]
            found.append(("--help", "Show the help and exit"))
        elif (argument := self.argument()) is not None:
            return self._values(argument, begun)
        else:
            commands = getattr(self.command, "commands", {}).items()
            found = [(name, sentence(command.help)) for name, command in commands if not command.hidden]
        return [(word, meaning) for word, meaning in found if word.startswith(begun)]

    def options(self) -> dict[str, Any]:
        """The options of the command."""
        params = [one for one in self.command.params if one.param_type_name == "option"]
        return {name: one for one in params for name in one.opts}

    def argument(self) -> Any:
        """The argument that the next word belongs to; None where none is left."""
        arguments = [one for one in self.command.params if one.param_type_name == "argument"]
        if arguments[-1:] and arguments[-1].nargs == -1:
            return arguments[min(self.positions, len(arguments) - 1)]
        return arguments[self.positions] if self.positions < len(arguments) else None

    def _values(self, parameter: Any, word: str) -> list[Offer]:
        """Values of a parameter that begin with `word`; none where the shell's own file names do."""
        self.word = word
        found = VALUES[parameter.name](self) if parameter.name in VALUES else []
        return [(whole, meaning) for whole, meaning in found if whole.startswith(word)]

    @property
    def config_dir(self) -> Path | None:
        given = self.given.get("config_dir")
        return Path(given[-1]).expanduser() if given else None


def sentence(text: str | None) -> str:
    """The first sentence, in one line.

    >>> sentence("Train one run,\\nor resume it. And more.")
    'Train one run, or resume it'
    """
    return " ".join((text or "").split("\n\n")[0].split()).partition(". ")[0].rstrip(".")


def _described(walk: Walk, *kinds: str) -> list[Offer]:
    from bnlab.config import available, config_dirs, description

    dirs = config_dirs(walk.config_dir)
    files = {name: file for kind in kinds for name, file in available(kind, dirs).items()}
    return [(name, sentence(description(file))) for name, file in sorted(files.items())]


def _configs(walk: Walk) -> list[Offer]:
    return _described(walk, "experiments", *(["studies"] if walk.names[0] == "sweep" else []))


def _overrides(walk: Walk) -> list[Offer]:
    from bnlab.config import completing

    given = walk.given.get("overrides", [])
    if walk.names[0] == "evaluate":
        from bnlab.config.conditions import KEYS

        return completing.conditions(walk.word, given, KEYS)
    config, several = walk.given.get("config", [None])[-1], walk.names[0] == "sweep"
    return completing.overrides(walk.word, given, config=config, config_dir=walk.config_dir, several=several)


def _conditions(walk: Walk) -> list[Offer]:
    from bnlab.config import completing

    columns = [(f"{key}=", "") for key in _columns()]
    return columns + completing.overrides(walk.word, [], config=None, config_dir=None, several=True)


def _sort_keys(walk: Walk) -> list[Offer]:
    from bnlab.config import completing

    minus, word = ("-", walk.word[1:]) if walk.word.startswith("-") else ("", walk.word)
    keys = completing.overrides(word, [], config=None, config_dir=None, several=False)
    return [(f"{minus}{key.rstrip('=')}", "") for key in dict.fromkeys([*_columns(), *(key for key, _ in keys)])]


def _columns() -> list[str]:
    from bnlab.cli.table import COLUMNS

    return [name for name in COLUMNS if name not in ("norm", "seed", "steps")]  # those are keys of a spec too


def _kinds(walk: Walk) -> list[Offer]:
    from bnlab.cli.names import KINDS

    return [(kind, "") for kind in KINDS]


def _any_folder(walk: Walk) -> list[Offer]:
    return [(f"{name}/", "") for name, _ in _folders(walk.word)]


def _runs(walk: Walk) -> list[Offer]:
    """Runs and folders of runs; any folder where there are none, or where runs are written. A run is a whole word, a
    folder is not."""
    if walk.names[0] in ("train", "sweep"):
        return _any_folder(walk)
    found = [(name, folder) for name, folder in _folders(walk.word) if _has_runs(folder)]
    words = [(name if (folder / "spec.yaml").is_file() else f"{name}/", "") for name, folder in found]
    return words or _any_folder(walk)


def _has_runs(folder: Path) -> bool:
    """Whether there is a run in the folder or below, in the first folders that are searched."""
    for count, (_, folders, files) in enumerate(os.walk(folder)):
        folders.sort()
        if "spec.yaml" in files:
            return True
        if count >= MOST_FOLDERS:
            return False
    return False


def _folders(word: str) -> Iterator[tuple[str, Path]]:
    """Folders whose path begins with `word`, as it is typed."""
    head, slash, tail = word.rpartition("/")
    above = Path(head + slash or ".").expanduser()
    for folder in sorted(above.iterdir()):
        hidden = folder.name.startswith(".") and not tail.startswith(".")
        if folder.name.startswith(tail) and not hidden and folder.is_dir():
            yield f"{head}{slash}{folder.name}", folder


VALUES: dict[str, Callable[[Walk], list[Offer]]] = {
    "config": _configs,
    "overrides": _overrides,
    "where": _conditions,
    "sort": _sort_keys,
    "runs": _runs,
    "config_dir": _any_folder,
    "origin": _any_folder,
    "kind": _kinds,
    "name": lambda walk: _described(walk, "data"),
    "shell": lambda walk: [(shell, "") for shell in SHELLS],
}
"""Parameter -> the values it can take."""
