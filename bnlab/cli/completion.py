"""Completion in a shell: its script, and what can stand where the cursor is. Typer's own scripts are not used: bash
splits words at `=`, and these complete `norm=ba`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from bnlab.cli.candidates import SHELLS, Begun, Offer, candidates, sentence
from bnlab.core.errors import UsageError, nearest
from bnlab.terminal.signs import say

BASH = """\
_bnlab() {
    local IFS=$'\\n'
    COMPREPLY=($(bnlab complete-line "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null))
    # A word that goes on gets no blank behind it.
    [[ ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace 2>/dev/null
}
complete -o bashdefault -o default -F _bnlab bnlab"""

ZSH = """\
#compdef bnlab
_bnlab() {
    local -a rows whole open told_whole told_open
    local row word
    rows=("${(@f)$(bnlab complete-line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    for row in $rows; do
        word=${row%%$'\\t'*}
        # A word that goes on gets no blank behind it.
        if [[ $word == *[=./] ]]; then
            open+=("$word") told_open+=("${${row/$'\\t'/  -- }[1,COLUMNS-1]}")
        else
            whole+=("$word") told_whole+=("${${row/$'\\t'/  -- }[1,COLUMNS-1]}")
        fi
    done
    (( $#whole + $#open )) || { _files; return }
    (( $#open )) && compadd -l -S '' -d told_open -a open
    (( $#whole )) && compadd -l -d told_whole -a whole
    return 0
}
if [[ $funcstack[1] == _bnlab ]]; then _bnlab "$@"; else compdef _bnlab bnlab; fi"""

SCRIPTS = dict(zip(SHELLS, (BASH, ZSH), strict=True))


def script(shell: str) -> str:
    """What a shell must read to complete.

    Raises:
        UsageError: an unknown shell.
    """
    if shell not in SCRIPTS:
        raise UsageError("SHELL", "no completion for it", shell, nearest(shell, SCRIPTS))
    return SCRIPTS[shell]


def show(tree: Any, line: str, breaks: str) -> None:
    """Print a word a line, of those that can stand at the end of `line`; `tree` is the command as click has it. Where
    there are `breaks`, bash puts the word behind the last of them that was typed, and wants it quoted; else its
    meaning follows behind a tab."""
    try:
        begun, found = completed(tree, line)
    except Exception:  # whatever it is: a message would be written into the line that is being typed
        return
    kept = max((index + 1 for index, sign in enumerate(begun) if sign in breaks and not sign.isspace()), default=0)
    for word, meaning in found:
        quoted = re.sub(r"([^\w@%+=:,./~\[\]-])", r"\\\1", word[kept:])
        say(quoted if breaks else f"{word}\t{meaning}" if meaning else word)


def completed(tree: Any, line: str) -> tuple[str, list[Offer]]:
    """The last word of `line`, empty behind a blank, and the words that can stand in its place.

    Raises:
        ValueError: the line ends inside quotes.
    """
    words = shlex.split(line)
    begun = words.pop() if words and not line[-1].isspace() else ""
    while words and "=" in words[0]:  # settings of the environment before the command
        words.pop(0)
    walk = Walk(tree)
    for word in words[1:]:
        walk.past(word)
    return begun, walk.offers(begun) if words else []


@dataclass(slots=True)
class Walk:
    """Along a command line, word by word."""

    command: Any
    names: list[str] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)
    positions: int = 0
    option: Any = None
    """An option whose value comes next."""

    def past(self, word: str) -> None:
        """The next word, a whole one."""
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
        """What can stand here for the beginning of a word."""
        if self.option is not None:
            return self._values(self.option, begun)
        if begun.startswith("-"):
            options, (name, equals, value) = self.options(), begun.partition("=")
            if equals and name in options:
                return [(f"{name}={word}", meaning) for word, meaning in self._values(options[name], value)]
            left = {name: one for name, one in options.items() if one.multiple or one.name not in self.given}
            found = [(name, sentence(one.help)) for name, one in left.items() if name.startswith("--")]
            found.append(("--help", "Show what there is to say and exit"))
        elif (argument := self.argument()) is not None:
            return self._values(argument, begun)
        else:
            commands = getattr(self.command, "commands", {}).items()
            found = [(name, sentence(command.help)) for name, command in commands if not command.hidden]
        return [(word, meaning) for word, meaning in found if word.startswith(begun)]

    def options(self) -> dict[str, Any]:
        """Those of the command."""
        params = [one for one in self.command.params if one.param_type_name == "option"]
        return {name: one for one in params for name in one.opts}

    def argument(self) -> Any:
        """The one that the next word is of; None where there is none left."""
        arguments = [one for one in self.command.params if one.param_type_name == "argument"]
        if arguments[-1:] and arguments[-1].nargs == -1:
            return arguments[min(self.positions, len(arguments) - 1)]
        return arguments[self.positions] if self.positions < len(arguments) else None

    def _values(self, parameter: Any, begun: str) -> list[Offer]:
        return candidates(Begun(command=" ".join(self.names), name=parameter.name, word=begun, given=self.given))
