"""Slow, obvious twins of the probes, written from the definitions: what the tests compare with, and what
benchmarks/probes.py puts beside the probes' times. Legend: B batch, C channels, H W space, L sites.

A twin knows the weights before and after one step, the batch and the data, and computes everything anew: its own
forward, its own statistics channel by channel in Python's floats, its own gradients by plain autograd. Each returns
figures by their names in the journal, None where there is none. Meant for float64.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.core.seeds import stream
from bnlab.core.spec import RunSpec
from bnlab.core.study import evenly
from bnlab.data.base import Split
from bnlab.net.build import Site
from bnlab.probes._histograms import HISTOGRAM_BINS, HISTOGRAM_LIMIT
from bnlab.run.setup import Setup

Figures = dict[str, Any]
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One step of a run: everything that was there before and after it."""

    setup: Setup
    step: int
    before: StateDict
    after: StateDict

    @property
    def spec(self) -> RunSpec:
        return self.setup.spec

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.setup.net.sites

    @property
    def batch(self) -> Split:
        return self.setup.batches.at(self.step)

    def option(self, probe: str, name: str) -> Any:
        return self.spec.probes.options[probe][name]

    def net(self, state: StateDict | None = None) -> nn.Module:
        """A net of its own, in train mode, to be changed at will: in the state before the step, or in another."""
        net = copy.deepcopy(self.setup.net.module)
        net.load_state_dict(dict(self.before if state is None else state))
        return net.train()

    def loss(self, net: nn.Module) -> Tensor:
        """Its loss on the step's training batch."""
        return self.setup.objective(net(self.batch.x), self.batch.y)

    def gradient(self, net: nn.Module) -> dict[str, Tensor]:
        """Of that loss, by plain autograd."""
        params = dict(net.named_parameters())
        return dict(zip(params, torch.autograd.grad(self.loss(net), list(params.values())), strict=True))


def outputs_by_part(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of every part, in a net that is a sequence of them."""
    seen = {}
    for name, part in net.named_children():
        x = seen[name] = part(x)
    return seen


# -- a forward pass of its own -------------------------------------------------------------------------------------


def batch_norm(x: Tensor, state: StateDict, name: str, eps: float) -> Tensor:
    """With the batch's own statistics; gamma and beta."""
    over = [0, *range(2, x.ndim)]
    shape = [1, -1, *([1] * (x.ndim - 2))]
    mean = x.mean(dim=over, keepdim=True)
    var = ((x - mean) ** 2).mean(dim=over, keepdim=True)
    x_hat = (x - mean) / (var + eps).sqrt()
    return state[f"{name}_norm.weight"].view(shape) * x_hat + state[f"{name}_norm.bias"].view(shape)


def affine(site: Site, state: StateDict, x: Tensor) -> Tensor:
    weight, bias = state[f"{site.name}_affine.weight"], state.get(f"{site.name}_affine.bias")
    if weight.ndim == 2:
        return F.linear(x.flatten(1), weight, bias)
    assert isinstance(site.affine, nn.Conv2d)
    return F.conv2d(x, weight, bias, stride=site.affine.stride, padding=weight.shape[2] // 2)


def forward(setup: Setup, state: StateDict, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """pre and act_in of every site, in batch mode; the last pre is the output. Of a net with batch norms, or none."""
    spec = setup.spec
    act = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda x: x}[
        spec.model.activation
    ]
    norm_first = spec.norm.position == "before"
    pres, act_ins = [], []
    for site in setup.net.sites:
        if site.name.endswith("_out") and x.ndim == 4:
            x = x.mean(dim=(2, 3))
        pre = affine(site, state, x)
        normed = f"{site.name}_norm.weight" in state
        act_in = batch_norm(pre, state, site.name, spec.norm.options["eps"]) if normed and norm_first else pre
        x = pre if site.name.endswith("_out") else act(act_in)
        if normed and not norm_first:
            x = batch_norm(x, state, site.name, spec.norm.options["eps"])
        pres.append(pre)
        act_ins.append(act_in)
    return pres, act_ins


def objective(spec: RunSpec, outputs: Tensor, y: Tensor) -> Tensor:
    if spec.loss == "mse":
        loss = (outputs - y).pow(2)
        return loss.sum() if spec.reduction == "sum" else loss.mean()
    losses = outputs.logsumexp(dim=1) - outputs[torch.arange(len(y)), y]
    return losses.sum() if spec.reduction == "sum" else losses.mean()


def gradients_at(
    setup: Setup, state: StateDict, names: Sequence[str], x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """dL/dparams by name, and dL/dpre of every site."""
    with torch.enable_grad():
        params = {name: state[name].clone().requires_grad_() for name in names}
        pres, _ = forward(setup, params, x)
        loss = objective(setup.spec, pres[-1], y)
        grads = torch.autograd.grad(loss, [*params.values(), *pres])
    return dict(zip(names, grads[: len(names)], strict=True)), list(grads[len(names) :])


# -- statistics in plain Python ------------------------------------------------------------------------------------


def norm_of(*tensors: Tensor) -> float:
    return math.sqrt(sum(float(value) ** 2 for tensor in tensors for value in tensor.flatten().tolist()))


def channels_of(x: Tensor) -> list[list[float]]:
    """The values of each channel, in one order."""
    return [x.detach()[:, c].flatten().tolist() for c in range(x.shape[1])]


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance_of(values: Sequence[float], *, ddof: int = 0) -> float:
    mean = mean_of(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - ddof)


Moments = list[tuple[float, float]]


def moments_of(x: Tensor) -> Moments:
    """Mean and biased variance, channel by channel."""
    return [(mean_of(values), variance_of(values)) for values in channels_of(x)]


def drift_mean(now: Moments, then: Moments) -> float:
    return float(np.median([abs(m - m0) / math.sqrt((v + v0) / 2) for (m, v), (m0, v0) in zip(now, then, strict=True)]))


def drift_logvar(now: Moments, then: Moments) -> float:
    return float(np.median([abs(math.log(v) - math.log(v0)) for (_, v), (_, v0) in zip(now, then, strict=True)]))


def counts_of(x: np.ndarray) -> list[float]:
    """By the definition of the bins: uniform in asinh, with tails below and above."""
    counts = [0.0] * (HISTOGRAM_BINS + 2)
    limit = math.asinh(HISTOGRAM_LIMIT)
    for value in x.ravel().tolist():
        place = (math.asinh(value) + limit) / (2 * limit) * HISTOGRAM_BINS
        counts[0 if place < 0 else HISTOGRAM_BINS + 1 if place > HISTOGRAM_BINS else 1 + int(place)] += 1
    return counts


# -- the probes ----------------------------------------------------------------------------------------------------


def batch_moments(moment: Moment) -> Figures:
    pres, _ = forward(moment.setup, moment.before, moment.batch.x)
    moments = [moments_of(pre) for pre in pres]
    return {
        "batch_mean": [np.mean([m for m, _ in of]) for of in moments],
        "batch_var": [np.mean([v for _, v in of]) for of in moments],
    }


def probed(moment: Moment) -> dict[str, list[Tensor]]:
    """The sites on the probe batch, by measuring point."""
    pres, act_ins = forward(moment.setup, moment.before, moment.setup.observer.probe_batch.x)
    return {"pre": pres, "act_in": act_ins}


def activations(moment: Moment, last: Moment | None = None, first: Moment | None = None) -> Figures:
    """Without histograms and dead units; drift against the `last` measurement and the `first`, where given."""
    expected: Figures = {}
    then = {"": last and probed(last), "_total": first and probed(first)}
    for point, tensors in probed(moment).items():
        now = [moments_of(x) for x in tensors]
        found = {
            "act_mean": [np.mean([m for m, _ in of]) for of in now],
            "act_var": [np.mean([v for _, v in of]) for of in now],
            "sampling_floor": [_floor(x, of) for x, of in zip(tensors, now, strict=True)],
        }
        unit = moment.option("activations", "unit")
        for share in (15, 50, 85):
            found[f"act_p{share}"] = [np.percentile(_unit(x.numpy(), unit), share) for x in tensors]
        for suffix, other in then.items():
            if other is not None:
                pairs = [(a, moments_of(x)) for a, x in zip(now, other[point], strict=True)]
                found[f"drift_mean{suffix}"] = [drift_mean(*pair) for pair in pairs]
                found[f"drift_logvar{suffix}"] = [drift_logvar(*pair) for pair in pairs]
        expected |= {f"{name}.{point}": values for name, values in found.items()}
    return expected


def _floor(x: Tensor, moments: Moments) -> float:
    """The two halves' means, in units of the whole probe batch's standard deviation."""
    half = len(x) // 2
    ends = [[m for m, _ in moments_of(part)] for part in (x[:half], x[half:])]
    return float(np.median([abs(a - b) / math.sqrt(v) for a, b, (_, v) in zip(*ends, moments, strict=True)]))


def _unit(x: np.ndarray, unit: int) -> np.ndarray:
    of_unit = x[:, unit % x.shape[1]]
    return of_unit if x.ndim == 2 else of_unit[:, x.shape[2] // 2, x.shape[3] // 2]


def dead_fraction(moment: Moment) -> list[float | None]:
    """Of every site of a net with ReLU."""
    act_ins = probed(moment)["act_in"]
    dead: list[float | None] = []
    for x in act_ins[:-1]:
        dead.append(sum(bool((x[:, c] <= 0).all()) for c in range(x.shape[1])) / x.shape[1])
    return [*dead, None]


def histograms(moment: Moment) -> dict[str, list[float]]:
    """Of the chosen sites."""
    chosen = evenly(len(moment.sites), moment.option("activations", "histogram_sites"))
    return {
        f"histogram.{point}.{moment.sites[i].name}": counts_of(tensors[i].numpy())
        for point, tensors in probed(moment).items()
        for i in chosen
    }


def gradients(moment: Moment) -> Figures:
    setup, before, after, batch = moment.setup, moment.before, moment.after, moment.batch
    params = [name for name, _ in setup.net.module.named_parameters()]
    weights = [f"{site.name}_affine.weight" for site in moment.sites]
    grads, deltas = gradients_at(setup, before, params, batch.x, batch.y)
    by_site = [norm_of(grads[name]) for name in weights]
    half = len(batch) // 2
    parts = [(batch.x[:half], batch.y[:half]), (batch.x[half:], batch.y[half:])]
    a, b = (gradients_at(setup, before, params, x, y)[0] for x, y in parts)
    difference, total = (norm_of(*(a[name] + sign * b[name] for name in params)) for sign in (-1, 1))
    return {
        "grad_norm": by_site,
        "grad_norm_total": norm_of(*grads.values()),
        "first_over_last": by_site[0] / by_site[-1],
        "update_ratio": [norm_of(after[name] - before[name]) / norm_of(before[name]) for name in weights],
        "delta_norm": [norm_of(delta) for delta in deltas],
        "grad_noise": difference / total,
    }


def walk(moment: Moment, direction: Mapping[str, Tensor], factors: Sequence[float]) -> Figures:
    """The landscape's figures along a direction, from nets that really walk there."""
    lr = moment.spec.optim.lr
    start = moment.gradient(moment.net())
    losses, changes, smoothness = [], [], []
    for factor in factors:
        net, a = moment.net(), factor * lr
        with torch.no_grad():
            for name, param in net.named_parameters():
                param.sub_(a * direction[name])
        losses.append(moment.loss(net).item())
        there = moment.gradient(net)
        changes.append(norm_of(*(start[name] - there[name] for name in start)))
        smoothness.append(changes[-1] / (a * norm_of(*direction.values())))
    return {
        "loss_lo": min(losses),
        "loss_hi": max(losses),
        "loss_range": (max(losses) - min(losses)) / moment.loss(moment.net()).item(),
        "grad_change": max(changes),
        "grad_change_rel": max(changes) / norm_of(*start.values()),
        "eta_beta_half": lr * max(smoothness) / 2,
        "reach": reach([factor * lr for factor in factors], [x / moment.loss(moment.net()).item() for x in losses]),
    }


def reach(steps: Sequence[float], losses: Sequence[float]) -> float:
    """The first step, on lines between points in the logs, above 1000, by bisection."""
    for (a, low), (b, high) in itertools.pairwise(zip(steps, losses, strict=True)):
        if high > 1000:
            for _ in range(100):
                middle = math.sqrt(a * b)
                there = math.sqrt(low * high)
                a, b, low, high = (a, middle, low, there) if there > 1000 else (middle, b, there, high)
            return a
    return steps[-1]


def landscape(moment: Moment) -> Figures:
    """Along the gradient, at the points of the spec."""
    low, high, points = (moment.option("landscape", name) for name in ("low", "high", "points"))
    factors = [low * (high / low) ** (k / (points - 1)) for k in range(points)]
    return walk(moment, moment.gradient(moment.net()), factors)


def ics(moment: Moment) -> Figures:
    """From nets whose layers really are updated one by one: all of their parameters, biases, gamma and beta too."""
    found: Figures = {"ics": [], "ics_rel": [], "ics_cos": []}
    for index, site in enumerate(moment.sites):
        weight = f"{site.name}_affine.weight"
        g = moment.gradient(moment.net())[weight].flatten()
        net = moment.net()
        with torch.no_grad():
            for name, param in net.named_parameters():
                if any(name.startswith(f"{earlier.name}_") for earlier in moment.sites[:index]):
                    param.copy_(moment.after[name])
        g_updated = moment.gradient(net)[weight].flatten()
        change, norm = float((g - g_updated).norm()), float(g.norm())
        found["ics"].append(change)
        found["ics_rel"].append(change / norm)
        found["ics_cos"].append(float(g @ g_updated) / norm / float(g_updated.norm()))
    return found


def lipschitz(moment: Moment) -> Figures:
    """At batch norms before the nonlinearity; the error is this side's own."""
    seen: dict[str, Tensor] = {}
    net, x = moment.net(), moment.batch.x
    for name, part in net.named_children():
        x = seen[name] = part(x)
        x.retain_grad() if x.requires_grad else None
    moment.setup.objective(x, moment.batch.y).backward()
    names = ("thm41_error", "thm41_raw", "thm41_mean", "thm41_corr")
    found: Figures = {name: [] for name in names}
    for site in moment.sites:
        figures: tuple[float | None, ...] = (None,) * 4
        if f"{site.name}_norm" in seen:
            gammas = net.get_parameter(f"{site.name}_norm.weight").tolist()
            y, z = seen[f"{site.name}_affine"], seen[f"{site.name}_norm"]
            figures = _theorem(y, z, gammas, moment.spec.norm.options["eps"])
        for name, figure in zip(names, figures, strict=True):
            found[name].append(figure)
    return found


def _theorem(y: Tensor, z: Tensor, gammas: list[float], eps: float) -> tuple[float, float, float, float]:
    """Error, raw, mean and corr of one site, number by number; y and z with their gradients."""
    assert y.grad is not None
    assert z.grad is not None
    worst, sums = 0.0, [0.0, 0.0, 0.0]
    of_channels = zip(channels_of(y), channels_of(y.grad), channels_of(z.grad), gammas, strict=True)
    for ys, belows, gs, gamma in of_channels:
        m = len(ys)
        mu = math.fsum(ys) / m
        var = math.fsum((value - mu) ** 2 for value in ys) / m
        sigma = math.sqrt(var + eps)
        y_hat = [(value - mu) / sigma for value in ys]
        q = math.fsum(value**2 for value in y_hat) / m
        factor = gamma**2 / sigma**2
        raw = factor * math.fsum(g**2 for g in gs)
        mean = factor * math.fsum(gs) ** 2 / m
        corr = factor * (2 - q) * math.fsum(g * h for g, h in zip(gs, y_hat, strict=True)) ** 2 / m
        left, right = math.fsum(value**2 for value in belows), raw - mean - corr
        if raw > 0:
            worst = max(worst, abs(left - right) / right)
        sums = [total + term for total, term in zip(sums, (raw, mean, corr), strict=True)]
    return worst, sums[0], sums[1], sums[2]


def hessian(moment: Moment) -> np.ndarray:
    """Row by row, from the loss of a net of its own."""
    net = moment.net()
    params = list(net.parameters())
    grads = torch.autograd.grad(moment.loss(net), params, create_graph=True)
    rows = []
    for entry in torch.cat([grad.flatten() for grad in grads]):
        row = torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows).numpy()


def sharpness(moment: Moment) -> Figures:
    """All eigenvalues of the whole Hessian written out, of which the largest."""
    largest = np.linalg.eigvalsh(hessian(moment))[::-1][: moment.option("sharpness", "top")]
    names = ["lambda_max", *(f"lambda_{rank}" for rank in range(2, len(largest) + 1))]
    if len(largest) == 10:
        vectors = np.linalg.eigh(hessian(moment))[1][:, -10:]
        g = torch.cat([grad.flatten() for grad in moment.gradient(moment.net()).values()]).numpy()
        names = [*names, "lambda_max_over_10", "gradient_in_top_10"]
        largest = np.append(largest, [largest[0] / largest[9], np.sum((vectors.T @ g) ** 2) / np.sum(g**2)])
    return dict(zip(names, largest, strict=True)) | {"eta_lambda_half": moment.spec.optim.lr / 2 * largest[0]}


def bn_statistics(moment: Moment) -> Figures:
    """Batch after batch through a fresh copy of the net after the update; every value of every channel kept."""
    data, size = moment.setup.dataset.train, len(moment.batch)
    order = torch.randperm(len(data), generator=stream(moment.spec.seed, "probe", "bn_statistics"))
    batches = max(1, min(moment.option("bn_statistics", "examples"), len(data)) // size)
    inputs: dict[str, list[list[list[float]]]] = {}  # by norm: for each batch, for each channel, its values
    for k in range(batches):
        x = data.x[order[k * size : (k + 1) * size]]
        with torch.no_grad():
            seen = outputs_by_part(moment.net(moment.after), x)
        names = list(seen)
        for before, name in itertools.pairwise(names):
            if name.endswith("_norm"):
                inputs.setdefault(name, []).append(channels_of(seen[before]))
    named = (
        "mean_gap",
        "var_gap",
        "mean_noise",
        "sd_noise",
        "mean_sd",
        "gamma_mean",
        "gamma_sd",
        "beta_mean",
        "beta_sd",
    )
    found: Figures = {f"bn_{name}": [] for name in named}
    for site in moment.sites:
        norm, figures = f"{site.name}_norm", [None] * 9
        if norm in inputs:
            figures = [*_against_population(inputs[norm], moment.after, norm)]
            for of_channels in (moment.after[f"{norm}.weight"].tolist(), moment.after[f"{norm}.bias"].tolist()):
                figures += [mean_of(of_channels), math.sqrt(variance_of(of_channels))]
        for name, figure in zip(found, figures, strict=True):
            found[name].append(figure)
    return found


def _against_population(batches: list[list[list[float]]], state: StateDict, norm: str) -> tuple[float, ...]:
    """Gaps and noises of one site: batches[k][c] are the values of channel c in batch k."""
    gaps: list[tuple[float, float]] = []
    noises: list[tuple[float, float, float]] = []
    running = zip(state[f"{norm}.running_mean"].tolist(), state[f"{norm}.running_var"].tolist(), strict=True)
    for c, (running_mean, running_var) in enumerate(running):
        everything = [value for batch in batches for value in batch[c]]
        m = len(batches[0][c])
        mu, var = mean_of(everything), variance_of(everything, ddof=1)
        rho = math.fsum((x - mu) ** 4 for x in everything) / len(everything) / variance_of(everything) ** 2 - 3
        gaps.append((abs(running_mean - mu) / math.sqrt(var), abs(math.log(running_var / var))))
        if len(batches) > 1:
            sd_of_means = math.sqrt(variance_of([mean_of(batch[c]) for batch in batches], ddof=1))
            sd_of_sds = math.sqrt(variance_of([math.sqrt(variance_of(batch[c])) for batch in batches], ddof=1))
            by_law = math.sqrt(var) / math.sqrt(m), math.sqrt(var) * math.sqrt((rho + 2) / (4 * m))
            noises.append((sd_of_means / by_law[0], sd_of_sds / by_law[1], sd_of_means / math.sqrt(var)))
    mean_gap, var_gap = (mean_of(values) for values in zip(*gaps, strict=True))
    return mean_gap, var_gap, *(map(float, np.median(noises, axis=0)) if noises else (math.nan,) * 3)


def shift_drift(moment: Moment) -> Figures:
    """Batch after batch through a fresh copy of the net after the update, in either mode; every value of every channel
    kept, of training and of test examples."""
    found: Figures = {f"{name}.{mode}": [] for mode in ("running", "batch") for name in ("shift_mean", "shift_logvar")}
    for mode in ("running", "batch"):
        train, test = (
            _at_pre(moment, split, mode) for split in (moment.setup.dataset.train, moment.setup.dataset.test)
        )
        for site in moment.sites:
            apart: list[tuple[float, float]] = []
            for one, other in zip(train[site.name], test[site.name], strict=True):
                var = variance_of(one)
                moved = abs(mean_of(other) - mean_of(one)) / math.sqrt(var)
                apart.append((moved, abs(math.log(variance_of(other) / var))))
            for name, values in zip(("shift_mean", "shift_logvar"), zip(*apart, strict=True), strict=True):
                found[f"{name}.{mode}"].append(float(np.median(values)))
    return found


def _at_pre(moment: Moment, split: Split, mode: str) -> dict[str, list[list[float]]]:
    """By site, for each channel all its values."""
    size = min(len(moment.batch), len(split))
    order = torch.randperm(len(split), generator=stream(moment.spec.seed, "probe", "shift_drift"))
    kept: dict[str, list[list[float]]] = {}
    for k in range(max(1, min(moment.option("shift_drift", "examples"), len(split)) // size)):
        with torch.no_grad():
            net = moment.net(moment.after).train(mode == "batch")
            seen = outputs_by_part(net, split.x[order[k * size : (k + 1) * size]])
        for site in moment.sites:
            channels = channels_of(seen[f"{site.name}_affine"])
            for values, more in zip(kept.setdefault(site.name, [[] for _ in channels]), channels, strict=True):
                values.extend(more)
    return kept


def propagation(moment: Moment) -> Figures:
    """From nets whose first layer, or whose every layer, really is another one."""
    first = f"{moment.sites[0].name}_"
    weight = moment.before[f"{first}affine.weight"]
    u = torch.randn(weight.shape, generator=stream(moment.spec.seed, "probe", "propagation", moment.step))
    changed: dict[str, StateDict] = {
        "own": {name: value for name, value in moment.after.items() if name.startswith(first)},
        "random": {f"{first}affine.weight": weight + 0.001 * norm_of(weight) * u.double() / norm_of(u)},
        "all": moment.after,
    }
    old, _ = forward(moment.setup, moment.before, moment.batch.x)
    found: Figures = {}
    for name, values in changed.items():
        new, _ = forward(moment.setup, {**moment.before, **values}, moment.batch.x)
        found[f"propagation.{name}"] = [norm_of(b - a) / norm_of(a) for a, b in zip(old, new, strict=True)]
    return found


def shatter(moment: Moment) -> Figures:
    """The derivative of the summed output to every t of the line, and lag 1 as sums over numbers."""
    draws = stream(moment.spec.seed, "probe", "shatter")
    like = moment.batch.x[0]
    x0, u = (torch.randn(like.shape, generator=draws).to(like) for _ in range(2))
    t = torch.tensor([-2 + 4 * k / 255 for k in range(256)], dtype=like.dtype, requires_grad=True)
    output = moment.net().train()(torch.stack([x0 + a * u for a in t]))[:, 0].sum()
    g = torch.autograd.grad(output, t)[0].tolist()
    mean = math.fsum(g) / 256
    lagged = math.fsum((a - mean) * (b - mean) for a, b in itertools.pairwise(g))
    return {"input_grad_lag_1": lagged / math.fsum((a - mean) ** 2 for a in g)}


def memory(moment: Moment) -> Figures:
    """The tensors that the nodes of the loss's graph say that they saved."""
    net, batch = moment.net(), moment.batch
    net.train()
    loss = moment.setup.objective(net(batch.x), batch.y)
    nodes, waiting, saved = set(), [loss.grad_fn], []
    while waiting:
        if (node := waiting.pop()) is None or node in nodes:
            continue
        nodes.add(node)
        saved += [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        waiting += [following for following, _ in node.next_functions]
    tensors = [x for x in saved if isinstance(x, Tensor)]
    own = {x.untyped_storage().data_ptr() for x in (*net.parameters(), batch.x, batch.y)}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    kept = sum(size for place, size in storages.items() if place not in own)
    return {"saved_bytes": kept, "parameters": sum(p.numel() for p in net.parameters())}


def outs(moment: Moment) -> list[Tensor]:
    """`out` of every site on the probe batch, of a net that is a sequence of its parts."""
    with torch.no_grad():
        seen = outputs_by_part(moment.net(), moment.setup.observer.probe_batch.x)
    return [[x for name, x in seen.items() if name.startswith(f"{site.name}_")][-1] for site in moment.sites]


def representation(moment: Moment) -> Figures:
    """Eigenvalues, pairs of examples and channels one by one."""
    of_gram = ("gram_rank", "gram_cos", "isometry_gap", "orthogonality_gap", "gram_outliers")
    names = (*of_gram, "channel_squared_mean", "channel_variance")
    found: Figures = {name: [] for name in names}
    for out, pre in zip(outs(moment), probed(moment)["pre"], strict=True):
        h = out.flatten(1).numpy()
        gram, count = h @ h.T, len(h)
        eigenvalues = np.linalg.eigvalsh(gram)
        cosines = [
            float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
            for a, b in itertools.combinations(h, 2)
            if a.any() and b.any()
        ]
        regular = np.linalg.matrix_rank(h) == count
        gap = math.log(np.trace(gram) / count) - np.linalg.slogdet(gram)[1] / count if regular else None
        found["gram_rank"].append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
        found["gram_cos"].append(mean_of(cosines))
        found["isometry_gap"].append(gap)
        found["orthogonality_gap"].append(norm_of(torch.tensor(gram / np.trace(gram) - np.eye(count) / count)))
        found["gram_outliers"].append(count - max(map(len, clusters_of(h))))
        found["channel_squared_mean"].append(mean_of([mean**2 for mean, _ in moments_of(pre)]))
        found["channel_variance"].append(mean_of([var for _, var in moments_of(pre)]))
    return found


def clusters_of(h: np.ndarray) -> list[set[int]]:
    """The examples that a walk from neighbour to neighbour reaches; neighbours have a cosine above 0.9."""
    left, clusters = set(range(len(h))), []
    while left:
        reached = [left.pop()]
        for i in reached:
            near = {j for j in left if float(h[i] @ h[j]) > 0.9 * math.sqrt(float(h[i] @ h[i]) * float(h[j] @ h[j]))}
            left -= near
            reached += near
        clusters.append(set(reached))
    return clusters


def channels(moment: Moment) -> Figures:
    """From a pass through the parts of a net, one after the other, in which the channel really is another one."""
    names = ("channel_scaled", "channel_scaled_max", "channel_removed", "channel_removed_max")
    found: Figures = {name: [] for name in names}

    def outputs(after: str = "", channel: int = 0, removed: bool = False) -> Tensor:
        x = moment.setup.observer.probe_batch.x
        for name, part in moment.net().named_children():
            x = part(x)
            if name == after:
                x = x.clone()
                x[:, channel] = x[:, channel].mean() if removed else 10 * x[:, channel]
        return x

    with torch.no_grad():
        plain, parts = outputs(), list(dict(moment.net().named_children()))
        for site, out in zip(moment.sites[:-1], outs(moment), strict=False):
            last = next(part for part in reversed(parts) if part.startswith(f"{site.name}_"))
            chosen = evenly(out.shape[1], moment.option("channels", "channels"))
            for removed in (False, True):
                moved = [norm_of(outputs(last, channel, removed) - plain) / norm_of(plain) for channel in chosen]
                found[names[2 * removed]].append(float(np.median(moved)))
                found[names[2 * removed + 1]].append(max(moved))
    return {name: [*values, None] for name, values in found.items()}


def scale(moment: Moment) -> Figures:
    """Number by number; of plain gradient descent."""
    names = ("weight_grad_cos", "affine_norm", "norm_law_error", "effective_lr", "weight_angle")
    found: Figures = {name: [] for name in names}
    grads, lr = moment.gradient(moment.net()), moment.spec.optim.lr
    for site in moment.sites:
        name = f"{site.name}_affine.weight"
        w, g, after = moment.before[name], grads[name], moment.after[name]
        square = norm_of(w) ** 2
        dot = math.fsum(a * b for a, b in zip(w.flatten().tolist(), g.flatten().tolist(), strict=True))
        found["weight_grad_cos"].append(dot / norm_of(w) / norm_of(g))
        found["affine_norm"].append(norm_of(w))
        found["norm_law_error"].append(abs(norm_of(after) ** 2 - square - lr**2 * norm_of(g) ** 2) / square)
        found["effective_lr"].append(lr / square)
        turned = math.fsum(a * b for a, b in zip(w.flatten().tolist(), after.flatten().tolist(), strict=True))
        found["weight_angle"].append(math.acos(turned / norm_of(w) / norm_of(after)))
    return found


def margins(moment: Moment) -> Figures:
    """Example by example, output by output."""
    pres, _ = forward(moment.setup, moment.before, moment.batch.x)
    rows = zip(pres[-1].tolist(), moment.batch.y.tolist(), strict=True)
    found = [f[y] - max(f[:y] + f[y + 1 :]) for f, y in rows]
    low, high = min(found), max(found)
    return {"margin_min": low, "margin_max": high, "margin_ratio": low / high if high > 0 else None}


def neighbours(moment: Moment) -> Figures:
    """Example by example: each alone in two batches of its own, and moments by Python's floats."""
    m, x = moment.option("neighbours", "size"), moment.setup.observer.probe_batch.x
    changes, plain = [], []
    for row in range(m):
        for column in range(m):
            place = (row + column) % m
            in_row = [m * row + (other - row) % m for other in range(m)]
            in_column = [m * ((other - column) % m) + column for other in range(m)]
            with torch.no_grad():
                f, moved = moment.net()(x[in_row])[place], moment.net()(x[in_column])[place]
            changes.append(norm_of(moved - f) ** 2)
            plain.append(f)
    centre = torch.stack(plain).mean(dim=0)
    spread = math.fsum(norm_of(f - centre) ** 2 for f in plain)
    found: Figures = {"neighbour_change": math.sqrt(math.fsum(changes) / spread)}
    sites = probed(moment)
    for name, moment_of in (("example_mean_kept", mean_of), ("example_scale_kept", sd_of)):
        found[name] = []
        for site, pre, act_in in zip(moment.sites, sites["pre"], sites["act_in"], strict=True):
            z, y = ([moment_of(example.flatten().tolist()) for example in of] for of in (pre, act_in))
            rms = math.sqrt(mean_of([value**2 for value in act_in.flatten().tolist()]))
            kept = float(np.corrcoef(z, y)[0, 1]) ** 2 if math.sqrt(variance_of(y)) >= 1e-3 * rms else 0.0
            found[name].append(None if site.norm is not None and not site.norm_first else kept)
    return found


def saturation(moment: Moment) -> Figures:
    """Value by value, of a net with one nonlinearity; the head has none."""
    act = moment.spec.model.activation
    shares: list[float | None] = []
    for x in probed(moment)["act_in"][:-1]:
        values = x.flatten().tolist()
        if act == "tanh":
            beyond = [abs(math.tanh(value)) > 0.97 for value in values]
        else:
            outs = [1 / (1 + math.exp(-value)) for value in values]
            beyond = [out < 0.03 or out > 0.97 for out in outs]
        shares.append(sum(beyond) / len(beyond) if act in ("tanh", "sigmoid") else None)
    return {"saturated_fraction": [*shares, None]}


def gradient_histograms(moment: Moment) -> Figures:
    """With histograms, of the sites that are chosen."""
    weights = [f"{site.name}_affine.weight" for site in moment.sites]
    params = [name for name, _ in moment.setup.net.module.named_parameters()]
    grads, deltas = gradients_at(moment.setup, moment.before, params, moment.batch.x, moment.batch.y)
    of = {"weight_grad": [grads[name] for name in weights], "delta": deltas}
    sds = {point: [spread_of(x) for x in tensors] for point, tensors in of.items()}
    ratios = [sd / spread_of(moment.before[name]) for sd, name in zip(sds["weight_grad"], weights, strict=True)]
    found: Figures = {"weight_grad_sd": sds["weight_grad"], "delta_sd": sds["delta"], "grad_data_ratio": ratios}
    for index in evenly(len(weights), moment.option("gradient_histograms", "histogram_sites")):
        for point, tensors in of.items():
            counts = counts_of((tensors[index] / sds[point][index]).numpy())
            found[f"histogram.{point}.{moment.sites[index].name}"] = counts
    return found


def spread_of(x: Tensor) -> float:
    """The standard deviation of all values."""
    return math.sqrt(variance_of(x.flatten().tolist()))


def sd_of(values: Sequence[float]) -> float:
    return math.sqrt(variance_of(values, ddof=1))


TWINS: dict[str, Callable[[Moment], Figures]] = {
    "batch_moments": batch_moments,
    "activations": activations,
    "gradients": gradients,
    "landscape": landscape,
    "ics": ics,
    "lipschitz": lipschitz,
    "sharpness": sharpness,
    "bn_statistics": bn_statistics,
    "shift_drift": shift_drift,
    "propagation": propagation,
    "memory": memory,
    "representation": representation,
    "shatter": shatter,
    "channels": channels,
    "scale": scale,
    "saturation": saturation,
    "gradient_histograms": gradient_histograms,
    "margins": margins,
    "neighbours": neighbours,
}
"""By the name of the probe."""
