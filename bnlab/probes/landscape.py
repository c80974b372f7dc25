"""The loss surface along the gradient: how far the loss and its gradient change within one step.

Legend: P parameters of the net (flat), K points on the line.

Santurkar et al. 2018, appendix A.2.2 and figure 4. With theta the weights before the update, L the loss of the training
batch of that step in batch mode, g = dL/dtheta [P] and eta the learning rate, one walks from theta to theta - a_k g for
K values a_k = f_k eta, the factors f_k spread geometrically over [low, high]. This is one net, its present gradient and
one batch, not an envelope of nets that were trained at several learning rates.

g is the gradient, for every optimizer; for plain gradient descent the point a = eta is the step itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from bnlab.core.errors import UsageError
from bnlab.core.registry import PROBES
from bnlab.core.seeds import stream
from bnlab.core.state import gradient_at, line, norm_each, subtract_each
from bnlab.net._stacked_norms import Tensors
from bnlab.net.build import Net
from bnlab.net.stack import Stack, apart, stack_of
from bnlab.probes.base import Carry, HostArray, Metrics, Need, Raw, Snapshot, not_infinite

DIVERGED = 1e3
"""A loss so many times the present one counts as divergence (Bjorck et al. 2018)."""

ALONG_GRADIENT = {
    "loss_lo": "min over k of L(theta - a_k g): the lowest loss within reach of a step along the gradient",
    "loss_hi": "max over k of L(theta - a_k g)",
    "loss_range": "(loss_hi - loss_lo) / L(theta)",
    "grad_change": "max over k of ||dL(theta) - dL(theta - a_k g)||, of all parameters",
    "grad_change_rel": "grad_change / ||g||",
    "eta_beta_half": "lr / 2 * max over k of ||dL(theta) - dL(theta - a_k g)|| / ||a_k g||: the effective smoothness "
    "in units of 2 / lr; near 1 at the edge of stability, with and without a norm",
    "reach": f"the smallest a with L(theta - a g) above {DIVERGED:g} L(theta) (Bjorck et al. 2018, figure 3), "
    "between points on a line in log a and log L; the largest a_k where there is none, so at least that",
}


@PROBES.register("landscape")
class Landscape:
    """On the training batch, in batch mode, at the weights before the update."""

    needs: ClassVar[frozenset[Need]] = frozenset({"before"})
    metrics: ClassVar[Mapping[str, str]] = ALONG_GRADIENT | {
        f"random_{name}": f"{name} along a random direction of the norm of g, in its place" for name in ALONG_GRADIENT
    }
    groups: ClassVar[Mapping[str, str]] = dict.fromkeys(metrics, "5_landscape")

    def __init__(
        self,
        *,
        low: Annotated[float, Gt(0), Lt(math.inf)],
        high: Annotated[float, Gt(0), Lt(math.inf)],
        points: Annotated[int, Ge(2)],
        random: bool,
    ) -> None:
        """`points` steps from `low` to `high` times the learning rate, both included. Each costs a forward and a
        backward pass. `random`: the same along a random direction too."""
        if high <= low:
            raise UsageError("probes.landscape.high", f"not above probes.landscape.low = {low:g}", high)
        self.factors = [low * (high / low) ** (k / (points - 1)) for k in range(points)]
        self.random = random

    def layout(self, net: Net, input_shape: tuple[int, ...]) -> Stack | None:
        """What computes the points at once, if the net can be in a stack."""
        return stack_of(net)

    def measure(self, snapshot: Snapshot, stack: Stack | None) -> Raw:
        batch, module, before = snapshot.batch, snapshot.net.module, snapshot.before
        loss, grads = gradient_at(module, before, batch.x, batch.y, snapshot.objective)
        norm = norm_of(list(grads.values()))
        directions = {"": grads}
        if self.random:
            directions["random_"] = random_direction(grads, norm, snapshot.seed, snapshot.step)
        raw = {"loss": loss, "norm": norm, "lr": loss.new_tensor(snapshot.lr)}
        for prefix, direction in directions.items():
            if stack is not None and batch.x.device.type == "cpu":
                losses, changes = self._at_once(snapshot, stack, direction, grads)
            else:
                losses, changes = self._one_by_one(snapshot, direction, grads)
            raw |= {f"{prefix}losses": losses, f"{prefix}changes": changes}
        return raw

    def _one_by_one(self, snapshot: Snapshot, direction: Tensors, grads: Tensors) -> tuple[Tensor, Tensor]:
        """The losses, and the distances of the gradients from `grads`, at the K points, each [K]."""
        batch, losses, changes = snapshot.batch, [], []
        for factor in self.factors:
            there = line(snapshot.before, direction, -factor * snapshot.lr)
            loss, found = gradient_at(snapshot.net.module, there, batch.x, batch.y, snapshot.objective)
            losses.append(loss)
            changes.append(norm_of(list(subtract_each(list(grads.values()), list(found.values())))))
        return torch.stack(losses), torch.stack(changes)

    def _at_once(self, snapshot: Snapshot, stack: Stack, direction: Tensors, grads: Tensors) -> tuple[Tensor, Tensor]:
        """The same, of a stack of the K points."""
        batch, count, params = snapshot.batch, len(self.factors), {}
        for name, value in snapshot.before.params.items():
            a = torch.tensor([-factor * snapshot.lr for factor in self.factors], dtype=value.dtype)
            away = direction[name] * a.view(-1, *(1 for _ in value.shape))
            params[name] = torch.add(value, away, out=apart(count, value.shape, value.dtype))
        now = snapshot.before.buffers or dict(snapshot.net.module.named_buffers())
        buffers = {name: x.expand(count, *x.shape).contiguous() for name, x in now.items()}
        x = batch.x.expand(count, *batch.x.shape)
        losses, found = stack.gradients(params, buffers, x, [batch.y] * count, snapshot.objective)
        apart_by = [torch.linalg.vector_norm((grad - found[name]).flatten(1), dim=1) for name, grad in grads.items()]
        return losses, torch.linalg.vector_norm(torch.stack(apart_by, dim=1), dim=1)

    def summarize(self, raw: Mapping[str, HostArray], carry: Carry, stack: Stack | None) -> tuple[Metrics, Carry]:
        metrics: Metrics = {}
        loss, norm = not_infinite(raw["loss"]), not_infinite(raw["norm"])
        for prefix in ("", "random_") if self.random else ("",):
            losses, changes = raw[f"{prefix}losses"], raw[f"{prefix}changes"]  # each [K]
            lo, hi, change = losses.min(), losses.max(), changes.max()
            with np.errstate(all="ignore"):  # the journal marks what is not finite
                # With a_k = f_k lr and a direction as long as g: lr / 2 / ||a_k g|| = 1 / (2 f_k ||g||).
                smoothness = (changes / np.asarray(self.factors, changes.dtype)).max() / (2 * norm)
                relative = np.where(losses == 0, 0, losses / loss)  # also of a loss of 0
                reached = raw["lr"] * reach(np.asarray(self.factors), relative)
                figures = (lo, hi, (hi - lo) / loss, change, change / norm, smoothness, reached)
            named = zip(ALONG_GRADIENT, figures, strict=True)
            metrics |= {f"{prefix}{name}": np.asarray(figure) for name, figure in named}
        return metrics, carry


def reach(steps: HostArray, losses: HostArray) -> np.float64:
    """The smallest step at which the loss, relative to that at 0, is above `DIVERGED`, both [K], steps ascending; NaN
    counts as above.

    >>> float(reach(np.array([1.0, 100.0]), np.array([1.0, 1e6])))
    10.0
    """
    above = np.flatnonzero(~(losses <= DIVERGED))
    if len(above) == 0 or above[0] == 0:
        return np.float64(steps[0 if len(above) else -1])
    last, first = above[0] - 1, above[0]
    limits = np.finfo(losses.dtype)
    low, high = np.log(np.clip(np.nan_to_num(losses[[last, first]], nan=limits.max), limits.tiny, limits.max))
    share = (math.log(DIVERGED) - low) / (high - low)
    return np.float64(steps[last] * (steps[first] / steps[last]) ** share)


def norm_of(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all entries of all tensors, a scalar.

    >>> norm_of([torch.tensor([[1.0, 2.0]]), torch.tensor(2.0)]).item()
    3.0
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norm_each(tensors)))
    return norm


def random_direction(like: Mapping[str, Tensor], norm: Tensor, seed: int, step: int) -> dict[str, Tensor]:
    """A direction [P], uniform over the sphere of radius `norm`, by parameter name; of the `probe` stream of the run's
    seed, the step and the parameter's name."""
    drawn = {
        name: torch.randn(x.shape, generator=stream(seed, "probe", "landscape", step, name)).to(x)
        for name, x in like.items()
    }
    scale = norm / norm_of(list(drawn.values()))
    return {name: x * scale for name, x in drawn.items()}
