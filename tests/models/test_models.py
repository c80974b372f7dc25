"""Nets: parameters counted, sites named and measured against a hand-written forward, norms in their places."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab import config
from bnlab.core.registry import MODELS, NORMS
from bnlab.core.spec import ModelSpec, NormSpec
from bnlab.net.adopt import build_net
from bnlab.net.build import Net, normed_layers
from bnlab.net.wrap import site_shapes
from bnlab.run.setup import refuse_single_values

MODEL_NAMES = list(config.available("model", [config.packaged_dir()]))
MODEL = ModelSpec(name="mlp", activation="relu", init="he", init_scale=1.0, init_std=0.1, bias="auto", options={})
NORM = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
NONE = replace(NORM, name="none", options={})
CONV = {"channels": [3, 4, 5], "strides": [1, 2, 1], "kernel": 3, "head": "average"}


def _mlp(
    norm: NormSpec = NORM,
    model: ModelSpec = MODEL,
    *,
    width: int | list[int] = 7,
    depth: int | None = 3,
    seed: int = 0,
    inputs: tuple[int, ...] = (1, 2, 3),
) -> Net:
    net: Net = MODELS.build("mlp", {"depth": depth, "width": width}, inputs, 4, model, norm, seed)
    return net


def _cnn(norm: NormSpec = NORM, model: ModelSpec = MODEL, *, seed: int = 0, **options: Any) -> Net:
    net: Net = MODELS.build("cnn", CONV | options, (2, 8, 6), 4, model, norm, seed)
    return net


def _deep_linear(norm: NormSpec = NORM, **model: Any) -> Net:
    shared = replace(MODEL, **({"activation": "linear", "bias": False} | model))
    net: Net = MODELS.build("deep_linear", {"depth": 4, "width": 5}, (6,), 3, shared, norm, 0)
    return net


def _count(net: Net) -> int:
    return sum(param.numel() for param in net.module.parameters())


# -- how many parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "bias", "per_unit"),
    [(NONE, "auto", 1), (NONE, True, 1), (NONE, False, 0), (NORM, "auto", 2), (NORM, True, 3), (NORM, False, 2)],
)
def test_an_mlp_has_the_parameters_of_its_closed_form(norm: NormSpec, bias: Any, per_unit: int) -> None:
    """Weights d h + (k - 1) h^2 + h o; per hidden unit a bias and, with a norm, gamma and beta; the head's bias."""
    d, h, k, o = 6, 7, 3, 4
    expected = d * h + (k - 1) * h * h + h * o + k * h * per_unit + o * (bias is not False)
    assert _count(_mlp(norm, replace(MODEL, bias=bias))) == expected


@pytest.mark.parametrize("head", ["average", "max", "flatten"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("norm", [NORM, NONE])
def test_a_cnn_has_the_parameters_of_its_closed_form(norm: NormSpec, kernel: int, head: str) -> None:
    channels, height, width = [2, 3, 4, 5], 8, 6
    expected = 0
    for before, after, stride in zip(channels[:-1], channels[1:], [1, 2, 1], strict=True):
        expected += before * after * kernel**2 + after * (2 if norm is NORM else 1)
        height, width = ((size + 2 * (kernel // 2) - kernel) // stride + 1 for size in (height, width))
    features = 5 * (height * width if head == "flatten" else 1)
    net = _cnn(norm, kernel=kernel, head=head)
    assert _count(net) == expected + features * 4 + 4
    assert net.module(torch.zeros(2, 2, 8, 6)).shape == (2, 4)


@pytest.mark.parametrize(("norm", "affine"), [(NONE, 0), (NORM, 2 * 3 * 5)])
def test_a_deep_linear_net_has_the_parameters_of_its_closed_form(norm: NormSpec, affine: int) -> None:
    assert _count(_deep_linear(norm)) == 6 * 5 + 2 * 5 * 5 + 5 * 3 + affine
    assert _count(_deep_linear(norm, bias=True)) == 6 * 5 + 2 * 5 * 5 + 5 * 3 + affine + 3 * 5 + 3


def test_a_list_of_widths_gives_each_layer_its_own() -> None:
    net = _mlp(NONE, width=[5, 3], depth=None)
    assert [tuple(site.affine.get_parameter("weight").shape) for site in net.sites] == [(5, 6), (3, 5), (4, 3)]
    assert _mlp(NONE, width=[5, 3], depth=2).module(torch.zeros(2, 1, 2, 3)).shape == (2, 4)


# -- sites -----------------------------------------------------------------------------------------


def test_sites_are_named_by_index_and_kind_the_head_last() -> None:
    assert [site.name for site in _mlp().sites] == ["L00_fc", "L01_fc", "L02_fc", "L03_out"]
    assert [site.name for site in _cnn().sites] == ["L00_conv", "L01_conv", "L02_conv", "L03_out"]
    assert [site.name for site in _deep_linear().sites] == ["L00_fc", "L01_fc", "L02_fc", "L03_out"]
    many = [site.name for site in _mlp(width=[2] * 101, depth=None, norm=NONE).sites]
    assert many == sorted(many)
    assert (many[0], many[-1]) == ("L000_fc", "L101_out")


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_site_names_its_parameters_the_weight_first(position: Any) -> None:
    net = _mlp(replace(NORM, position=position), replace(MODEL, bias=True))
    params = dict(net.module.named_parameters())
    for site in net.sites:
        assert params[site.params[0]] is site.affine.get_parameter("weight")
    assert [name for site in net.sites for name in sorted(site.params)] == sorted(params)
    assert net.sites[0].params == (
        "L00_fc_affine.weight",
        "L00_fc_affine.bias",
        "L00_fc_norm.weight",
        "L00_fc_norm.bias",
    )


def _numpy(module: nn.Module | None, name: str) -> np.ndarray:
    value = getattr(module, name, None)
    return np.zeros(1) if value is None else value.detach().numpy()


def _affine(site: Any, x: np.ndarray) -> np.ndarray:
    """Linear, or a convolution with explicit loops over the positions of its output."""
    weight = _numpy(site.affine, "weight")
    bias = _numpy(site.affine, "bias")
    if weight.ndim == 2:
        return x.reshape(len(x), -1) @ weight.T + bias
    kernel, stride = weight.shape[2], site.affine.stride[0]
    pad = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = ((size - kernel) // stride + 1 for size in padded.shape[2:])
    out = np.empty((len(x), len(weight), height, width))
    for i, j in itertools.product(range(height), range(width)):
        window = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        out[:, :, i, j] = np.tensordot(window, weight, axes=([1, 2, 3], [1, 2, 3]))
    return out + (bias.reshape(1, -1, 1, 1) if bias.size > 1 else bias)


def _normed(site: Any, x: np.ndarray) -> np.ndarray:
    if site.norm is None:
        return x
    over = (0, *range(2, x.ndim))
    shape = (1, -1, *([1] * (x.ndim - 2)))
    mean, var = x.mean(axis=over, keepdims=True), x.var(axis=over, keepdims=True)
    normalized = (x - mean) / np.sqrt(var + 1e-5)
    return _numpy(site.norm, "weight").reshape(shape) * normalized + _numpy(site.norm, "bias").reshape(shape)


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "linear": lambda x: x,
}


def _by_hand(
    net: Net, x: np.ndarray, position: str, activation: str, head: str
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """pre and act_in of every site, and the outputs."""
    pres, act_ins = [], []
    for site in net.sites[:-1]:
        pre = _affine(site, x)
        act_in = _normed(site, pre) if position == "before" else pre
        out = ACTIVATIONS[activation](act_in)
        x = out if position == "before" else _normed(site, out)
        pres.append(pre)
        act_ins.append(act_in)
    if x.ndim == 4 and head != "flatten":
        x = x.mean(axis=(2, 3)) if head == "average" else x.max(axis=(2, 3))
    last = _affine(net.sites[-1], x.reshape(len(x), -1))
    return [*pres, last], [*act_ins, last], last


def _randomized(net: Net) -> Net:
    """Weights, gammas, betas and biases away from 0 and 1, in float64."""
    net.module.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for param in net.module.parameters():
            param.add_(0.3 * torch.randn(param.shape, generator=generator, dtype=param.dtype))
    return net


def _seen(net: Net, x: Tensor) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """What plain hooks of the test's own see at each site's affine and activation."""
    pres: list[np.ndarray] = []
    act_ins: list[np.ndarray] = []
    handles = []
    for site in net.sites:
        handles.append(site.affine.register_forward_hook(lambda m, a, out: pres.append(out.detach().numpy())))
        handles.append(site.activation.register_forward_pre_hook(lambda m, a: act_ins.append(a[0].detach().numpy())))
    out = net.module(x).detach().numpy()
    for handle in handles:
        handle.remove()
    return pres, act_ins, out


def _agrees(net: Net, x: Tensor, position: str, activation: str, head: str = "average") -> None:
    for found, expected in zip(_seen(net, x), _by_hand(net, x.numpy(), position, activation, head), strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", [NORM, NONE, replace(NORM, layers=(1,)), replace(NORM, every=2)])
def test_an_mlp_computes_what_a_hand_written_forward_does_at_every_point(
    norm: NormSpec, position: Any, activation: Any
) -> None:
    norm = replace(norm, position=position)
    for bias in ("auto", True, False):
        net = _randomized(_mlp(norm, replace(MODEL, activation=activation, bias=bias)))
        x = torch.randn(9, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        _agrees(net, x, position, activation)


@pytest.mark.parametrize("head", ["average", "max", "flatten"])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("norm", [NORM, NONE, replace(NORM, layers=(0, 2))])
def test_a_cnn_computes_what_a_hand_written_forward_does_at_every_point(
    norm: NormSpec, position: Any, kernel: int, head: str
) -> None:
    net = _randomized(_cnn(replace(norm, position=position), kernel=kernel, head=head))
    x = torch.randn(3, 2, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _agrees(net, x, position, "relu", head)


def test_a_deep_linear_net_without_norm_is_the_product_of_its_matrices() -> None:
    net = _randomized(_deep_linear(NONE))
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = torch.eye(6, dtype=torch.float64)
    for site in net.sites:
        product = site.affine.get_parameter("weight") @ product
    torch.testing.assert_close(net.module(x), x @ product.T, rtol=1e-12, atol=1e-12)
    _agrees(_randomized(_deep_linear()), x, "before", "linear")


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_shows_each_site_once_in_order_and_takes_any_norm(
    name: str, spec_of: Callable[..., Any], bits_of: Callable[[Any], Any]
) -> None:
    for norm in sorted({*NORMS.names()} - {"own"}):
        if norm == "instance" and name in ("mlp", "deep_linear"):
            continue  # refused there
        spec = spec_of(f"norm={norm}", model=name)
        shape = (8,) if name == "deep_linear" else (2, 8, 8)
        net = build_net(spec.model, spec.norm, shape, 3, 0)
        before = bits_of(net.module.state_dict())
        shapes = site_shapes(net, shape)
        assert bits_of(net.module.state_dict()) == before
        assert all(part.training for part in net.module.modules())
        pres, act_ins, out = _seen(net, torch.randn(6, *shape, generator=torch.Generator().manual_seed(0)))
        assert len(pres) == len(act_ins) == len(net.sites)
        assert [pre.shape[1:] for pre in pres] == shapes
        assert out.shape == (6, 3)
        names = [site.name for site in net.sites]
        assert names == sorted(set(names))
        assert net.sites[-1].norm is None


# -- where the norm stands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "every", "expected"),
    [
        ("all", 1, {0, 1, 2, 3, 4}),
        ("all", 2, {1, 3}),
        ("all", 5, {4}),
        ((0,), 1, {0}),
        ((4, 0, 2), 1, {0, 2, 4}),
        ((1, 1), 1, {1}),
    ],
)
def test_the_norm_is_on_all_every_nth_or_the_listed_layers(layers: Any, every: int, expected: set[int]) -> None:
    norm = replace(NORM, layers=layers, every=every)
    assert normed_layers(norm, 5) == expected
    net = _mlp(norm, width=[3] * 5, depth=None)
    assert {index for index, site in enumerate(net.sites) if site.norm is not None} == expected


@pytest.mark.parametrize(
    ("layers", "every", "message"),
    [
        ((3,), 1, r"norm\.layers: layer 3 does not exist, got \[3\]\. This net has: 0 to 2\."),
        ((0, 7), 1, r"norm\.layers: layer 7 does not exist, got \[0, 7\]\. This net has: 0 to 2\."),
        ((0,), 2, r"norm\.every: cannot go with a list in norm\.layers, got 2\. Use one of the two\."),
        ("all", 4, r"norm\.every: no layer is the 4th of 3, got 4\. Use a smaller one\."),
    ],
)
def test_a_norm_on_a_layer_that_does_not_exist_is_refused(layers: Any, every: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        _mlp(replace(NORM, layers=layers, every=every))


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_order_of_parts_follows_the_position(position: Any) -> None:
    roles = [name.rpartition("_")[2] for name, _ in _mlp(replace(NORM, position=position)).module.named_children()]
    middle = ["norm", "act"] if position == "before" else ["act", "norm"]
    assert roles == ["flatten", *(["affine", *middle] * 3), "affine", "act"]


@pytest.mark.parametrize("build", [_mlp, _cnn])
@pytest.mark.parametrize(
    ("norm", "bias", "expected"),
    [
        (NORM, "auto", [False, False, False, True]),
        (NORM, True, [True, True, True, True]),
        (NORM, False, [False, False, False, False]),
        (NONE, "auto", [True, True, True, True]),
        (NONE, False, [False, False, False, False]),
        (replace(NORM, layers=(1,)), "auto", [True, False, True, True]),
        (replace(NORM, position="after"), "auto", [True, True, True, True]),
    ],
)
def test_the_bias_is_dropped_exactly_where_the_norm_cancels_it(
    build: Callable[..., Net], norm: NormSpec, bias: Any, expected: list[bool]
) -> None:
    net = build(norm, replace(MODEL, bias=bias))
    assert [site.affine.bias is not None for site in net.sites] == expected


def test_a_bias_before_a_batch_norm_has_no_effect_and_no_gradient() -> None:
    """The reason to drop it: with `bias: true` it is there, and idle."""
    net = _mlp(NORM, replace(MODEL, bias=True))
    net.module.double()
    x = torch.randn(9, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = net.module(x)
    before.pow(2).sum().backward()
    bias = net.sites[1].affine.get_parameter("bias")
    assert bias.grad is not None
    assert bias.grad.abs().max() < 1e-12
    with torch.no_grad():
        bias.add_(3.0)
    torch.testing.assert_close(net.module(x), before, rtol=1e-11, atol=1e-11)


# -- initialization --------------------------------------------------------------------------------

WIDE = {"depth": 2, "width": 200}


def _weights(seed: int = 0, norm: NormSpec = NONE, **model: Any) -> list[Tensor]:
    net: Net = MODELS.build("mlp", WIDE, (300,), 10, replace(MODEL, **model), norm, seed)
    return [site.affine.get_parameter("weight").detach() for site in net.sites]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("init", ["he", "glorot", "gaussian", "orthogonal"])
def test_initial_weights_have_the_moments_of_theory(init: Any, scale: float) -> None:
    for weight in _weights(init=init, init_scale=scale, init_std=0.07):
        rows, columns = weight.shape
        variance = {
            "he": 2 / columns,
            "glorot": 2 / (rows + columns),
            "gaussian": 0.07**2,
            "orthogonal": 1 / max(rows, columns),
        }[init] * scale**2
        n = weight.numel()
        # A mean of n draws lies within 5 standard errors; a variance's relative standard error is at most sqrt(2/n).
        assert abs(weight.double().mean().item()) < 5 * math.sqrt(variance / n)
        assert weight.double().pow(2).mean().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
        if init == "glorot":
            bound = scale * math.sqrt(6 / (rows + columns))
            assert weight.abs().max().item() <= bound
            assert weight.abs().max().item() > 0.99 * bound


def test_he_and_gaussian_weights_are_normal() -> None:
    for init in ("he", "gaussian"):
        weight = _weights(init=init)[0].double().flatten()
        kurtosis = (weight**4).mean() / (weight**2).mean() ** 2
        assert kurtosis.item() == pytest.approx(3, abs=5 * math.sqrt(24 / len(weight)))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_orthogonal_weights_have_orthonormal_rows_or_columns(scale: float) -> None:
    for weight in _weights(init="orthogonal", init_scale=scale):
        matrix = weight.double() / scale
        gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=2e-6)


def test_he_counts_the_fan_in_of_a_convolution() -> None:
    net: Net = MODELS.build(
        "cnn", CONV | {"channels": [64, 64], "strides": 1}, (32, 8, 8), 4, replace(MODEL, init="he"), NONE, 0
    )
    for site, fan_in in zip(net.sites[:2], (32 * 9, 64 * 9), strict=True):
        weight = site.affine.get_parameter("weight").detach().double()
        assert weight.var().item() == pytest.approx(2 / fan_in, rel=5 * math.sqrt(2 / weight.numel()))


def test_biases_start_at_0_gammas_at_1_betas_at_0() -> None:
    net = _mlp(NORM, replace(MODEL, bias=True))
    for site in net.sites:
        assert torch.count_nonzero(site.affine.get_parameter("bias")) == 0
        if site.norm is not None:
            assert torch.equal(site.norm.get_parameter("weight"), torch.ones(7))
            assert torch.equal(site.norm.get_parameter("bias"), torch.zeros(7))


@pytest.mark.parametrize("init", ["he", "glorot", "orthogonal", "gaussian"])
def test_a_norm_does_not_shift_the_initial_weights_and_a_seed_does(init: Any) -> None:
    plain = _weights(init=init)
    for norm in (NORM, replace(NORM, layers=(1,)), replace(NORM, position="after")):
        for one, other in zip(plain, _weights(init=init, norm=norm), strict=True):
            assert torch.equal(one, other)
    for one, other in zip(plain, _weights(seed=1, init=init), strict=True):
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(one.numel())


def test_layers_draw_from_streams_of_their_own() -> None:
    """The last of three layers starts the same in a net whose first layer is wider: nothing is drawn before it."""
    one = MODELS.build("mlp", {"depth": None, "width": [3, 5, 6]}, (4,), 2, MODEL, NONE, 0)
    other = MODELS.build("mlp", {"depth": None, "width": [9, 5, 6]}, (4,), 2, MODEL, NONE, 0)
    for index in (2, 3):
        weights = [net.sites[index].affine.get_parameter("weight") for net in (one, other)]
        assert torch.equal(weights[0], weights[1])


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batch", "batch_reference"])
def test_a_single_value_per_channel_is_refused_with_the_site(name: str) -> None:
    norm = replace(NORM, name=name)
    message = rf"^data\.batch_size: gives norm={name} one value per channel at L00_fc, got 1\. Batch statistics need"
    with pytest.raises(ValueError, match=message):
        refuse_single_values(_mlp(norm), (1, 2, 3), norm, 1, "data.batch_size")
    refuse_single_values(_mlp(norm), (1, 2, 3), norm, 2, "data.batch_size")


def test_one_image_is_enough_where_it_has_several_positions_and_not_where_it_has_one() -> None:
    refuse_single_values(_cnn(), (2, 8, 6), NORM, 1, "data.batch_size")
    shrunk = _cnn(strides=[2, 4, 1])  # 8x6 -> 4x3 -> 1x1
    with pytest.raises(
        ValueError, match=r"^data\.batch_size: gives norm=batch one value per channel at L01_conv, got 1\."
    ):
        refuse_single_values(shrunk, (2, 8, 6), NORM, 1, "data.batch_size")


def test_instance_norm_of_one_position_is_refused_with_the_site_whatever_the_batch() -> None:
    norm = replace(NORM, name="instance", options={"eps": 1e-5, "affine": True})
    refuse_single_values(_cnn(norm), (2, 8, 6), norm, 1, "data.batch_size")
    for position in ("before", "after"):
        shrunk = _cnn(replace(norm, position=position), strides=[2, 4, 1])  # 8x6 -> 4x3 -> 1x1
        with pytest.raises(ValueError, match=r"^norm: one value per channel and example at L01_conv, got 'instance'\."):
            refuse_single_values(shrunk, (2, 8, 6), norm, 64, "data.batch_size")
        assert not any("forward" in vars(part) for part in shrunk.module.modules())


def test_without_batch_statistics_a_single_value_is_welcome() -> None:
    refuse_single_values(_mlp(NONE), (1, 2, 3), NONE, 1, "data.batch_size")


@pytest.mark.parametrize(
    ("name", "options", "model", "message"),
    [
        (
            "mlp",
            {"depth": 2, "width": [3, 4, 5]},
            {},
            r"model\.depth: does not agree with the 3 widths in model\.width, got 2",
        ),
        ("mlp", {"depth": None, "width": 3}, {}, r"model\.depth: missing\. Give a depth, or a list of widths\."),
        ("mlp", {"depth": 0, "width": 3}, {}, r"model\.depth: must be at least 1"),
        ("mlp", {"depth": 1, "width": 0}, {}, r"model\.width: must be at least 1"),
        ("mlp", {"depth": None, "width": []}, {}, r"model\.width: must .*not be empty"),
        ("cnn", CONV, {}, r"model: a cnn needs images \(C, H, W\), got \(6,\)\. Use model=mlp"),
        ("deep_linear", {"depth": 3, "width": 3}, {}, r"model\.activation: a deep linear net has none, got 'relu'"),
        ("deep_linear", {"depth": 1, "width": 3}, {"activation": "linear"}, r"model\.depth: must be at least 2, got 1"),
    ],
)
def test_a_net_that_cannot_be_is_refused(name: str, options: Any, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MODELS.build(name, options, (6,), 4, replace(MODEL, **model), NONE, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strides": [1, 2]},
            r"model\.strides: not one for each convolution, got \[1, 2\]\. Give one number, or 3 numbers",
        ),
        ({"channels": []}, r"model\.channels: must not be empty"),
        ({"kernel": 0}, r"model\.kernel: must be at least 1, got 0"),
        ({"head": "mean"}, r"model\.head: must be 'average', 'max' or 'flatten', got 'mean'"),
    ],
)
def test_a_cnn_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _cnn(**options)


def test_a_deep_linear_net_takes_images_as_they_come() -> None:
    options = {"depth": 3, "width": 5}
    shared = replace(MODEL, activation="linear", bias=False)
    image, flat = (MODELS.build("deep_linear", options, shape, 3, shared, NONE, 0) for shape in ((2, 3, 4), (24,)))
    x = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(image.module(x), flat.module(x.flatten(1)), rtol=0, atol=0)
