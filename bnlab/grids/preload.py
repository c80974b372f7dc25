"""Preloads what every run needs in the server that forks a sweep's processes. Imports and facts only: before the fork
this makes no tensor, starts no thread and touches no GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata

import torch.utils.serialization  # torch.save imports it  # noqa: F401

from bnlab.core.registry import DATA, MODELS, NORMS, OPTIMIZERS, PROBES
from bnlab.core.typed import options_model
from bnlab.run import host
from bnlab.run.setup import cadence

with contextlib.suppress(ImportError):
    importlib.import_module("torch._dynamo")  # torch's optimizers import it at their first step, which takes a second
for registry in (NORMS, MODELS, DATA, OPTIMIZERS, PROBES):
    for name in registry.names():
        options_model(registry.entry(name).constructor)
options_model(cadence)
importlib.metadata.entry_points(group="bnlab.plugins")
host.provenance("cpu", 1)  # asks git for the commit, and caches it
