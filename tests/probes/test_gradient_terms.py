"""How the terms of a weight's gradient cancel, against sums over terms that are all written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from bnlab.core.spec import RunSpec
from bnlab.core.state import State
from bnlab.data.base import Split
from bnlab.net.build import Net, Site
from bnlab.probes.base import Metrics, Snapshot, figures
from bnlab.probes.gradients import Gradients, excess_kurtosis, median_ratio

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "probes.points=100", "steps=5")


def _terms(affine: nn.Module, x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Every term of every entry of the weight's gradient: [*weight, terms], one term an example and position."""
    if isinstance(affine, nn.Linear):
        return np.einsum("bo,bi->oib", delta, x)
    assert isinstance(affine, nn.Conv2d)
    (up, left), (down, right), (far, wide) = affine.padding, affine.stride, affine.dilation
    assert isinstance(up, int)
    assert isinstance(left, int)
    padded = np.pad(x, ((0, 0), (0, 0), (up, up), (left, left)))
    outs, ins, height, width = affine.weight.shape
    rows, columns = delta.shape[2:]
    terms = np.zeros((*affine.weight.shape, len(x), rows, columns))
    for o in range(outs):
        group = o // (outs // affine.groups)
        for i in range(ins):
            for h in range(height):
                for w in range(width):
                    for row in range(rows):
                        for column in range(columns):
                            seen = padded[:, group * ins + i, row * down + h * far, column * right + w * wide]
                            terms[o, i, h, w, :, row, column] = delta[:, o, row, column] * seen
    return terms.reshape(*affine.weight.shape, -1)


def _passing(affines: list[nn.Module], forward: Callable[[], Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each affine map is given, and the gradient of the loss at what it returns."""
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [part.register_forward_hook(lambda part, args, out: seen.append((args[0], out))) for part in affines]
    loss = forward()
    for handle in handles:
        handle.remove()
    deltas = torch.autograd.grad(loss, [out for _, out in seen])
    return [(x.detach().numpy(), delta.numpy()) for (x, _), delta in zip(seen, deltas, strict=True)]


def _expected(affine: nn.Module, x: np.ndarray, delta: np.ndarray) -> tuple[float, float]:
    terms = _terms(affine, x, delta)
    a, b = np.abs(terms).sum(axis=-1), np.abs(terms.sum(axis=-1))
    real = b > 1e-13 * a  # what is 0 in truth is so but for rounding, in another order of summation
    return float(np.median(a[real] / b[real])), float(scipy.stats.kurtosis(terms.sum(axis=-1).ravel()))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_of_a_run_are_those_of_all_terms_before_the_update(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """On the training batch, the convolutions with strides 1 and 2, and padded."""
    run = trained(spec_of(*PROBED, "dtype=float64", f"norm={norm}", "optim.momentum=0.5", model=model))
    for step, record in list(enumerate(run.records))[::2]:
        moment = run.moment(step)
        net = moment.net()
        affines = [net.get_submodule(f"{site.name}_affine") for site in run.setup.net.sites]
        seen = _passing(affines, lambda net=net, moment=moment: moment.loss(net))
        expected = [_expected(affine, *passed) for affine, passed in zip(affines, seen, strict=True)]
        np.testing.assert_allclose(record["abs_over_sum"], [ratio for ratio, _ in expected], rtol=1e-8)
        np.testing.assert_allclose(record["grad_kurtosis"], [kurtosis for _, kurtosis in expected], rtol=1e-8)


def _measured(affine: nn.Module, x: Tensor, weights: Tensor) -> Metrics:
    """A net of the affine map alone, with the loss sum(weights * outputs), so that delta is `weights`."""
    module = nn.Sequential(affine, nn.Identity())
    site = Site(
        name="L00_out", affine=affine, norm=None, activation=module[1], norm_first=True, params=("0.weight", "0.bias")
    )
    before = State.of(module)
    (module(x) * weights).sum().backward()
    with torch.no_grad():
        for param in module.parameters():
            param.add_(1.0)  # an update: the figures are of the state before it
    snapshot = Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=Net(module=module, sites=(site,)),
        objective=lambda outputs, targets: (outputs * targets).sum(),
        batch=Split(x, weights),
        before=before,
    )
    grads = copy.deepcopy([param.grad for param in module.parameters()])
    found, _ = figures(Gradients(updates=False, deltas=False, noise=False, cancellation=True), snapshot, {})
    for param, grad in zip(module.parameters(), grads, strict=True):
        assert param.grad is not None
        assert grad is not None
        assert torch.equal(param.grad, grad)
    return found


@pytest.mark.parametrize(
    "affine",
    [
        nn.Linear(5, 3),
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(4, 3, (2, 3), stride=(2, 1), padding=(1, 2)),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
    ],
    ids=str,
)
def test_figures_of_any_affine_map_are_those_of_all_its_terms(affine: nn.Module) -> None:
    affine = copy.deepcopy(affine).double()
    random = torch.Generator().manual_seed(3)
    shape = (7, 5) if isinstance(affine, nn.Linear) else (7, 4, 6, 5)
    x = torch.randn(*shape, generator=random, dtype=torch.float64)
    with torch.no_grad():
        like = affine(x)
    delta = torch.randn(*like.shape, generator=random, dtype=torch.float64)
    found = _measured(affine, x, delta)
    ratio, kurtosis = _expected(affine, x.numpy(), delta.numpy())
    np.testing.assert_allclose(found["abs_over_sum"], [ratio], rtol=1e-10)
    np.testing.assert_allclose(found["grad_kurtosis"], [kurtosis], rtol=1e-10)


def test_terms_of_one_sign_do_not_cancel_and_terms_of_0_do_not_count() -> None:
    """Weight [1, 3]: of the first input the terms are 1, 2, 3; of the second 1, -2, 3; of the third all 0."""
    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0]])
    delta = torch.tensor([[1.0], [2.0], [3.0]])
    found = _measured(nn.Linear(3, 1), x, delta)
    assert found["abs_over_sum"].tolist() == [2.0]  # of 6 / 6 and 6 / 2
    gradient = [6.0, 2.0, 0.0]
    assert found["grad_kurtosis"][0] == pytest.approx(scipy.stats.kurtosis(gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_that_is_0_but_for_rounding_is_0(dtype: torch.dtype) -> None:
    """As of an input that is the same for all examples, below a batch norm, where every channel's delta sums to 0."""
    random = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(50, 3), torch.randn(50, 2, generator=random)], dim=1).to(dtype)
    delta = torch.randn(50, 4, generator=random).to(dtype)
    delta -= delta.mean(dim=0)
    assert 0 < float((delta.T @ x)[:, :3].abs().max()) < 1e-5
    found = _measured(nn.Linear(5, 4).to(dtype), x, delta)
    terms = _terms(nn.Linear(2, 4), x[:, 3:].double().numpy(), delta.double().numpy())
    expected = np.median(np.abs(terms).sum(axis=-1) / np.abs(terms.sum(axis=-1)))
    np.testing.assert_allclose(found["abs_over_sum"], [expected], rtol=1e-4)


def test_a_dead_site_has_neither() -> None:
    found = _measured(nn.Linear(3, 2), torch.ones(4, 3), torch.zeros(4, 2))
    assert not np.isfinite(found["abs_over_sum"]).any()
    assert not np.isfinite(found["grad_kurtosis"]).any()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_kurtosis_is_of_the_shape_alone(scale: float) -> None:
    """In single precision the fourth powers of these numbers are 0 or inf."""
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) ** 3
    expected = scipy.stats.kurtosis(x.double().numpy().ravel())
    assert excess_kurtosis(x * scale).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("zeros", [0, 1, 4])
def test_a_median_of_ratios_leaves_out_those_over_0(count: int, zeros: int) -> None:
    random = torch.Generator().manual_seed(count)
    above, below = torch.rand(count, generator=random).double() + 1, torch.rand(count, generator=random).double() + 1
    order = torch.randperm(count + zeros, generator=random)
    shuffled = [torch.cat([part, torch.full((zeros,), fill)])[order] for part, fill in ((above, 1.0), (below, 0.0))]
    assert median_ratio(*shuffled).item() == pytest.approx(float(np.median(above.numpy() / below.numpy())), rel=1e-14)


def test_a_median_of_ratios_hides_no_nan() -> None:
    found = median_ratio(torch.tensor([1.0, math.nan, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert math.isnan(found.item())
