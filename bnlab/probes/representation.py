"""How alike a layer makes the examples of a batch: rank, cosines and gaps of the Gram matrix.

Legend: B batch, C channels, H W space, L sites.

H [B, C H W] is `out` of a site on the probe batch, in batch mode, before the update: the nonlinearity's output, after a
norm behind it and before dropout. With its Gram matrix G = H H' [B, B] and the eigenvalues e_i of G,

    rank                 r(H) = Tr(G)^2 / ||G||_F^2, at most the rank of H (Daneshmand et al. 2020, section 2)
    cosine               mean over pairs i < j of h_i h_j / (||h_i|| ||h_j||) (the same)
    isometry gap         log(mean of e_i) - mean of log(e_i) (Joudaki et al. 2023)
    orthogonality gap    || G / ||H||_F^2 - I / ||I||_F^2 ||_F (Daneshmand et al. 2021, section 3)
    outliers             B less the largest cluster: examples are in one cluster if a chain of pairs with cosines above
                         0.9 joins them (after Nachum et al. 2024, from the abstract; the 0.9 is bnlab's)

Orthogonal examples of one norm have r(H) = B, cosines and gaps of 0 and B - 1 outliers; equal examples have r(H) = 1,
cosines of 1 and no outlier. An example that is 0 has no cosine and is in no cluster.
At `pre`, over the probe batch (and H W), the two means over channels of Brock et al. 2021, section 3:

    squared mean         mean over channels of the square of the channel mean
    variance             mean over channels of the (biased) channel variance
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.state import State, outputs_at
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

OF_GRAM = ("gram_rank", "gram_cos", "isometry_gap", "orthogonality_gap", "gram_outliers")
OF_PRE = ("channel_squared_mean", "channel_variance")
NEAR = 0.9
"""Two examples are neighbours if their cosine is above it."""


@PROBES.register("representation")
class Representation:
    """The eigenvalues of a matrix [B, B] a site, in float64."""

    needs: ClassVar[frozenset[Need]] = frozenset({"probe_sites", "before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "gram_rank": "r(H) = Tr(HH')^2 / ||HH'||_F^2 of out (Daneshmand et al. 2020): 1 where all examples are one up "
        "to their length, B where they are orthogonal",
        "gram_cos": "mean cosine of two examples at out (Daneshmand et al. 2020); examples that are 0 are left out",
        "isometry_gap": "log(mean eigenvalue) - mean(log eigenvalue) of HH' (Joudaki et al. 2023); null where HH' has "
        "an eigenvalue that is 0 to rounding, as with more examples than units",
        "orthogonality_gap": "|| HH' / ||H||_F^2 - I / ||I||_F^2 ||_F (Daneshmand et al. 2021)",
        "gram_outliers": "examples outside the largest cluster at out; a chain of pairs with cosines above 0.9 joins "
        "the examples of a cluster (after Nachum et al. 2024)",
        "channel_squared_mean": "mean over channels of the squared channel mean of pre, probe batch (Brock et al. "
        "2021)",
        "channel_variance": "mean over channels of the channel variance (biased) of pre, probe batch (Brock et al. "
        "2021)",
    }

    def __init__(self, *, batch: Annotated[int, Ge(4), MultipleOf(2)]) -> None:
        """`batch`: examples in the probe batch; where several probes give a number, it has the largest."""
        self.batch = batch

    def measure(self, snapshot: Snapshot) -> Raw:
        of_gram = [of_representation(out.flatten(1)) for out in outs(snapshot)]
        of_pre = [of_channels(pre) for pre in snapshot.probe.pre]
        return {"gram": torch.stack(of_gram, dim=1), "pre": torch.stack(of_pre, dim=1)}  # [5, L], [2, L]

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        return dict(zip((*OF_GRAM, *OF_PRE), (*raw["gram"], *raw["pre"]), strict=True)), carry


def outs(snapshot: Snapshot) -> list[Tensor]:
    """`out` of every site on the probe batch, [B, C] or [B, C, H, W]."""
    net, before, found = snapshot.net, snapshot.before, []
    paths = {part: f"{path}." for path, part in net.module.named_modules()}

    def own(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        return {name.removeprefix(path): value for name, value in tensors.items() if name.startswith(path)}

    for site, act_in in zip(net.sites, snapshot.probe.act_in, strict=True):
        with torch.no_grad():
            out: Tensor = site.activation(act_in.clone())  # it may work in place
            if site.norm is not None and not site.norm_first:
                path = paths[site.norm]
                out = outputs_at(site.norm, State(own(before.params, path), own(before.buffers, path)), out, "batch")
        found.append(out)
    return found


def of_representation(h: Tensor) -> Tensor:
    """Rank, mean cosine, isometry gap, orthogonality gap and outliers, [5], of H [B, n].

    >>> [round(x, 4) for x in of_representation(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).tolist()]
    [2.0, 0.0, 0.0, 0.0, 1.0]
    >>> [round(x, 4) for x in of_representation(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).tolist()]
    [1.0, 1.0, nan, 0.7071, 0.0]
    """
    wide = h.to(h.dtype if h.device.type == "mps" else torch.float64)
    wide = wide / wide.abs().max().clamp_min(torch.finfo(h.dtype).tiny)  # every figure is of H up to a factor
    gram, count = wide @ wide.T, len(h)
    trace = gram.trace()
    rows = wide[gram.diagonal() > 0]
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    pairs = len(rows) * (len(rows) - 1)
    cos = (rows.sum(dim=0).square().sum() - len(rows)) / pairs if pairs else torch.full_like(trace, torch.nan)
    figures = [
        trace.square() / gram.square().sum(),
        cos,
        isometry_gap(gram),
        torch.linalg.matrix_norm(gram / trace - torch.eye(count).to(gram) / count),
        count - largest_cluster(rows @ rows.T > NEAR) if len(rows) else torch.full_like(trace, torch.nan),
    ]
    return torch.stack(figures).to(h.dtype)


def largest_cluster(neighbours: Tensor) -> Tensor:
    """Size of the largest connected component of a graph [N, N], a scalar; every node is its own neighbour.

    >>> largest_cluster(torch.eye(4) + torch.eye(4).roll(1, 0).triu(1) + torch.eye(4).roll(1, 0).triu(1).T).item()
    2.0
    """
    joined = neighbours.float()
    for _ in range(len(joined).bit_length()):  # paths of 1, 2, 4, ... edges
        joined = (joined @ joined > 0).float()
    return joined.sum(dim=1).max()


def isometry_gap(gram: Tensor) -> Tensor:
    """log(mean eigenvalue) - mean(log eigenvalue) of a Gram matrix [B, B], a scalar; NaN where an eigenvalue is 0 to
    rounding, or where one is not finite.

    >>> round(isometry_gap(torch.diag(torch.tensor([1.0, 4.0]))).item(), 4)  # log(5 / 2) - log(4) / 2
    0.2231
    """
    if not bool(torch.isfinite(gram).all()):
        return torch.full_like(gram[0, 0], math.nan)
    values = torch.linalg.eigvalsh(gram)
    regular = values[0] > len(values) * torch.finfo(gram.dtype).eps * values[-1]
    return torch.where(regular, values.mean().log() - values.log().mean(), math.nan)


def of_channels(x: Tensor) -> Tensor:
    """The means over channels of the squared channel mean and of the channel variance, [2], of x [B, C] or
    [B, C, H, W].

    >>> of_channels(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [2.0, 0.5]
    """
    var, mean = torch.var_mean(x, dim=[axis for axis in range(x.ndim) if axis != 1], correction=0)
    return torch.stack([mean.square().mean(), var.mean()])
