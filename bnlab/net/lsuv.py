"""Layer-sequential unit-variance initialization (Mishkin & Matas 2016, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.state import outputs_now, untouched_random_state
from bnlab.net.build import Net
from bnlab.net.wrap import AffineTap


def scale_to_unit_variance(net: Net, x: Tensor, scale: float = 1.0) -> None:
    """Divide every site's affine weight, from the first to the last, by the standard deviation of all its outputs for
    the batch x [B, ...], in batch mode, so that it becomes `scale`. Weights are orthogonal before (`build.draw`).

    Algorithm 1 repeats this until the variance is within 0.1 of 1; where biases are 0, as here, once is exact.

    Raises:
        UsageError: a site gives a constant, or what is not finite.
    """
    for index, site in enumerate(net.sites):
        with AffineTap(net) as tap, untouched_random_state(x.device):
            outputs_now(net.module, x, "batch")
        sd = tap.outputs[index].std(correction=0)
        if not (bool(sd.isfinite()) and bool(sd > 0)):
            raise UsageError("model.init", f"{site.name} has no variance on the first batch", "lsuv", "Use init=he.")
        with torch.no_grad():
            site.affine.get_parameter("weight").mul_(scale / sd)
