"""The top of the spectrum, against the whole Hessian written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence
from torch import Tensor
from twins import hessian

from bnlab.core.spec import RunSpec
from bnlab.core.state import State
from bnlab.data.base import Split
from bnlab.net.build import Net
from bnlab.probes import sharpness
from bnlab.probes.base import Snapshot, figures
from bnlab.probes.sharpness import Sharpness, largest

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "probes.sharpness.every=1", "steps=5", "model.activation=tanh")


@pytest.mark.parametrize("norm", ["none", "batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_eigenvalues_are_those_of_the_whole_hessian(
    model: str, norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    options = ("probes.sharpness.top=3", "probes.sharpness.tolerance=1e-10", "dtype=float64", "optim.momentum=0.5")
    run = trained(spec_of(*PROBED, *options, f"norm={norm}", model=model))
    for step, record in list(enumerate(run.records))[::4]:
        whole = hessian(run.moment(step))
        np.testing.assert_allclose(whole, whole.T, atol=1e-10)
        expected = np.linalg.eigvalsh(whole)[::-1][:3]
        found = [record[name] for name in ("lambda_max", "lambda_2", "lambda_3")]
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        assert record["eta_lambda_half"] == pytest.approx(run.setup.spec.optim.lr / 2 * expected[0], rel=1e-8)
        assert "lambda_4" not in record


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_share_of_the_gradient_in_the_top_directions_is_that_of_the_whole_hessian(
    norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(
        spec_of(*PROBED, "probes.sharpness.top=10", "probes.sharpness.tolerance=1e-10", "dtype=float64", f"norm={norm}")
    )
    for step, record in list(enumerate(run.records))[::4]:
        moment = run.moment(step)
        values, vectors = np.linalg.eigh(hessian(moment))
        g = torch.cat([grad.flatten() for grad in moment.gradient(moment.net()).values()]).numpy()
        share = np.sum((vectors[:, -10:].T @ g) ** 2) / np.sum(g**2)
        assert 0 < share < 1
        assert record["gradient_in_top_10"] == pytest.approx(share, rel=1e-6)
        assert record["lambda_max_over_10"] == pytest.approx(values[-1] / values[-10], rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_in_single_precision_at_the_default_tolerance_it_is_right_to_a_thousandth(
    norm: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, f"norm={norm}"))
    for step, record in list(enumerate(run.records))[::4]:
        assert record["lambda_max"] == pytest.approx(np.linalg.eigvalsh(hessian(run.moment(step)))[-1], rel=1e-3)


def _linear(weight: float) -> Snapshot:
    """L(w) = ||x w - y||^2, whose Hessian is 2 x'x."""
    x = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    module = torch.nn.Linear(3, 1, bias=False).double()
    torch.nn.init.constant_(module.weight, weight)
    return Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=Net(module=module, sites=()),
        objective=lambda outputs, targets: ((outputs - targets) ** 2).sum(),
        batch=Split(x, torch.ones(3, 1, dtype=torch.float64)),
        before=State.of(module),
    )


def test_of_a_quadratic_they_are_known() -> None:
    found, _ = figures(Sharpness(top=2, tolerance=1e-10), _linear(0.3), {})
    assert {name: float(value) for name, value in found.items()} == {
        "lambda_max": pytest.approx(18.0, rel=1e-10),
        "lambda_2": pytest.approx(8.0, rel=1e-10),
        "eta_lambda_half": pytest.approx(0.9, rel=1e-10),
    }


def test_the_largest_is_not_the_largest_in_size() -> None:
    diagonal = torch.linspace(-50, 3, 40, dtype=torch.float64)
    assert largest(lambda v: diagonal * v, torch.ones(40).double(), 1, 1e-10)[0].item() == pytest.approx(3, rel=1e-9)


def test_a_hessian_that_is_not_finite_has_none() -> None:
    def broken(v: Tensor) -> Tensor:
        return v * math.nan

    values, vectors = largest(broken, torch.ones(30), 2, 1e-4)
    assert torch.isnan(values).tolist() == [True, True]
    assert torch.isnan(vectors).all()


def test_those_of_a_hessian_that_is_0_are_0() -> None:
    assert largest(torch.zeros_like, torch.ones(30), 2, 1e-4)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ArpackNoConvergence("no convergence", np.array([5.0]), np.zeros((30, 1))), [5.0, None]),
        (ArpackError(-9999), [None, None]),
    ],
)
def test_eigenvalues_that_are_not_found_are_null(
    error: ArpackError, expected: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gives_up(*args: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr(sharpness, "eigsh", gives_up)
    found = largest(lambda v: v, torch.ones(30), 2, 1e-4)[0].tolist()
    assert [None if math.isnan(value) else value for value in found] == expected
