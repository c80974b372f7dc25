"""Norms that take batch norm apart, against torch's batch norm and closed forms: frozen_batch, stopgrad_batch,
mean_only_batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.core.errors import UsageError
from bnlab.core.registry import NORMS
from bnlab.core.spec import RunSpec
from bnlab.record.folder import RunFolder
from bnlab.record.journal import read, without_clock
from bnlab.run.setup import Setup, assemble
from bnlab.run.train import train

C = 5
SHAPES = {0: (11, C), 2: (6, C, 4, 3)}
OPTIONS: dict[str, dict[str, Any]] = {
    "frozen_batch": {"eps": 1e-5, "refresh_every": None, "affine": True},
    "stopgrad_batch": {"eps": 1e-5, "momentum": 0.1, "affine": True},
    "mean_only_batch": {"momentum": 0.1, "affine": True},
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def _norm(name: str, dims: int, **options: Any) -> nn.Module:
    return _with_affine(NORMS.build(name, OPTIONS[name] | options, C, dims).double())


def _torch_norm(dims: int, momentum: float | None = 0.1) -> nn.Module:
    return _with_affine((nn.BatchNorm2d if dims else nn.BatchNorm1d)(C, momentum=momentum).double())


def _with_affine(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for param, start in ((norm.weight, 0.5), (norm.bias, -1.0)):
            if param is not None:
                param.copy_(torch.linspace(start, start + 2, C))
    return norm


def _batch(step: int, dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (1 + step) * torch.randn(SHAPES[dims], generator=generator, dtype=torch.float64) + 0.7


def _over(dims: int) -> tuple[int, ...]:
    return (0, 2, 3) if dims else (0,)


# -- frozen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [0, 2])
def test_frozen_statistics_are_those_of_the_first_batch_in_training_and_in_use(dims: int) -> None:
    norm, batch_norm = _norm("frozen_batch", dims), _torch_norm(dims)
    first = _batch(0, dims)
    torch.testing.assert_close(norm(first), batch_norm(first), **EXACT)
    batch_norm.running_mean = first.mean(dim=_over(dims))
    batch_norm.running_var = first.var(dim=_over(dims), correction=0)
    batch_norm.eval()
    for step in range(1, 4):
        x = _batch(step, dims)
        torch.testing.assert_close(norm.train()(x), batch_norm(x), **EXACT)
        torch.testing.assert_close(norm.eval()(x), batch_norm(x), **EXACT)
    assert int(norm.steps) == 4


@pytest.mark.parametrize("dims", [0, 2])
def test_refreshed_statistics_hold_from_the_step_after(dims: int) -> None:
    norm = _norm("frozen_batch", dims, refresh_every=3)
    source = {0: 0, 1: 0, 2: 0, 3: 0, 4: 3, 5: 3, 6: 3, 7: 6, 8: 6}
    """For each step, the step whose batch gives its statistics."""
    for step, of in source.items():
        batch_norm = _torch_norm(dims).eval()
        batch_norm.running_mean = _batch(of, dims).mean(dim=_over(dims))
        batch_norm.running_var = _batch(of, dims).var(dim=_over(dims), correction=0)
        torch.testing.assert_close(norm(_batch(step, dims)), batch_norm(_batch(step, dims)), **EXACT)


def test_no_gradient_passes_through_frozen_statistics_even_at_the_first_batch() -> None:
    norm = _norm("frozen_batch", 0)
    x = _batch(0, 0).requires_grad_()
    g = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
    (norm(x) * g).sum().backward()
    sd = (x.detach().var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(x.grad, (norm.weight / sd * g).detach(), **EXACT)


def test_before_any_batch_frozen_batch_is_affine_alone() -> None:
    norm = _norm("frozen_batch", 0).eval()
    x = _batch(0, 0)
    torch.testing.assert_close(norm(x), norm.weight * x / (1 + 1e-5) ** 0.5 + norm.bias, **EXACT)
    assert int(norm.steps) == 0


@pytest.mark.parametrize("overrides", [("norm=frozen_batch",), ("norm=frozen_batch", "norm.refresh_every=3")])
def test_a_run_with_frozen_statistics_resumes_bit_for_bit(
    overrides: tuple[str, ...],
    tmp_path: Path,
    spec_of: Callable[..., RunSpec],
    run: Callable[..., Any],
    state_bits: Callable[[Setup], Any],
) -> None:
    spec = spec_of(*overrides, "probes=full", "probes.activations.batch=24")
    whole = run(spec, "whole")
    folder = RunFolder(tmp_path / "cut")
    for steps in (1, 3, 3):  # stopped after one step, after three more, ...
        asked = iter([None] * steps + ["a test"])
        assert train(assemble(spec), folder, stopped=lambda asked=asked: next(asked))["status"] == "interrupted"
    setup = assemble(spec)
    assert train(setup, folder)["status"] == "finished"
    assert state_bits(setup) == state_bits(whole.setup)
    assert [without_clock(record) for record in read(folder.journal_file)] == whole.clockless


# -- no gradient through the statistics ------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [0, 2])
def test_stopgrad_has_the_values_of_batch_norm_and_a_gradient_of_one_term(dims: int, momentum: float | None) -> None:
    norm, batch_norm = _norm("stopgrad_batch", dims, momentum=momentum), _torch_norm(dims, momentum)
    for step in range(3):
        x = _batch(step, dims).requires_grad_()
        out = norm(x)
        torch.testing.assert_close(out, batch_norm(x), **EXACT)
        g = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
        (gradient,) = torch.autograd.grad((out * g).sum(), x)
        for c in range(C):
            sd = (x.detach()[:, c].var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(gradient[:, c], (norm.weight[c] / sd * g[:, c]).detach(), **EXACT)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(norm.get_buffer(name), batch_norm.get_buffer(name), **EXACT)
    torch.testing.assert_close(norm.eval()(x), batch_norm.eval()(x), **EXACT)


def test_a_bias_before_stopgrad_runs_away_while_the_loss_stays() -> None:
    """Ioffe & Szegedy 2015, section 2: the gradient ignores that the mean takes the bias away again."""
    norm = _norm("stopgrad_batch", 0)
    u, bias = _batch(0, 0), torch.zeros(C, dtype=torch.float64, requires_grad=True)
    target = torch.linspace(3, 4, C, dtype=torch.float64)
    losses = []
    for _ in range(20):
        loss = (norm(u + bias) - target).square().sum()
        (gradient,) = torch.autograd.grad(loss, bias)
        with torch.no_grad():
            bias -= 0.1 * gradient
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), torch.full((20,), losses[0]), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(bias.detach() / 20, -0.1 * gradient, rtol=1e-6, atol=0.0)


# -- mean only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [0, 2])
def test_mean_only_takes_the_mean_away_and_nothing_else(dims: int, momentum: float | None, affine: bool) -> None:
    norm = _norm("mean_only_batch", dims, momentum=momentum, affine=affine)
    assert norm.weight is None
    means, running = [], torch.zeros(C, dtype=torch.float64)
    for step in range(4):
        x = _batch(step, dims).requires_grad_()
        out = norm(x)
        g = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
        (gradient,) = torch.autograd.grad((out * g).sum(), x)
        for c in range(C):
            beta = norm.bias[c] if affine else 0.0
            torch.testing.assert_close(out[:, c], x[:, c] - x[:, c].mean() + beta, **EXACT)
            torch.testing.assert_close(gradient[:, c], g[:, c] - g[:, c].mean(), **EXACT)
        means.append(x.detach().mean(dim=_over(dims)))
        running = torch.stack(means).mean(dim=0) if momentum is None else 0.9 * running + 0.1 * means[-1]
        torch.testing.assert_close(norm.running_mean, running, **EXACT)
    wide = running.view(1, C, *([1] * dims))
    beta = norm.bias.view(wide.shape) if affine else 0.0
    torch.testing.assert_close(norm.eval()(x), x - wide + beta, **EXACT)


def test_refresh_every_is_at_least_one() -> None:
    with pytest.raises(UsageError, match=r"^norm\.refresh_every: must be at least 1, got 0\."):
        _norm("frozen_batch", 0, refresh_every=0)
