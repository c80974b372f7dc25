"""Theorem 4.1 of Santurkar et al. 2018: an equality at every batch norm, and only there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import twins
from torch import Tensor

from bnlab.core.spec import RunSpec
from bnlab.core.state import State
from bnlab.data.base import Split
from bnlab.norms.batch_reference import BatchReference
from bnlab.probes import lipschitz
from bnlab.probes.base import Snapshot, figures
from bnlab.probes.lipschitz import Lipschitz, Terms
from bnlab.run.setup import Setup, assemble

SpecOf = Callable[..., RunSpec]
PROBED = ("probes=full", "probes.activations.batch=24", "steps=5")
NAMES = ("thm41_error", "thm41_raw", "thm41_mean", "thm41_corr")


@pytest.mark.parametrize("eps", ["1e-5", "0.5"])
@pytest.mark.parametrize("norm", ["batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_figures_are_the_terms_of_the_theorem_at_every_batch_norm(
    model: str, norm: str, eps: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, "dtype=float64", f"norm={norm}", f"norm.eps={eps}", "optim.lr=0.3", model=model))
    for step, record in enumerate(run.records):
        expected = twins.lipschitz(run.moment(step))
        for index, site in enumerate(run.setup.net.sites):
            if site.norm is None:
                assert [record[name][index] for name in NAMES] == [None] * 4
                continue
            assert expected["thm41_error"][index] <= 1e-12
            assert record["thm41_error"][index] <= 1e-12
            for name in NAMES[1:]:
                assert record[name][index] == pytest.approx(expected[name][index], rel=1e-11), (step, name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("norm", ["batch", "batch_reference"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "deep_linear"])
def test_the_equality_holds_while_a_net_trains(
    model: str, norm: str, dtype: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED[:-1], "steps=30", f"norm={norm}", f"dtype={dtype}", model=model))
    errors = [error for record in run.records for error in record["thm41_error"][:-1]]
    assert len(errors) == 30 * (len(run.setup.net.sites) - 1)
    assert max(errors) <= 1e-11


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch", [2, 3])
def test_the_equality_holds_in_the_smallest_batches_whatever_the_dtype(
    batch: int, dtype: str, spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    """At two values a channel all but eps of the gradient is removed, and the right side is a small difference."""
    options = (f"data.batch_size={batch}", f"dtype={dtype}", "norm=batch", "norm.eps=1e-2", "steps=30")
    run = trained(spec_of(*PROBED[:-1], *options, "probes.gradients.noise=false"))
    errors = [error for record in run.records for error in record["thm41_error"][:-1] if error is not None]
    assert len(errors) >= 30
    assert max(errors) <= 1e-8


def test_the_printed_form_without_eps_is_seen_to_fail_where_eps_counts(
    spec_of: SpecOf, trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = lipschitz.terms

    def printed(y: Tensor, below: Tensor, above: Tensor, gamma: Tensor | None, eps: float) -> Terms:
        found = exact(y, below, above, gamma, eps)
        var = y.var(dim=0, correction=0)
        return found._replace(corr=found.corr / (1 + eps / (var + eps)))

    spec = spec_of(*PROBED, "norm=batch", "norm.eps=0.1", "dtype=float64")
    monkeypatch.setattr(lipschitz, "terms", printed)
    assert min(error for record in trained(spec).records for error in record["thm41_error"][:-1]) > 1e-4


@pytest.mark.parametrize("held", ["mean", "var"])
def test_a_norm_whose_statistics_pass_no_gradient_is_seen_to_fail(
    held: str, spec_of: SpecOf, trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean and the correlation are taken out of the gradient by the way through the batch's statistics."""

    def forward(self: BatchReference, x: Tensor) -> Tensor:
        mean = x.mean(dim=0)
        var = ((x - mean) ** 2).mean(dim=0)
        mean, var = (mean.detach(), var) if held == "mean" else (mean, var.detach())
        assert self.weight is not None
        assert self.bias is not None
        return self.weight * (x - mean) / torch.sqrt(var + self.eps) + self.bias

    monkeypatch.setattr(BatchReference, "forward", forward)
    monkeypatch.setattr(BatchReference, "stacks", False)  # it does not ask `affine` for gamma and beta
    run = trained(spec_of(*PROBED, "norm=batch_reference", "dtype=float64"))
    assert min(error for record in run.records for error in record["thm41_error"][:-1]) > 1e-2


@pytest.mark.parametrize("norm", [("norm=none",), ("norm=batch", "norm.position=after")])
def test_where_no_batch_norm_follows_the_affine_map_there_are_no_figures(
    norm: tuple[str, ...], spec_of: SpecOf, trained: Callable[..., Any]
) -> None:
    run = trained(spec_of(*PROBED, *norm))
    assert [key for record in run.records for key in record if key.startswith("thm41")] == []


def test_layers_without_the_norm_are_null(spec_of: SpecOf, trained: Callable[..., Any]) -> None:
    run = trained(spec_of(*PROBED, "norm=batch", "model.depth=3", "norm.layers=[1]"))
    for record in run.records:
        for name in NAMES:
            assert [value is None for value in record[name]] == [True, False, True, True]


def _measured(setup: Setup) -> dict[str, Any]:
    """The figures of the net as it is now, on its first batch."""
    batch: Split = setup.batches.at(0)
    snapshot = Snapshot(
        step=0,
        point=0,
        lr=0.1,
        seed=0,
        net=setup.net,
        objective=setup.objective,
        batch=batch,
        before=State.of(setup.net.module),
    )
    return figures(Lipschitz(), snapshot, {})[0]


def test_without_gamma_it_is_1(spec_of: SpecOf) -> None:
    options = ("norm=batch", "model.bias=false", "dtype=float64")
    one, other = (_measured(assemble(spec_of(*options, f"norm.affine={affine}"))) for affine in ("true", "false"))
    for name in NAMES[1:]:  # gamma starts at 1
        assert one[name][:-1] == pytest.approx(other[name][:-1], rel=1e-12)
    assert max(other["thm41_error"][:-1]) <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_channels_without_a_gradient_are_left_out_and_a_layer_of_them_is_null(dtype: str, spec_of: SpecOf) -> None:
    setup = assemble(spec_of("norm=batch", f"dtype={dtype}", "model.activation=relu"))
    beta = setup.net.params[f"{setup.net.sites[1].name}_norm.bias"]
    with torch.no_grad():
        beta[:-1] = -100.0
        some = _measured(setup)
        assert some["thm41_error"][1] <= 1e-11
        assert some["thm41_raw"][1] > 0
        beta[-1] = -100.0
        none = _measured(setup)
    assert math.isnan(none["thm41_error"][1])
    assert none["thm41_raw"][1] == 0.0


def test_where_the_batch_norm_leaves_nothing_of_a_gradient_rounding_is_no_error(spec_of: SpecOf) -> None:
    """Two values of a channel are -1 and 1 whatever they were: no gradient passes, but for eps."""
    setup = assemble(spec_of("norm=batch", "norm.eps=1e-30", "data.batch_size=2", "model.activation=tanh"))
    found = _measured(setup)
    assert all(math.isnan(error) for error in found["thm41_error"])
    assert found["thm41_mean"][0] + found["thm41_corr"][0] == pytest.approx(found["thm41_raw"][0], rel=1e-5)


def test_a_value_that_is_not_finite_is_seen(spec_of: SpecOf) -> None:
    setup = assemble(spec_of("norm=batch"))
    with torch.no_grad():
        setup.net.sites[1].affine.get_parameter("weight")[1] = math.nan
    found = _measured(setup)
    assert all(math.isnan(found[name][1]) for name in NAMES)


def test_a_class_made_from_a_batch_norm_may_compute_anything_and_is_not_judged(spec_of: SpecOf) -> None:
    class Own(torch.nn.BatchNorm1d):
        pass

    setup = assemble(spec_of("norm=batch"))
    norm = setup.net.sites[1].norm
    assert norm is not None
    norm.__class__ = Own
    assert [math.isnan(value) for value in _measured(setup)["thm41_raw"]] == [False, True, True]
