"""What every run needs, ready in the server that the processes of a sweep are forked from. Imports and facts only: no
tensor is made, no thread started, no GPU touched before the fork."""

from __future__ import annotations

import torch._dynamo  # torch's optimizers import it at their first step, which takes a second  # noqa: F401

import bnlab.sweep.task  # noqa: F401
from bnlab import host
from bnlab.registry import DATA, MODELS, NORMS, OPTIMIZERS, PROBES

for registry in (NORMS, MODELS, DATA, OPTIMIZERS, PROBES):
    for name in registry.names():
        registry.entry(name)

host.provenance("cpu", 1)  # asks git for the commit, and remembers it
