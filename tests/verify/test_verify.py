"""Every identity holds, and every check sees its formula broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bnlab import verify
from bnlab.config import statements
from bnlab.core.state import State
from bnlab.norms.batch_reference import BatchReference
from bnlab.verify import Identity, equations, laws

Patch = pytest.MonkeyPatch


def test_every_identity_holds() -> None:
    checked = list(verify.identities())
    assert [identity.name for identity in checked if not identity.ok] == []
    assert len({identity.name for identity in checked}) == len(checked) >= 20
    committed = [row["name"] for row in statements.identities()]
    assert [identity.name for identity in checked] == committed, "run `python docs/statements.py verify`"


def test_an_error_of_nan_is_not_an_agreement() -> None:
    assert not Identity(name="", left="", right="", error=float("nan"), tolerance=1.0).ok


def _biased_running_variance(patch: Patch) -> None:
    track = BatchReference.track_moments

    def biased(self: BatchReference, x: Tensor, mean: Tensor, var: Tensor) -> None:
        values = x.numel() // x.shape[1]
        track(self, x, mean, var * (values - 1) / values)

    patch.setattr(BatchReference, "track_moments", biased)


def _unbiased_variance(patch: Patch) -> None:
    def forward(self: BatchReference, x: Tensor) -> Tensor:
        mean, var = x.mean(self.over), x.var(self.over, correction=1)
        x_hat = (x - mean.view(self.shape)) / torch.sqrt(var.view(self.shape) + self.eps)
        assert self.weight is not None
        assert self.bias is not None
        return self.weight.view(self.shape) * x_hat + self.bias.view(self.shape)

    patch.setattr(BatchReference, "forward", forward)


def _no_correlation_term(patch: Patch) -> None:
    terms = equations.terms

    def without(*given: Any) -> Any:
        of = terms(*given)
        return of._replace(corr=torch.zeros_like(of.corr))

    patch.setattr(equations, "terms", without)


def _eps_forgotten(patch: Patch) -> None:
    terms = equations.terms
    patch.setattr(equations, "terms", lambda y, below, above, gamma, eps: terms(y, below, above, gamma, 0.0))


def _norm_is_always(patch: Patch, norm: str) -> None:
    net = equations.random_net

    def other(model: str, activation: str, _: str, *more: Any, **options: Any) -> Any:
        return net(model, activation, norm, *more, **options)

    for module in (equations, laws):
        patch.setattr(module, "random_net", other)


def _without_norm(patch: Patch) -> None:
    _norm_is_always(patch, "none")


def _always_norm(patch: Patch) -> None:
    _norm_is_always(patch, "batch")


def _line_begins_beside(patch: Patch) -> None:
    line = equations.line
    patch.setattr(equations, "line", lambda state, direction, a: line(state, direction, a + 1e-6))


def _constant_statistics(patch: Patch) -> None:
    """A norm of the same value whose statistics pass no gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *(1 for _ in x.shape[2:])]
        mean, var = x.detach().mean(over).view(shape), x.detach().var(over, correction=0).view(shape)
        return self.weight.view(shape) * (x - mean) / torch.sqrt(var + self.eps) + self.bias.view(shape)

    for norm in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d):
        patch.setattr(norm, "forward", forward)


def _eps_beside_the_root(patch: Patch) -> None:
    """(x - mu) / (sd + eps), as some write it: running statistics stand still."""

    def forward(self: Any, x: Tensor) -> Tensor:
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *(1 for _ in x.shape[2:])]
        mean, sd = x.mean(over), x.var(over, correction=0).sqrt()
        if not self.training:
            mean, sd = self.running_mean, self.running_var.sqrt()
        x_hat = (x - mean.view(shape)) / (sd.view(shape) + self.eps)
        return self.weight.view(shape) * x_hat + self.bias.view(shape)

    for norm in (BatchReference, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d):
        patch.setattr(norm, "forward", forward)


def _staircase_moves_the_site_itself(patch: Patch) -> None:
    def stairs(before: State, after: State, groups: list[tuple[str, ...]]) -> Iterator[State]:
        params = dict(before.params)
        for names in groups:
            params |= {name: after.params[name] for name in names}
            yield State(dict(params), before.buffers)

    patch.setattr(equations, "staircase", stairs)


def _staircase_moves_nothing(patch: Patch) -> None:
    patch.setattr(equations, "staircase", lambda before, after, groups: [before for _ in groups])


def _another_momentum(patch: Patch) -> None:
    net = equations.random_net

    def made(*words: Any, **options: Any) -> Any:
        found = net(*words, **options)
        for norm in found.norms.values():
            norm.momentum = 0.2
        return found

    patch.setattr(equations, "random_net", made)


def _a_learned_mean(patch: Patch) -> None:
    """A norm that has a third parameter."""
    net = equations.random_net

    def made(*words: Any, **options: Any) -> Any:
        found = net(*words, **options)
        for norm in found.norms.values():
            norm.register_parameter("mean", torch.nn.Parameter(torch.zeros(1)))
            norm.register_forward_hook(lambda norm, _, out: out + norm.mean)
        return found

    patch.setattr(equations, "random_net", made)


def _other_theory(patch: Patch) -> None:
    growth = laws.gradient_growth
    patch.setattr(laws, "gradient_growth", lambda *words: 1.05 * growth(*words))


def _values_that_hang_together(patch: Patch) -> None:
    batches = laws.draw_batches

    def doubled(values: int) -> Any:
        x, sigma, rho = batches(values)
        half = x[:, : values // 2]
        return torch.cat([half, half], dim=1), sigma, rho

    patch.setattr(laws, "draw_batches", doubled)


@pytest.mark.parametrize(
    "check",
    [
        lambda: equations.reference_is_torch(1, 2),
        lambda: equations.outputs_have_the_moments_of_gamma_and_beta(1),
        lambda: equations.folding_leaves_evaluation_unchanged(1),
        lambda: equations.gamma_and_beta_are_learned("mlp"),
        lambda: equations.gradients_shrink("mlp"),
        lambda: equations.gradients_below_are_orthogonal("mlp"),
        lambda: equations.gradients_fall_as_weights_grow("mlp"),
        equations.weights_are_orthogonal_to_their_gradient,
    ],
)
def test_a_check_sees_a_norm_that_gives_nan(check: Callable[[], Identity], monkeypatch: Patch) -> None:
    forward = torch.nn.BatchNorm1d.forward

    def broken(self: Any, x: Tensor) -> Tensor:
        out = forward(self, x)
        return torch.where(torch.arange(x.shape[1]) == 1, torch.nan * out, out)

    monkeypatch.setattr(torch.nn.BatchNorm1d, "forward", broken)
    assert not check().ok


@pytest.mark.parametrize(
    ("check", "breaks"),
    [
        (lambda: equations.reference_is_torch(1, 2), _biased_running_variance),
        (lambda: equations.reference_is_torch(2, 1), _unbiased_variance),
        (lambda: equations.gamma_and_beta_are_learned("mlp"), _another_momentum),
        (lambda: equations.gamma_and_beta_are_learned("cnn"), _another_momentum),
        (lambda: equations.gamma_and_beta_are_learned("mlp"), _a_learned_mean),
        (lambda: equations.gradients_shrink("mlp"), _no_correlation_term),
        (lambda: equations.gradients_shrink("cnn"), _no_correlation_term),
        (lambda: equations.gradients_shrink("mlp"), _eps_forgotten),
        (lambda: equations.outputs_have_the_moments_of_gamma_and_beta(1), _unbiased_variance),
        (lambda: equations.outputs_have_the_moments_of_gamma_and_beta(2), _eps_beside_the_root),
        (lambda: equations.folding_leaves_evaluation_unchanged(1), _eps_beside_the_root),
        (lambda: equations.folding_leaves_evaluation_unchanged(2), _eps_beside_the_root),
        (lambda: equations.gradients_below_are_orthogonal("mlp"), _constant_statistics),
        (lambda: equations.gradients_below_are_orthogonal("cnn"), _constant_statistics),
        (lambda: equations.gradients_below_are_orthogonal("mlp"), _eps_beside_the_root),
        (lambda: equations.gradients_fall_as_weights_grow("mlp"), _eps_beside_the_root),
        (lambda: equations.gradients_fall_as_weights_grow("cnn"), _eps_beside_the_root),
        (equations.weights_grow_by_pythagoras, _without_norm),
        (equations.a_line_begins_at_the_loss, _line_begins_beside),
        (equations.nothing_precedes_the_first_site, _staircase_moves_the_site_itself),
        (equations.nothing_precedes_the_first_site, _staircase_moves_nothing),
        (lambda: laws.gradients_grow("relu", 64), _without_norm),
        (lambda: laws.gradients_grow("linear", 32), _other_theory),
        (laws.gradients_do_not_grow_without_norm, _always_norm),
        (lambda: laws.means_scatter(32), _values_that_hang_together),
        (lambda: laws.deviations_scatter(32), _values_that_hang_together),
    ],
)
def test_a_check_sees_its_formula_broken(
    check: Callable[[], Identity], breaks: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    assert check().ok
    breaks(monkeypatch)
    assert not check().ok


def test_a_gradient_that_leaves_out_the_statistics_is_seen(monkeypatch: Patch) -> None:
    """The value is right and the gradient is not: only the difference quotient can tell."""
    forward = BatchReference.forward

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, right: Tensor, x: Tensor) -> Tensor:
            return right.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
            return None, grads[0]

    monkeypatch.setattr(BatchReference, "forward", lambda self, x: Straight.apply(forward(self, x.detach()), x))
    assert not equations.derivative_is_the_limit(1).ok
    assert not equations.derivative_is_the_limit(2).ok


def test_weights_that_keep_their_scale_are_seen(monkeypatch: Patch) -> None:
    """With an eps as large as the variance a batch norm does not cancel the scale of the weights before it."""
    mlp, cnn = equations.small_mlp, equations.small_cnn
    monkeypatch.setattr(equations, "small_mlp", lambda eps: mlp(1.0))
    monkeypatch.setattr(equations, "small_cnn", lambda eps: cnn(1.0))
    assert not equations.weights_are_orthogonal_to_their_gradient().ok


def test_the_command_prints_one_json_object_and_exits_0() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnlab", "verify", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["identities"]
    assert all(row["ok"] for row in told)
    assert {"name", "error", "tolerance", "ok"} <= set(told[0])


def test_the_command_exits_3_and_names_what_is_broken(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    from bnlab.cli.verify import check_identities

    _other_theory(monkeypatch)
    assert check_identities(as_json=False) == 3
    said = capsys.readouterr().out
    assert "broken: gradient growth with batch norm, relu, batch 8" in said
    assert "BROKEN" in said
