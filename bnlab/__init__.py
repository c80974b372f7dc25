"""A laboratory for one question: what does batch normalization really do to training?

For plugins: the registries that take one's own norms, models, data sets, optimizers, probes, metrics and figures. For
scripts and notebooks: `train`, `load`, `journals`, `judge`, `figure` (docs/python.md), and `read_runs`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnlab.core import moved

if TYPE_CHECKING:
    from bnlab.analysis.load import journals, load, read_runs
    from bnlab.analysis.metrics import METRICS
    from bnlab.analysis.verdicts import judge
    from bnlab.api import sweep, train
    from bnlab.core.errors import UsageError
    from bnlab.core.registry import DATA, MODELS, NORMS, OPTIMIZERS, PROBES
    from bnlab.loop.arms import with_norm
    from bnlab.loop.watch import watch
    from bnlab.report.build import figure
    from bnlab.report.figures import FIGURES

__version__ = "0.1.0"

_FACE = {
    "DATA": "bnlab.core.registry",
    "FIGURES": "bnlab.report.figures",
    "METRICS": "bnlab.analysis.metrics",
    "MODELS": "bnlab.core.registry",
    "NORMS": "bnlab.core.registry",
    "OPTIMIZERS": "bnlab.core.registry",
    "PROBES": "bnlab.core.registry",
    "UsageError": "bnlab.core.errors",
    "figure": "bnlab.report.build",
    "journals": "bnlab.analysis.load",
    "judge": "bnlab.analysis.verdicts",
    "load": "bnlab.analysis.load",
    "read_runs": "bnlab.analysis.load",
    "sweep": "bnlab.api",
    "train": "bnlab.api",
    "watch": "bnlab.loop.watch",
    "with_norm": "bnlab.loop.arms",
}
"""Name -> the module that has it; imported when it is first asked for, so that help comes at once."""

__all__ = [
    "DATA",
    "FIGURES",
    "METRICS",
    "MODELS",
    "NORMS",
    "OPTIMIZERS",
    "PROBES",
    "UsageError",
    "__version__",
    "figure",
    "journals",
    "judge",
    "load",
    "read_runs",
    "sweep",
    "train",
    "watch",
    "with_norm",
]

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'bnlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
