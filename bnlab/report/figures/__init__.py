"""One figure a file. A file has SUBJECT and `draw(view, name)`; its name is the figure's, and its ORDER its place."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import cast

from bnlab.report.base import FigureModule


@cache
def figures() -> dict[str, FigureModule]:
    """Every figure by name, in the order of the report."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found = {name: cast(FigureModule, importlib.import_module(f"{__name__}.{name}")) for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1].ORDER, item[0])))
