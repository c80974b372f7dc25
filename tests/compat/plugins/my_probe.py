"""How far every layer's weight has turned since the run began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot
from bnlab.registry import PROBES


@PROBES.register("my_probe")
class MyProbe:
    """Of each site's affine weight, after the step."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    metrics: ClassVar[Mapping[str, str]] = {"turned": "1 - cosine of the site's weight and its first measured one"}

    def __init__(self, *, entries: int = 1000) -> None:
        self.entries = entries

    def measure(self, snapshot: Snapshot) -> Raw:
        weights = [snapshot.net.params[site.params[0]].detach().flatten() for site in snapshot.net.sites]
        cut = [weight[: self.entries] for weight in weights]
        return {"weights": torch.stack([torch.nn.functional.pad(w, (0, self.entries - len(w))) for w in cut])}

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        now = raw["weights"]  # [L, entries]
        first = carry.get("first", now)
        cos = (now * first).sum(axis=1) / (np.linalg.norm(now, axis=1) * np.linalg.norm(first, axis=1))
        return {"turned": 1 - cos}, {"first": first}
