"""Old module names that plugins import, kept alive: `bnlab.registry` is `bnlab.core.registry`.

An alias is resolved when it is imported and costs nothing before. The names are those of `docs/plugins.md` in version
0.1, and their neighbours.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "bnlab.errors": "bnlab.core.errors",
    "bnlab.registry": "bnlab.core.registry",
    "bnlab.seeds": "bnlab.core.seeds",
    "bnlab.spec": "bnlab.core.spec",
    "bnlab.state": "bnlab.core.state",
    "bnlab.typed": "bnlab.core.typed",
    "bnlab.losses": "bnlab.core.state",
    "bnlab.moments": "bnlab.core.state",
    "bnlab.theory": "bnlab.core.theory",
    "bnlab.models.base": "bnlab.net.build",
    "bnlab.tap": "bnlab.net.wrap",
    "bnlab.evaluate": "bnlab.net.evaluate",
    "bnlab.sources": "bnlab.files.sources",
}
"""Old name -> new name."""


class _Aliases(MetaPathFinder, Loader):
    """Finds a module under its old name, and gives the one module that there is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed under its own name, whose spec importlib has just replaced."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.append(_Aliases())
