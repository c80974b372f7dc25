"""Sharpness: the largest eigenvalues of the Hessian of the training loss. Legend: P parameters of the net (flat).

H = d^2 L / dtheta^2 [P, P] at the weights before the update, on the training batch, in batch mode: with a batch norm,
the derivatives pass through the batch's statistics. H is known by its products with vectors only (one backward pass
through the gradient each); Lanczos iterations (ARPACK) find its largest eigenvalues from these.

Gradient descent with learning rate eta on a quadratic with Hessian H is stable while eta lambda_max / 2 <= 1.
Full-batch training stays near that bound, the edge of stability of Cohen et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import gradient_at, hessian_product_at
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot

TOP = 10
"""At most so many eigenvalues."""


@PROBES.register("sharpness")
class Sharpness:
    """The top of the Hessian's spectrum; every part of the net must be twice differentiable by autograd."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = {
        "lambda_max": "largest eigenvalue of the Hessian of the training loss, over all parameters",
        "eta_lambda_half": "lr / 2 * lambda_max: above 1, gradient descent is unstable on the quadratic there",
        **{f"lambda_{rank}": f"eigenvalue number {rank} from the top" for rank in range(2, TOP + 1)},
        "lambda_max_over_10": "lambda_max / lambda_10, with top=10: how far the largest stands out (Ghorbani et "
        "al. 2019)",
        "gradient_in_top_10": "||P g||^2 / ||g||^2, P the projection on the eigenvectors of the ten largest, with "
        "top=10: the share of the gradient in the directions that stand out (Ghorbani et al. 2019)",
    }
    groups: ClassVar[Mapping[str, str]] = dict.fromkeys(metrics, "5_sharpness")

    def __init__(self, *, top: Annotated[int, Ge(1), Le(TOP)], tolerance: Annotated[float, Gt(0), Lt(1)]) -> None:
        """`top`: how many eigenvalues. `tolerance`: an eigenvalue is found when its residual is so small against it;
        one that is not found, or of a Hessian that is not finite, is null."""
        self.top, self.tolerance = top, tolerance

    def measure(self, snapshot: Snapshot) -> Raw:
        batch, params = snapshot.batch, snapshot.before.params
        product = hessian_product_at(snapshot.net.module, snapshot.before, batch.x, batch.y, snapshot.objective)
        size = sum(param.numel() for param in params.values())
        start = torch.randn(size, generator=stream(snapshot.seed, "probe", "sharpness", snapshot.step))
        found, vectors = largest(product, start.to(next(iter(params.values()))), self.top, self.tolerance)
        raw = {"eigenvalues": found, "eta_lambda_half": found[0] * (snapshot.lr / 2)}
        if self.top == TOP:
            _, grads = gradient_at(snapshot.net.module, snapshot.before, batch.x, batch.y, snapshot.objective)
            g = torch.cat([grad.flatten() for grad in grads.values()])
            raw["in_top"] = (vectors.T @ (g / torch.linalg.vector_norm(g))).square().sum()
        return raw

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry) -> tuple[Metrics, Carry]:
        names = ["lambda_max", *(f"lambda_{rank}" for rank in range(2, self.top + 1))]
        figures: Metrics = dict(zip(names, raw["eigenvalues"], strict=True))
        if self.top == TOP:
            figures["lambda_max_over_10"] = raw["eigenvalues"][0] / raw["eigenvalues"][-1]
            figures["gradient_in_top_10"] = raw["in_top"]
        return figures | {"eta_lambda_half": raw["eta_lambda_half"]}, carry


def largest(product: Callable[[Tensor], Tensor], start: Tensor, top: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """The largest `top` eigenvalues, in descending order, of a symmetric matrix H [P, P] known by `product`, v -> H v,
    and unit eigenvectors of them, [P, top]; NaN for those that are not found. `start` [P]: where the iterations begin.

    >>> diagonal = torch.tensor([1.0, -9.0, 4.0, 2.0])
    >>> values, vectors = largest(lambda v: diagonal * v, torch.ones(4), 2, 1e-6)
    >>> [round(x.item(), 4) for x in values], [round(abs(x.item()), 4) for x in vectors[:, 0]]
    ([4.0, 2.0], [0.0, 0.0, 1.0, 0.0])
    """
    size = len(start)
    first = product(start)
    if not bool(torch.isfinite(first).all()):
        return start.new_full((top,), math.nan), start.new_full((size, top), math.nan)
    if not bool(first.any()):  # H is 0, as in a dead net, and ARPACK cannot start
        return start.new_zeros(top), start.new_full((size, top), math.nan)

    def on_host(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = product(torch.from_numpy(v.ravel()).to(start.dtype).to(start.device)).cpu().numpy()
        return host.astype(np.float64)

    operator = LinearOperator((size, size), matvec=on_host, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, k=top, which="LA", v0=start.cpu().numpy().astype(np.float64), tol=tolerance)
    except ArpackError as error:  # some may have been found before
        values = getattr(error, "eigenvalues", np.empty(0))
        vectors = getattr(error, "eigenvectors", np.empty((size, 0)))
    order = np.argsort(values)[::-1]
    found = np.full((1 + size, top), np.nan)
    found[:, : len(values)] = np.vstack([values[order], vectors[:, order]])
    ordered = torch.from_numpy(found).to(start.dtype).to(start.device)
    return ordered[0], ordered[1:]
