"""`key=value` as it is typed: Hydra's grammar, and which overrides may reach a spec.

Plain Hydra accepts three things that a laboratory must not: `+key` (a key nothing reads), `~group` (silently another
net), `hydra.*` (silently ignored).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from bnlab.config.grammar import add_functions
from bnlab.config.places import available
from bnlab.core.errors import UsageError, nearest
from bnlab.core.spec import GROUPS


class Overrides:
    """Reads overrides over `dirs`; each text is parsed once. Needs Hydra set up (compose.py)."""

    def __init__(self, dirs: Sequence[Path]) -> None:
        self.dirs = dirs
        self._parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        add_functions(self._parser.functions)
        self._read: dict[str, Override] = {}

    @cached_property
    def options(self) -> dict[str, list[str]]:
        """The options of every group."""
        return {group: list(available(group, self.dirs)) for group in GROUPS}

    def read(self, text: str) -> Override:
        """One override of a key or a group that a spec may have.

        Raises:
            UsageError: it cannot be read, or does something else than giving a value.
        """
        if text not in self._read:
            self._read[text] = self._checked(text)
        return self._read[text]

    def split(self, overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, Override]]:
        """Choices of a group's option, and values of keys, of one run.

        Raises:
            UsageError: several values, a key given twice, no such option.
        """
        choices: dict[str, str] = {}
        values: dict[str, Override] = {}
        for text in overrides:
            override = self.read(text)
            key = override.key_or_group
            if override.is_sweep_override():
                several = "several values, and `train` makes one run"
                remedy = "Give one of them, or use `bnlab sweep`."
                raise UsageError(key, several, override.get_value_string(), remedy)
            if key in choices or key in values:
                raise UsageError(key, "given twice", text, "Give it once.")
            if key in GROUPS:
                choices[key] = self.option(key, override.value())
            else:
                values[key] = override
        return choices, values

    def option(self, group: str, value: Any) -> str:
        """The name of a group's option.

        Raises:
            UsageError: there is none of that name.
        """
        name = str(value)
        if name not in self.options[group]:
            raise UsageError(group, "no such option", name, nearest(name, self.options[group]))
        return name

    def _checked(self, text: str) -> Override:
        try:
            override = self._parser.parse_overrides([text])[0]
        except HydraException as error:
            if isinstance(error.__cause__, UsageError):  # one of our own functions
                raise error.__cause__ from None
            if error.__cause__ is not None:  # one of Hydra's, with what it cannot take
                problem = str(error.__cause__).splitlines()[0].rstrip(".")
                raise UsageError(text, f"cannot be read: {problem}") from None
            raise UsageError(text, "cannot be read as an override", remedy="Write key=value.") from None
        key = override.key_or_group
        if override.package is not None:
            raise UsageError(f"{key}@{override.package}", "a group has one place", remedy=f"Write {key}=...")
        if override.is_delete():
            raise UsageError(text, "nothing can be removed from a spec", remedy=f"Give {key} another value.")
        if override.is_add() or override.is_force_add():
            remedy = f"Where the key exists, write {key}=... without the +."
            raise UsageError(text, "nothing can be added to a spec, its keys are fixed", remedy=remedy)
        if key == "hydra" or key.startswith("hydra."):
            problem = "bnlab is not run by Hydra, so its own settings have no effect"
            raise UsageError(text, problem, remedy="Leave it out.")
        return override
