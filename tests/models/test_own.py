"""A user's own module: its blocks are found and named, its norms exchanged, or the error says how to name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec, RunSpec
from bnlab.net.adopt import adopted, build_net
from bnlab.net.build import Net
from bnlab.net.wrap import Tap
from bnlab.run.setup import assemble
from bnlab.verify.checks import RUN_CHECKS

MODEL = ModelSpec(name="mine", activation="relu", init="he", init_scale=1.0, init_std=0.1, bias="auto", options={})
BATCH = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
GROUP = replace(BATCH, name="group", options={"groups": 2, "eps": 1e-5, "affine": True})
NONE = replace(BATCH, name="none", options={})
SHAPE = (1, 8, 8)


class Plain(nn.Module):
    """As many write it: a stack of convolutions, a dense layer with the norm after its nonlinearity, a head."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, width: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.dense = nn.Linear(2 * width, 6)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(self.features(x).flatten(1))
        out: Tensor = self.head(self.norm(self.relu(x)))
        return out


class Residual(nn.Module):
    """A sum between norm and nonlinearity: to be named."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 4, 3, padding=1)
        self.bn1, self.relu1 = nn.BatchNorm2d(4), nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2, self.relu2 = nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.join(self.bn2(self.conv2(x)), x))
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out

    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        return branch + x


class Named(Residual):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {
        "stem": ("conv1", "bn1", "relu1"),
        "block": ("conv2", "bn2", "relu2"),
        "out": ("fc", "", ""),
    }


class InPlace(Named):
    def join(self, branch: Tensor, x: Tensor) -> Tensor:
        branch += x
        return branch


class NormFirst(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        out: Tensor = self.fc(self.relu2(self.bn2(x + 0)).mean(dim=(2, 3)))
        return out


class Bare(nn.Sequential):
    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, outputs))


def _net(kind: type[nn.Module], norm: NormSpec = BATCH, seed: int = 0) -> Net:
    torch.manual_seed(3)
    return adopted(kind(SHAPE, 10), MODEL, norm, SHAPE, 10, seed)


def _x(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_blocks_are_found_and_named_by_their_paths() -> None:
    net = _net(Plain)
    assert [site.name for site in net.sites] == ["L00_features_0", "L01_features_3", "L02_dense", "L03_head"]
    kinds = [(type(site.norm).__name__, type(site.activation).__name__, site.norm_first) for site in net.sites]
    assert kinds == [
        ("BatchNorm2d", "ReLU", True),
        ("BatchNorm2d", "GELU", True),
        ("BatchNorm1d", "ReLU", False),
        ("NoneType", "Identity", True),
    ]
    assert net.sites[0].params == ("features.0.weight", "features.1.weight", "features.1.bias")
    assert [site.residual_sum for site in net.sites] == [False] * 4


@pytest.mark.parametrize("norm", [BATCH, GROUP, NONE, replace(BATCH, layers=(1,)), replace(BATCH, every=3)])
def test_its_norms_are_places_for_the_norm_of_the_run(norm: NormSpec) -> None:
    net = _net(Plain, norm)
    places = [0, 1, 2] if norm.layers == "all" else list(norm.layers)
    there = [i for i in places if (i + 1) % norm.every == 0] if norm is not NONE else []
    assert [i for i, site in enumerate(net.sites) if site.norm is not None] == there
    wanted = {"batch": (nn.BatchNorm1d, nn.BatchNorm2d), "group": (nn.GroupNorm,), "none": ()}[norm.name]
    parts = [part for part in net.module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm)]
    assert len(parts) == len(there)
    assert all(isinstance(part, wanted) for part in parts)


def test_a_tap_sees_what_the_module_computes() -> None:
    for norm in (BATCH, NONE):
        net = _net(Plain, norm)
        with Tap(net) as tap:
            out = net.module(_x())
        first = F.conv2d(_x(), net.params["features.0.weight"], padding=1)
        torch.testing.assert_close(tap.sites.pre[0], first)
        expected = first if norm is NONE else F.batch_norm(first, None, None, training=True)
        torch.testing.assert_close(tap.sites.act_in[0], expected)
        assert tap.sites.act_in[2] is tap.sites.pre[2]
        assert tap.sites.pre[3] is tap.sites.act_in[3] is out


@pytest.mark.parametrize("norm", [BATCH, NONE])
@pytest.mark.parametrize("kind", [Named, InPlace])
def test_a_named_block_shows_the_sum_that_its_nonlinearity_sees(kind: type[nn.Module], norm: NormSpec) -> None:
    net = _net(kind, norm)
    assert [(site.name, site.residual_sum) for site in net.sites] == [
        ("L00_stem", False),
        ("L01_block", True),
        ("L02_out", False),
    ]
    with Tap(net) as tap:
        net.module(_x())
    pre, act_in = tap.sites.pre[1], tap.sites.act_in[1]
    normed = F.batch_norm(pre, None, None, training=True) if norm is BATCH else pre
    torch.testing.assert_close(act_in, normed + tap.sites.act_in[0].relu())


def test_a_norm_of_no_site_is_a_place_too() -> None:
    for norm, kinds in ((BATCH, [nn.BatchNorm2d]), (GROUP, [nn.GroupNorm]), (NONE, [])):
        net = _net(NormFirst, norm)
        assert [site.norm for site in net.sites] == [None] * 2
        assert [type(part) for part in net.unsited] == kinds
    assert _net(NormFirst, replace(BATCH, layers=(0,))).unsited
    with pytest.raises(ValueError, match=r"^norm\.layers: layer 1 does not exist"):
        _net(NormFirst, replace(BATCH, layers=(1,)))


def test_initial_weights_depend_on_the_seed_and_not_on_the_norm_or_earlier_draws() -> None:
    one = [site.affine.get_parameter("weight") for site in _net(Plain).sites]
    torch.rand(7)
    for norm in (GROUP, NONE):
        other = [site.affine.get_parameter("weight") for site in _net(Plain, norm).sites]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], _net(Plain, seed=1).sites[0].affine.get_parameter("weight"))


@pytest.mark.parametrize(
    ("kind", "norm", "message"),
    [
        (Bare, BATCH, r"norm: model=mine has no norm that could be exchanged, got 'batch'\. Put nn\.BatchNorm2d"),
        (Plain, replace(BATCH, position="after"), r"norm\.position: model=mine says itself where its norms stand"),
        (Plain, replace(BATCH, layers=(3,)), r"norm\.layers: layer 3 does not exist, .* This net has: 0 to 2\."),
        (Plain, replace(GROUP, options=GROUP.options | {"groups": 5}), r"norm\.groups: "),  # type: ignore[operator]
    ],
)
def test_what_cannot_be_inferred_is_refused_with_a_remedy(kind: type[nn.Module], norm: NormSpec, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        _net(kind, norm)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["conv1"], r"model=mine: its `sites` is not \{name: \(affine, norm, activation\)\}\. Write sites = "),
        ({"a": ("conv9", "", "")}, r"model=mine sites: no part of a .*, got 'conv9'\. There are: conv1, bn1, relu1"),
        ({"a": ("relu1", "", "")}, r"model=mine sites: a has no affine map with a weight, got 'relu1'"),
    ],
)
def test_names_that_cannot_be_are_refused(sites: Any, message: str) -> None:
    kind = type("Misnamed", (Residual,), {"sites": sites})
    with pytest.raises(ValueError, match=f"^{message}"):
        _net(kind)


def test_a_forward_that_fails_gives_one_line() -> None:
    with pytest.raises(ValueError, match=r"^model=mine: RuntimeError in a forward of 4 x \[1, 4, 4\]: "):
        adopted(Bare((1, 4, 4), 3), MODEL, NONE, (1, 4, 4), 3, 0)


def test_a_module_without_norms_stays_without_norms() -> None:
    assert [site.name for site in _net(Bare, NONE).sites] == ["L00_1", "L01_3"]


@pytest.fixture
def registered() -> Iterator[None]:
    MODELS.register("mine")(Plain)
    yield
    MODELS.forget("mine")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_its_runs_keep_the_contract(norm: str, spec_of: Callable[..., RunSpec]) -> None:
    spec = spec_of(f"norm={norm}", "probes=full", "probes.activations.batch=24", "steps=7", model="cnn")
    spec = replace(spec, model=replace(spec.model, name="mine", options={"width": 4}))
    for check in RUN_CHECKS.values():
        check([spec])
    assert len(assemble(spec).net.sites) == 4


@pytest.mark.usefixtures("registered")
def test_its_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^model\.width: must be an integer, got 'wide'"):
        build_net(replace(MODEL, options={"width": "wide"}), BATCH, SHAPE, 10, 0)
