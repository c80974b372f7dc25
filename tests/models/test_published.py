"""Nets of the papers: as many parameters as published, sites that can be read, what they compute by another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec, RunSpec
from bnlab.net.build import Net, Residual
from bnlab.net.wrap import AffineTap, NormTap, Tap, TrainingTap, site_shapes
from bnlab.run.setup import assemble

MODEL = ModelSpec(name="resnet", activation="relu", init="he", init_scale=1.0, init_std=0.1, bias="auto", options={})
NORM = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
NONE = replace(NORM, name="none", options={})
MOBILENET = {
    "stem": 32,
    "stem_stride": 2,
    "channels": [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024],
    "strides": [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1],
    "kernel": 3,
    "width": 1.0,
    "middle": "activation",
}
"""Howard et al. 2017, table 1."""


def _resnet(depth: int = 8, *, width: float = 0.25, shortcut: str = "B", norm: NormSpec = NORM, **model: Any) -> Net:
    options = {"depth": depth, "width": width, "shortcut": shortcut}
    net: Net = MODELS.build("resnet", options, (3, 8, 8), 10, replace(MODEL, **model), norm, 0)
    return net


def _vgg(depth: int = 11, *, width: float = 0.0625, head: Any = (), norm: NormSpec = NORM, **model: Any) -> Net:
    options = {"depth": depth, "width": width, "head": list(head)}
    net: Net = MODELS.build("vgg", options, (3, 32, 32), 10, replace(MODEL, **model), norm, 0)
    return net


def _separable(norm: NormSpec = NORM, outputs: int = 10, **options: Any) -> Net:
    small = {"stem": 4, "stem_stride": 1, "channels": [6, 8], "strides": [1, 2], "width": 1.0}
    given = MOBILENET | small | options
    net: Net = MODELS.build("separable_cnn", given, (3, 8, 8), outputs, MODEL, norm, 0)
    return net


def _count(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def _names(net: Net) -> list[str]:
    return [site.name for site in net.sites]


# -- how many parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_a_resnet_has_as_many_parameters_as_he_et_al_say(depth: int, millions: str) -> None:
    """Table 6, in millions, with option A: the convolutions, gamma and beta of each, the head."""
    n = (depth - 2) // 6
    convolutions = 3 * 16 * 9 + sum(9 * channels**2 * 2 * n for channels in (16, 32, 64))
    convolutions -= 9 * (32 * 16 + 64 * 32)  # the first of the second and the third stage come from half the channels
    normed = 16 + 2 * n * (16 + 32 + 64)
    found = _count(_resnet(depth, width=1.0, shortcut="A").module)
    assert found == convolutions + 2 * normed + 64 * 10 + 10
    assert f"{found / 1e6:.{len(millions) - 2}f}" == millions
    if depth == 20:
        assert found == 269_722


def test_projections_of_option_b_add_two_convolutions_with_their_norms() -> None:
    more = _count(_resnet(20, width=1.0).module) - _count(_resnet(20, width=1.0, shortcut="A").module)
    assert more == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


VGG: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512),
    19: (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4),
}
"""Simonyan & Zisserman 2015, table 1: columns A, B, D, E."""
MILLIONS = {11: 133, 13: 133, 16: 138, 19: 144}
"""Table 2, of the whole nets with their fully connected layers for 224x224 images and 1,000 classes."""


@pytest.mark.parametrize("depth", list(VGG))
def test_a_vgg_has_as_many_parameters_as_simonyan_and_zisserman_say(depth: int) -> None:
    """Its convolutions and their biases, with the paper's three fully connected layers added by hand; here their place
    is taken by one from 512 to 10."""
    convolutions, before = 0, 3
    for after in VGG[depth]:
        if isinstance(after, int):
            convolutions, before = convolutions + before * after * 9 + after, after
    found = _count(_vgg(depth, width=1.0, norm=NONE, init="gaussian").module) - (512 * 10 + 10)
    assert found == convolutions
    fully_connected = 512 * 7 * 7 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert round((found + fully_connected) / 1e6) == MILLIONS[depth]


def test_a_width_scales_the_channels_and_a_head_adds_layers_that_carry_norms() -> None:
    net = _vgg(16, width=0.125, head=[24, 12])
    weights = [tuple(site.affine.get_parameter("weight").shape[:2]) for site in net.sites]
    assert [out for out, _ in weights[:13]] == [8, 8, 16, 16, 32, 32, 32, *[64] * 6]
    assert weights[13:] == [(24, 64), (12, 24), (10, 12)]
    assert [site.norm is not None for site in net.sites] == [True] * 15 + [False]


def test_mobilenet_has_as_many_parameters_as_howard_et_al_say() -> None:
    """Table 8: 4.2 million."""
    net = _separable(outputs=1000, **MOBILENET)
    convolutions, before = 3 * 32 * 9, 32
    for after in MOBILENET["channels"]:  # type: ignore[attr-defined]
        convolutions += before * 9 + before * after
        before = after
    normed = 32 + sum([32, *MOBILENET["channels"][:-1]]) + sum(MOBILENET["channels"])  # type: ignore[index, arg-type]
    assert _count(net.module) == convolutions + 2 * normed + 1024 * 1000 + 1000 == 4_231_976
    assert f"{_count(net.module) / 1e6:.1f}" == "4.2"


# -- sites -----------------------------------------------------------------------------------------


def test_the_sites_of_a_resnet_say_where_they_are() -> None:
    assert _names(_resnet()) == [
        "L00_conv",
        "L01_s1b1_conv1",
        "L02_s1b1_conv2",
        "L03_s2b1_conv1",
        "L04_s2b1_conv2",
        "L05_s2b1_short",
        "L06_s3b1_conv1",
        "L07_s3b1_conv2",
        "L08_s3b1_short",
        "L09_out",
    ]
    deep = _names(_resnet(110, shortcut="A"))
    assert len(deep) == 110
    assert deep == sorted(deep)
    assert (deep[0], deep[45], deep[109]) == ("L000_conv", "L045_s2b05_conv1", "L109_out")
    assert max(len(name) for name in deep) == 16


def test_the_sites_of_vgg_and_separable_nets_say_where_they_are() -> None:
    assert _names(_vgg(head=[5]))[5:] == ["L05_s4_conv2", "L06_s5_conv1", "L07_s5_conv2", "L08_fc", "L09_out"]
    assert _names(_separable()) == ["L00_conv", "L01_b1_dw", "L02_b1_pw", "L03_b2_dw", "L04_b2_pw", "L05_out"]


def _randomized(net: Net) -> Net:
    net.module.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for param in net.module.parameters():
            param.add_(0.3 * torch.randn(param.shape, generator=generator, dtype=param.dtype))
    return net


def _x(count: int = 5, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _normed(site: Any, x: Tensor) -> Tensor:
    if site.norm is None:
        return x
    return F.batch_norm(x, None, None, site.norm.weight, site.norm.bias, True, 0.1, 1e-5)


def _resnet_by_hand(net: Net, x: Tensor, shortcut: str, position: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and pre and act_in of every site by its name, written from He et al.'s figure 2 and section 4.2."""
    seen: dict[str, Tensor] = {}
    sites = {site.name.partition("_")[2]: site for site in net.sites}

    def affine(kind: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = sites[kind].affine.weight, sites[kind].affine.bias
        out = F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[2] // 2)
        seen[f"{kind} pre"] = out
        return _normed(sites[kind], out) if position == "before" else out

    def act(kind: str, x: Tensor) -> Tensor:
        seen[f"{kind} act_in"] = x
        return _normed(sites[kind], x.relu()) if position == "after" else x.relu()

    x = act("conv", affine("conv", x))
    for stage in (1, 2, 3):
        name, stride = f"s{stage}b1", 1 if stage == 1 else 2
        branch = affine(f"{name}_conv2", act(f"{name}_conv1", affine(f"{name}_conv1", x, stride)))
        if stride == 2 and shortcut == "A":
            smaller = x[:, :, ::2, ::2]
            x = torch.cat([smaller, torch.zeros_like(smaller)], dim=1)
        elif stride == 2:
            x = affine(f"{name}_short", x, 2)
            seen[f"{name}_short act_in"] = x
            x = _normed(sites[f"{name}_short"], x) if position == "after" else x
        x = act(f"{name}_conv2", branch + x)
    out = F.linear(x.mean(dim=(2, 3)), sites["out"].affine.weight, sites["out"].affine.bias)
    return out, seen | {"out pre": out, "out act_in": out}


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("norm", [NORM, NONE, replace(NORM, layers=(0, 2)), replace(NORM, every=3)])
def test_a_resnet_computes_and_shows_what_a_hand_written_one_does(norm: NormSpec, shortcut: str, position: Any) -> None:
    """pre is what the convolution gives and the norm sees, act_in what the nonlinearity sees: the sum, at the end of a
    block."""
    norm = replace(norm, position=position)
    net = _randomized(_resnet(shortcut=shortcut, norm=norm))
    with Tap(net) as tap:
        out = net.module(_x())
    expected, seen = _resnet_by_hand(net, _x(), shortcut, position)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for site, pre, act_in in zip(net.sites, tap.sites.pre, tap.sites.act_in, strict=True):
        kind = site.name.partition("_")[2]
        torch.testing.assert_close(pre, seen[f"{kind} pre"], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(act_in, seen[f"{kind} act_in"], rtol=1e-11, atol=1e-11)
        assert site.residual_sum == kind.endswith("conv2")
    assert site_shapes(net, (3, 8, 8)) == [tuple(pre.shape[1:]) for pre in tap.sites.pre]
    by_index = [site.norm is not None for site in net.sites]
    hidden = len(net.sites) - 1
    normed = norm.layers if norm.layers != "all" else range(norm.every - 1, hidden, norm.every)
    assert by_index == [norm.name != "none" and i in normed for i in range(hidden + 1)]


@pytest.mark.parametrize("norm", [NORM, NONE, replace(NORM, position="after")])
def test_every_tap_agrees_about_a_resnet(norm: NormSpec) -> None:
    net = _randomized(_resnet(norm=norm))
    taps = Tap(net), AffineTap(net), NormTap(net), TrainingTap(net, deltas=True)
    for tap in taps:
        with tap:
            loss = net.module(_x()).square().sum()
    plain, affine, norms, training = taps
    loss.backward()
    for index, site in enumerate(net.sites):
        pre, act_in = plain.sites.pre[index], plain.sites.act_in[index]
        torch.testing.assert_close(affine.outputs[index], pre, rtol=0, atol=0)
        seen, kept = norms.seen.get(index), training.training.pre[index]
        assert (seen is None) == (site.norm is None)
        if seen is not None:
            sees = site.activation(act_in) if not site.norm_first else pre
            torch.testing.assert_close(seen, sees, rtol=0, atol=0)
        mean = kept if isinstance(kept, Tensor) else kept.mean
        expected = pre if isinstance(kept, Tensor) else pre.mean(dim=(0, 2, 3))
        torch.testing.assert_close(mean, expected.detach(), rtol=1e-11, atol=1e-11)
    assert sorted(training.training.delta_norms) == list(range(len(net.sites)))


def test_the_gradient_at_the_sum_is_that_at_the_norm_s_output() -> None:
    """So theorem 4.1 can be measured with act_in in place of what the norm gives."""
    net = _randomized(_resnet())
    given: list[Tensor] = []
    site = net.sites[2]
    assert site.norm is not None
    handle = site.norm.register_forward_hook(lambda module, args, out: given.append(out))
    with Tap(net) as tap:
        loss = net.module(_x()).square().sum()
    handle.remove()
    at_norm, at_sum = torch.autograd.grad(loss, [given[0], tap.sites.act_in[2]])
    assert not torch.equal(given[0], tap.sites.act_in[2])
    torch.testing.assert_close(at_norm, at_sum, rtol=0, atol=0)


@pytest.mark.parametrize("middle", ["activation", "none"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_separable_net_computes_and_shows_what_loops_over_channels_do(kernel: int, middle: str) -> None:
    net = _randomized(_separable(kernel=kernel, middle=middle))
    with Tap(net) as tap:
        out = net.module(_x())
    x, strides = _x(), {"L03_b2_dw": 2}
    for site, pre, act_in in zip(net.sites[:-1], tap.sites.pre, tap.sites.act_in, strict=False):
        weight, stride = site.affine.get_parameter("weight"), strides.get(site.name, 1)
        pad = weight.shape[2] // 2
        if site.name.endswith("dw"):
            planes = [F.conv2d(x[:, [c]], weight[[c]], stride=stride, padding=pad) for c in range(x.shape[1])]
            x = torch.cat(planes, dim=1)
        else:
            x = F.conv2d(x, weight, stride=stride, padding=pad)
        torch.testing.assert_close(pre, x, rtol=1e-11, atol=1e-11)
        x = _normed(site, x)
        torch.testing.assert_close(act_in, x, rtol=1e-11, atol=1e-11)
        x = x if site.name.endswith("dw") and middle == "none" else x.relu()
    head = net.sites[-1].affine
    torch.testing.assert_close(out, F.linear(x.mean(dim=(2, 3)), head.weight, head.bias), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("side", [32, 28, 8, 5])
def test_a_vgg_computes_what_its_table_says_and_takes_images_of_any_size(side: int) -> None:
    net: Net = MODELS.build("vgg", {"depth": 11, "width": 0.0625, "head": [6]}, (3, side, side), 10, MODEL, NONE, 0)
    net = _randomized(net)
    x, sites = _x(2, side), iter(net.sites)
    for part in (*VGG[11], "M"):
        if part == "M":
            missing = x.shape[-1] % 2
            x = F.max_pool2d(F.pad(x, [0, missing, 0, missing], value=-np.inf), 2)
        else:
            affine = next(sites).affine
            x = F.conv2d(x, affine.weight, affine.bias, padding=1).relu()
    x = x.flatten(1)
    for site, last in zip(sites, (False, True), strict=True):
        x = F.linear(x, site.affine.weight, site.affine.bias)
        x = x if last else x.relu()
    torch.testing.assert_close(net.module(_x(2, side)), x, rtol=1e-11, atol=1e-11)


# -- initialization --------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [_resnet, _vgg, _separable])
def test_a_norm_does_not_shift_the_initial_weights(build: Callable[..., Net]) -> None:
    plain = build(norm=NONE)
    for norm in (NORM, replace(NORM, every=2), replace(NORM, position="after")):
        for one, other in zip(plain.sites, build(norm=norm).sites, strict=True):
            assert torch.equal(one.affine.get_parameter("weight"), other.affine.get_parameter("weight"))


def test_he_counts_the_fan_in_of_a_depthwise_convolution_as_its_kernel() -> None:
    net = _separable(stem=512, channels=[8], strides=1)
    weight = net.sites[1].affine.get_parameter("weight").detach().double()
    assert weight.shape == (512, 1, 3, 3)
    assert weight.var().item() == pytest.approx(2 / 9, rel=5 * (2 / weight.numel()) ** 0.5)


# -- what measures them ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["resnet", "separable_cnn", "vgg"])
def test_theorem_4_1_holds_at_every_normed_site_and_every_figure_is_there(
    model: str, spec_of: Callable[..., RunSpec], run: Callable[..., Any]
) -> None:
    spec = spec_of("steps=2", "dtype=float64", "probes=full", "probes.activations.batch=24", model=model)
    ended = run(spec)
    record, sites = ended.records[0], ended.setup.net.sites
    errors = [value for value in record["thm41_error"] if value is not None]
    assert len(errors) == len(sites) - 1
    assert max(errors) < 1e-9
    for name in ("ics", "ics_cos", "abs_over_sum", "grad_norm", "delta_norm", "act_mean.act_in", "bn_mean_gap"):
        assert len(record[name]) == len(sites)
    assert record["ics"][0] == 0
    assert all(value > 0 for value in record["ics"][1:])
    assert all(value >= 1 for value in record["abs_over_sum"] if value is not None)
    assert record["loss_hi"] > record["loss_lo"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg", "resnet", "separable_cnn"])
def test_a_net_for_images_refuses_anything_else(name: str, spec_of: Callable[..., RunSpec]) -> None:
    spec = spec_of(model=name)
    with pytest.raises(ValueError, match=rf"^model: a {name} needs images \(C, H, W\), got \(6,\)\. Use model=mlp"):
        MODELS.build(name, spec.model.options, (6,), 4, spec.model, spec.norm, 0)


def test_an_unknown_depth_or_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.depth: must be 6n \+ 2, got 18\. Use 8, 14, 20"):
        _resnet(18)
    with pytest.raises(ValueError, match=r"^model\.depth: must be 6n \+ 2, got 2\."):
        _resnet(2)
    with pytest.raises(ValueError, match=r"^model\.shortcut: must be 'A' or 'B', got 'C'"):
        _resnet(shortcut="C")
    with pytest.raises(ValueError, match=r"^model\.depth: must be 11, 13, 16 or 19, got 12"):
        _vgg(12)
    with pytest.raises(ValueError, match=r"^model\.strides: not one for each pair of convolutions, got \[1\]\. Give"):
        _separable(strides=[1])


def test_a_layer_past_the_shortcuts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^norm\.layers: layer 9 does not exist, got \[9\]\. This net has: 0 to 8\."):
        _resnet(norm=replace(NORM, layers=(9,)))


def test_a_group_norm_whose_groups_do_not_divide_the_channels_is_refused(spec_of: Callable[..., RunSpec]) -> None:
    with pytest.raises(ValueError, match=r"^norm\.groups: "):
        assemble(spec_of("norm=group", "norm.groups=3", model="resnet"))


def test_a_residual_block_adds_its_two_sides() -> None:
    x = torch.arange(3.0)
    assert torch.equal(Residual(nn.Identity(), nn.Sequential())(x), 2 * x)
