"""How much a net's outputs depend on single channels. Legend: B batch, C channels, H W space, L sites, K outputs.

With f [B, K] the outputs for the probe batch in batch mode, before the update, and f' the outputs where one channel of
a site's nonlinearity output h (after a norm behind it) is another one,

    ||f' - f||_F / ||f||_F

once with ten times the channel (`scaled`), once with its mean over B (and H, W) in its place (`removed`): the median
and the largest of the chosen channels of a site. Replacing a unit by its mean is an ablation of Morcos et al. 2018,
section 2; they look at the accuracy without a set of units, and scaling is bnlab's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import outputs_at, random_state
from bnlab.core.study import evenly
from bnlab.net.build import Site
from bnlab.net.wrap import Forward, Wrapped, by_channel
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

SCALE = 10.0
NAMES = ("channel_scaled", "channel_scaled_max", "channel_removed", "channel_removed_max")
Change = Callable[[Tensor], Tensor]
"""Of a channel [B] or [B, H, W]."""


@PROBES.register("channels")
class Channels:
    """Two forward passes of the probe batch a channel."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "channel_scaled": "median over channels of ||f' - f||_F / ||f||_F, f the outputs for the probe batch, f' those "
        "with ten times one channel of the site's output; null at the head, and where a function gives that output",
        "channel_scaled_max": "the largest of these",
        "channel_removed": "median over channels of ||f' - f||_F / ||f||_F with the channel's mean in place of one "
        "channel of the site's output; null where channel_scaled is (Morcos et al. 2018)",
        "channel_removed_max": "the largest of these",
    }

    def __init__(self, *, batch: Annotated[int, Ge(4), MultipleOf(2)], channels: Annotated[int, Ge(1)]) -> None:
        """`batch`: examples in the probe batch; where several probes give a number, it has the largest. `channels`: how
        many channels of a site, evenly spread."""
        self.batch, self.channels = batch, channels

    def measure(self, snapshot: Snapshot) -> Raw:
        device = snapshot.probe_batch.x.device
        torch.manual_seed(stream(snapshot.seed, "probe", "channels").initial_seed())
        at = replace(snapshot.before, random=random_state(device))  # every pass draws the same numbers

        def outputs() -> Tensor:
            with torch.no_grad():
                return outputs_at(snapshot.net.module, at, snapshot.probe_batch.x, "batch")

        plain = outputs()
        none = torch.full((len(NAMES),), torch.nan).to(plain)
        figures = [self._of(site, outputs, plain) for site in snapshot.net.sites[:-1]]
        return {"figures": torch.stack([*(none if of is None else of for of in figures), none], dim=1)}  # [4, L]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        return dict(zip(NAMES, raw["figures"], strict=True)), carry

    def _of(self, site: Site, outputs: Callable[[], Tensor], plain: Tensor) -> Tensor | None:
        """The figures of a site, [4]; None where no module gives its output."""
        with Changed(site) as seen:
            outputs()
        found = []
        for change in (lambda x: SCALE * x, lambda x: x.mean().expand_as(x)):
            moved = []
            for channel in evenly(seen.channels, self.channels):
                with Changed(site, channel, change):
                    moved.append(torch.linalg.vector_norm(outputs() - plain) / torch.linalg.vector_norm(plain))
            if not moved:
                return None
            found += [torch.stack(moved).quantile(0.5), torch.stack(moved).max()]
        return torch.stack(found)


class Changed(AbstractContextManager["Changed"]):
    """Inside the `with`, one channel of the site's output is changed; without a channel, `channels` is their number."""

    def __init__(self, site: Site, channel: int | None = None, change: Change | None = None) -> None:
        self._site, after = site, site.norm is not None and not site.norm_first
        self._part = site.norm if after and site.norm is not None else site.activation
        self._call = 0 if after else site.activation_call
        self._channel, self._change = channel, change
        self._calls = self.channels = 0
        self._wrapped = Wrapped([self._part], lambda place, forward: self._changing(forward))

    def __enter__(self) -> Changed:
        self._wrapped.__enter__()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._wrapped.__exit__(kind, error, trace)

    def _changing(self, forward: Forward) -> Forward:
        def run(*args: Tensor, **kwargs: Tensor) -> Tensor:
            out = forward(*args, **kwargs)
            self._calls += 1
            if self._calls - 1 == self._call:
                self.channels = by_channel(self._site, out).shape[1]
                if self._channel is not None and self._change is not None:
                    out = out.clone()
                    changed = by_channel(self._site, out)  # a view
                    changed[:, self._channel] = self._change(changed[:, self._channel])
            return out

        return run
