"""A stack of K nets against autograd on each of them: every value equal, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bnlab.core.spec import RunSpec
from bnlab.net._stacked_norms import Forward, normalizer
from bnlab.net.stack import Stack, apart, losses_of, stacked, unstackable
from bnlab.norms import _beside
from bnlab.norms._beside import FlatBatchNorm, lanes
from bnlab.norms.base import BatchMomentsNorm
from bnlab.norms.batch_reference import BatchReference
from bnlab.run.setup import Setup, assemble

SpecOf = Callable[..., RunSpec]
NETS = 3
STACKED = (
    *("none", "batch", "ghost_batch", "batch_reference", "batch_renorm", "frozen_batch", "stopgrad_batch"),
    *("mean_only_batch", "l1", "l2", "linf", "affine_only", "layer", "rms", "group", "noisy_batch", "noisy_none"),
    *("rescale_only", "dyt", "derf", "whiten"),
)
CHANGES: tuple[tuple[str, ...], ...] = (
    ("model.activation=sigmoid",),
    ("model.activation=tanh",),
    ("norm.position=after",),
    ("norm.layers=[1]", "model.bias=true"),
    ("loss=mse",),
    ("reduction=sum",),
    ("dtype=float64",),
    ("data.batch_size=7", "model.width=20"),
    ("model.width=100",),
    ("model.width=31", "model.activation=sigmoid"),
)
SOME = ("none", "batch", "ghost_batch", "frozen_batch", "layer", "noisy_batch")
GROUPS = {"20": 4, "100": 10, "31": 1}


def specs(spec_of: SpecOf, norm: str, changes: tuple[str, ...], nets: int = NETS) -> list[RunSpec]:
    width = next((change.partition("=")[2] for change in changes if change.startswith("model.width")), "20")
    if norm == "none":
        changes = tuple(change for change in changes if not change.startswith("norm."))
    own = {"group": (f"norm.groups={GROUPS[width]}",), "ghost_batch": ("norm.ghost_size=3",)}.get(norm, ())
    fixed = ("model=mlp", "model.depth=2", f"model.width={width}", f"norm={norm}", *own, *changes)
    return [spec_of(*fixed, f"seed={seed}") for seed in range(nets)]


def same(found: Tensor, alone: Tensor) -> bool:
    return found.dtype == alone.dtype and found.numpy().tobytes() == alone.detach().contiguous().numpy().tobytes()


def passes(setups: list[Setup], steps: int = 3) -> Iterator[tuple[Forward, list[Tensor], dict[str, Tensor], list[Any]]]:
    """Steps of all nets in a stack and of each alone: what the stack computed, its losses, its buffers, and a failed
    comparison for each value that differs."""
    stack, modules = Stack(setups[0].net), [setup.net.module for setup in setups]
    stack.of([setup.net for setup in setups])
    params = stacked(dict(module.named_parameters()) for module in modules)
    buffers = stacked(dict(module.named_buffers()) for module in modules)
    for step in range(steps):
        batches = [setup.batches.at(step) for setup in setups]
        done = stack.forward(params, buffers, torch.stack([batch.x for batch in batches]))
        losses, gradient = losses_of(done.outputs, [batch.y for batch in batches], setups[0].objective)
        grads = stack.backward(params, done, gradient, keep=True)
        wrong: list[Any] = []
        for net, (setup, batch) in enumerate(zip(setups, batches, strict=True)):
            setup.optimizer.zero_grad()
            loss = setup.objective(modules[net](batch.x), batch.y)
            loss.backward()  # type: ignore[no-untyped-call]
            pairs = {"loss": (losses[net], loss)}
            for name, param in modules[net].named_parameters():
                assert param.grad is not None
                pairs[name] = (grads[name][net].contiguous(), param.grad)
            pairs |= {name: (buffers[name][net].contiguous(), own) for name, own in modules[net].named_buffers()}
            wrong += [(step, net, name) for name, pair in pairs.items() if not same(*pair)]
            for name, param in modules[net].named_parameters():
                assert param.grad is not None
                with torch.no_grad():
                    params[name][net].copy_(param.sub_(0.05 * param.grad))
        yield done, losses, buffers, wrong


@pytest.mark.parametrize(
    ("norm", "changes"),
    [*((norm, ()) for norm in STACKED), *((norm, changes) for norm in SOME for changes in CHANGES)],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_losses_gradients_and_buffers_have_the_bits_of_each_net_alone(
    spec_of: SpecOf, norm: str, changes: tuple[str, ...]
) -> None:
    setups = [assemble(spec) for spec in specs(spec_of, norm, changes)]
    assert unstackable(setups[0].net) is None
    for _, _, _, wrong in passes(setups):
        assert wrong == []


@pytest.mark.parametrize("norm", ["batch", "ghost_batch"])
def test_without_the_last_channels_once_more_the_bits_are_lost(
    spec_of: SpecOf, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lanes(torch.float32) == 1:
        pytest.skip("this machine's batch norm rounds all channels alike")
    monkeypatch.setattr(FlatBatchNorm, "_again", lambda self, gradient, g, last: None)
    wrong = [one for *_, wrong in passes([assemble(spec) for spec in specs(spec_of, norm, ())]) for one in wrong]
    assert any("affine.weight" in name for *_, name in wrong)


@pytest.mark.parametrize("nets", [1, 2, 5, 16])
@pytest.mark.parametrize("channels", [2, 3, 7, 10, 57, 100])
def test_batch_norm_of_many_nets_is_each_one_s(channels: int, nets: int) -> None:
    generator = torch.Generator().manual_seed(channels * 100 + nets)
    x, g = (torch.randn(nets, 64, channels, generator=generator) for _ in range(2))
    gamma, beta = (torch.rand(nets, channels, generator=generator) + 0.5 for _ in range(2))
    mean, var = torch.zeros(nets, channels), torch.ones(nets, channels)
    found = FlatBatchNorm(x, gamma, beta, mean, var, 0.1, 1e-5)
    gradients = found.backward(g)
    for net in range(nets):
        own = [t[net].clone().requires_grad_() for t in (x, gamma, beta)]
        own_mean, own_var = torch.zeros(channels), torch.ones(channels)
        out = torch.nn.functional.batch_norm(own[0], own_mean, own_var, own[1], own[2], True, 0.1, 1e-5)
        alone = torch.autograd.grad(out, own, g[net].clone())
        assert same(found.out[net].contiguous(), out)
        assert all(same(a[net].contiguous(), b) for a, b in zip(gradients, alone, strict=True))
        assert same(mean[net].clone(), own_mean)
        assert same(var[net].clone(), own_var)


def test_a_stack_also_has_what_the_sites_see(spec_of: SpecOf) -> None:
    from bnlab.core.state import outputs_now
    from bnlab.net.wrap import Tap

    setups = [assemble(spec) for spec in specs(spec_of, "batch", ())]
    stack = Stack(setups[0].net)
    params, buffers = (
        stacked(dict(getattr(setup.net.module, of)()) for setup in setups)
        for of in ("named_parameters", "named_buffers")
    )
    x = torch.stack([setup.batches.at(0).x for setup in setups])
    done = stack.forward(params, buffers, x)
    for net, setup in enumerate(setups):
        with Tap(setup.net) as tap:
            outputs_now(setup.net.module, x[net], "batch")
        for found, seen in ((done.pre, tap.sites.pre), (done.act_in, tap.sites.act_in)):
            assert all(same(a[net].contiguous(), b) for a, b in zip(found, seen, strict=True))


@pytest.mark.parametrize(
    ("model", "overrides", "reason"),
    [
        ("cnn", (), "AvgPool2d"),
        ("resnet", (), "a Residual"),
        ("mlp", ("norm.momentum=null",), "the norm BatchNorm1d"),
        ("mlp", ("model.width=1",), "a norm of one channel"),
    ],
)
def test_other_nets_are_not_stacked(spec_of: SpecOf, model: str, overrides: tuple[str, ...], reason: str) -> None:
    net = assemble(spec_of("norm=batch", *overrides, model=model)).net
    found = unstackable(net)
    assert found is not None
    assert reason in found
    with pytest.raises(ValueError, match=found):
        Stack(net)


def test_a_norm_says_that_it_stacks_and_a_subclass_with_another_forward_has_to_say_it_again() -> None:
    class Silent(BatchMomentsNorm):
        def forward(self, x: Tensor) -> Tensor:
            return self.batch_norm(x)

    class Other(BatchReference):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Said(Other):
        stacks = True

    class Kept(BatchReference):
        pass

    for kind, stacks in ((Silent, False), (Other, False), (Said, True), (Kept, True)):
        norm = kind(10, 0, eps=1e-5, momentum=0.1, affine=True)
        assert (normalizer(norm, "") is not None) == stacks, kind


def test_matrices_of_two_nets_are_never_adjacent() -> None:
    for shape in ((4, 4), (3, 5), (16, 1)):
        made = apart(3, shape, torch.float32)
        assert made.shape == (3, *shape)
        assert all(made[net].data_ptr() % 64 == 0 and made[net].is_contiguous() for net in range(3))
        assert made.stride(0) > shape[0] * shape[1]
    assert apart(3, (5,), torch.float32).is_contiguous()


def test_the_module_of_flat_batch_norm_says_how_many_channels_go_together() -> None:
    assert _beside.lanes(torch.float64) <= lanes(torch.float32)
