"""Nets of [B, C, T] and of [B, T, C] as people write them: 1-d convolutions and attention. Which blocks are sites, what
is said of the rest, and that what is measured there is what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.core.registry import MODELS, NORMS
from bnlab.core.spec import ModelSpec, NormSpec, RunSpec
from bnlab.net.adopt import adopted
from bnlab.net.build import Net
from bnlab.net.wrap import Tap
from bnlab.run.setup import assemble
from bnlab.verify.checks import findings
from bnlab.verify.contract import MODEL_CHECKS

HE = ModelSpec(name="mine", activation="relu", init="he", init_scale=1.0, init_std=0.1, bias="auto", options={})
BATCH = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
OWN, NONE = replace(BATCH, name="own", options={}), replace(BATCH, name="none", options={})
GROUP = replace(BATCH, name="group", options={"groups": 2, "eps": 1e-5, "affine": True})
IMAGE, OUTPUTS = (1, 8, 8), 10


class Line(nn.Module):
    """Of the 64 pixels in a line."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv1d(1, 6, 5, padding=2), nn.BatchNorm1d(6)
        self.c2, self.b2 = nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8)
        self.act, self.head = nn.GELU(), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool1d(self.act(self.b1(self.c1(x.flatten(1)[:, None]))), 2)
        return self.head(self.b2(self.c2(x)).relu().mean(dim=-1))


class Attention(nn.Module):
    """A block of a transformer over the 8 rows of pixels, its norms before attention and MLP."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS, width: int = 16) -> None:
        super().__init__()
        self.emb, self.n1, self.n2 = nn.Linear(8, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.att = nn.MultiheadAttention(width, 2, batch_first=True)
        self.m1, self.m2 = nn.Linear(width, 32), nn.Linear(32, width)
        self.act, self.head = nn.GELU(), nn.Linear(width, outputs)

    def attended(self, x: Tensor) -> Tensor:
        out: Tensor = self.att(x, x, x, need_weights=False)[0]
        return out

    def forward(self, x: Tensor) -> Any:
        x = self.emb(x.flatten(1, 2)) + 1
        x = x + self.attended(self.n1(x))
        return self.head((x + self.m2(self.act(self.m1(self.n2(x))))).mean(dim=1))


class ByHand(Attention):
    """With attention written out, and the nonlinearity as a function."""

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        del self.att, self.act
        self.q, self.k, self.v = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.act = F.gelu

    def attended(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).transpose(1, 2) / 4, dim=-1) @ self.v(x)


class Encoder(nn.Module):
    """torch's own layers, with dropout."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.emb = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.enc, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.enc(self.emb(x.flatten(1, 2))).mean(dim=1))


class Normed(Attention):
    """Linear, norm, nonlinearity, all of [B, T, C]."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.act(self.n1(self.emb(x.flatten(1, 2)))).mean(dim=1))


class Turned(nn.Module):
    """A batch norm that sees the output of a Linear with its dimensions exchanged: no site, yet a place."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.emb, self.bn, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.bn(self.emb(x.flatten(1, 2)).transpose(1, 2))).mean(dim=2))


class UNet(nn.Module):
    """A skip that is concatenated."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.low = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.up, self.norm_up = nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4)
        self.join = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Any:
        skip = self.down(x)
        up = F.relu(self.norm_up(self.up(self.low(F.max_pool2d(skip, 2)))))
        return self.head(self.join(torch.cat([skip, up], dim=1)).mean(dim=(2, 3)))


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite, self.head = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norm(self.conv(x)))
        scale = self.excite(self.squeeze(x.mean(dim=(2, 3))).relu()).sigmoid()
        return self.head((x * scale[:, :, None, None]).mean(dim=(2, 3)))


class Shared(nn.Module):
    """One convolution in two places."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.both, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.one(x)))
        return self.head(F.relu(self.both(F.relu(self.both(x)))).mean(dim=(2, 3)))


Kind = type[nn.Module]
LEFT = "model=mine: trained, but no site: "
ATTENTION = "att.in_proj_weight, att.in_proj_bias, att.out_proj (NonDynamicallyQuantizableLinear)"
CASES: list[tuple[Kind, list[NormSpec], list[str], str]] = [
    (Line, [BATCH, GROUP, NONE, OWN], ["L00_c1 GELU", "L01_c2 ReLU", "L02_head Identity"], ""),
    (
        Attention,
        [OWN, NONE],
        ["L00_m1 GELU", "L01_head Identity"],
        f"emb (Linear), n1 (LayerNorm), n2 (LayerNorm), {ATTENTION} and m2 (Linear)",
    ),
    (
        ByHand,
        [OWN],
        ["L00_m1 GELU", "L01_head Identity"],
        "emb (Linear), n1 (LayerNorm), n2 (LayerNorm), m2 (Linear), q (Linear), k (Linear) and v (Linear)",
    ),
    (
        Encoder,
        [OWN, NONE],
        ["L00_enc_layers_0_linear1 ReLU", "L01_enc_layers_1_linear1 ReLU", "L02_head Identity"],
        "*",
    ),
    (
        Normed,
        [OWN, NONE],
        ["L00_emb GELU", "L01_head Identity"],
        f"n2 (LayerNorm), {ATTENTION}, m1 (Linear) and m2 (Linear)",
    ),
    (Turned, [BATCH, GROUP, OWN], ["L00_head Identity"], "emb (Linear) and bn (BatchNorm1d)"),
    (
        UNet,
        [BATCH, OWN],
        ["L00_down_0 SiLU", "L01_low_0 SiLU", "L02_join_0 SiLU", "L03_head Identity"],
        "up (ConvTranspose2d) and norm_up (BatchNorm2d)",
    ),
    (
        Excited,
        [BATCH],
        ["L00_conv ReLU", "L01_squeeze ReLU", "L02_excite Sigmoid", "L03_head Identity"],
        "",
    ),
    (Shared, [BATCH, NONE], ["L00_one ReLU", "L01_head Identity"], "both (Conv2d)"),
]


def net_of(kind: Kind, norm: NormSpec, model: ModelSpec = HE) -> Net:
    torch.manual_seed(0)
    return adopted(kind(IMAGE, OUTPUTS), model, norm, IMAGE, OUTPUTS, seed=0)


@pytest.fixture
def mine() -> Iterator[Callable[[Kind], None]]:
    """Registers a class as `model=mine`."""
    yield MODELS.register("mine")
    MODELS.forget("mine")


@pytest.mark.parametrize(("kind", "norms", "sites", "left"), CASES, ids=lambda of: getattr(of, "__name__", ""))
def test_which_blocks_are_sites_and_what_is_said_of_the_rest(
    kind: Kind, norms: list[NormSpec], sites: list[str], left: str
) -> None:
    for norm in norms:
        net = net_of(kind, norm)
        assert [f"{site.name} {type(site.activation).__name__}" for site in net.sites] == sites
    said = [note.removeprefix(LEFT) for note in net_of(kind, OWN).notes if note.startswith(LEFT)]
    assert left == "*" or said == ([left] if left else [])
    assert left != "*" or said[0].startswith("emb (Linear), enc.layers.0.self_attn.in_proj_weight, ")


@pytest.mark.parametrize(
    ("kind", "norm"),
    [(kind, norm) for kind, norms, _, _ in CASES for norm in norms],
    ids=lambda of: getattr(of, "__name__", getattr(of, "name", "")),
)
def test_what_is_measured_is_what_was_trained(
    kind: Kind, norm: NormSpec, mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(kind)
    spec = spec_of("probes=standard", "probes.activations.batch=24", "steps=5", model="cnn")
    found = findings("model=mine", MODEL_CHECKS, replace(spec, model=HE, norm=norm))
    assert [(one.check, one.why) for one in found] == [("at rest", None), ("gradients", None)]


@pytest.mark.parametrize(("kind", "norm"), [(Line, BATCH), (Attention, OWN), (Encoder, OWN), (Normed, OWN)])
def test_every_probe_measures_it_and_leaves_the_run_as_it_is(
    kind: Kind, norm: NormSpec, mine: Any, spec_of: Callable[..., RunSpec], run: Any
) -> None:
    mine(kind)
    ends = [
        run(replace(spec_of(f"probes={probes}", "steps=4", model="cnn"), model=HE, norm=norm)).status["metrics"]
        for probes in ("none", "full")
    ]
    assert ends[0] == ends[1]


def test_a_site_of_b_t_c_is_measured_channel_by_channel() -> None:
    """Against hooks, for the MLP half of a block, and for norms between."""
    x = torch.randn(4, *IMAGE, generator=torch.Generator().manual_seed(0))
    for kind, names in ((Attention, ("m1", "m1", "act")), (Normed, ("emb", "emb", "act"))):
        net = net_of(kind, OWN)
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name in set(names):
            part = net.module.get_submodule(name)
            part.register_forward_hook(lambda _, args, out, name=name, seen=seen: seen.update({name: (args[0], out)}))
        with Tap(net) as tap:
            net.module(x)
        assert net.sites[0].channels_last
        torch.testing.assert_close(tap.sites.pre[0], seen[names[0]][1].transpose(1, 2), rtol=0, atol=0)
        torch.testing.assert_close(tap.sites.act_in[0], seen["act"][0].transpose(1, 2), rtol=0, atol=0)
        assert tap.sites.pre[0].shape == (4, 32 if kind is Attention else 16, 8)


def test_moments_of_b_t_c_are_of_its_channels(mine: Any, spec_of: Callable[..., RunSpec], run: Any) -> None:
    mine(Attention)
    spec = replace(spec_of("probes=standard", "steps=1", model="cnn"), model=HE, norm=OWN)
    setup = assemble(spec)
    seen: list[Tensor] = []
    setup.net.module.get_submodule("m1").register_forward_hook(lambda _, args, out: seen.append(out.detach()))
    setup.net.module(setup.batches.at(0).x)
    pre = seen[0].flatten(0, 1)  # [B T, C]
    record = run(spec).records[0]
    assert record["batch_mean"][0] == pytest.approx(pre.mean(dim=0).mean().item(), abs=1e-6)
    assert record["batch_var"][0] == pytest.approx(pre.var(dim=0, correction=0).mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(NORMS.names()) - {"none", "own"}))
def test_a_norm_of_a_line_is_that_of_an_image_one_pixel_high(name: str, spec_of: Callable[..., RunSpec]) -> None:
    options = spec_of(f"norm={name}", model="cnn").norm.options
    line, image = (NORMS.build(name, options, 16, dims) for dims in (1, 2))
    x = torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        for norm in (line, image):
            norm.train(training)
        torch.testing.assert_close(line(x), image(x[:, :, None])[:, :, 0], rtol=1e-5, atol=1e-6)
    for key, value in image.state_dict().items():
        torch.testing.assert_close(line.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_a_norm_that_knows_no_line_is_refused() -> None:
    class OfImages(nn.Module):
        def __init__(self, channels: int, dims: int) -> None:
            super().__init__()
            self.shape = (1, channels, 1, 1) if dims else (1, channels)
            self.gamma = nn.Parameter(torch.ones(channels))

        def forward(self, x: Tensor) -> Tensor:
            return self.gamma.view(self.shape) * x

    NORMS.register("of_images")(OfImages)
    try:
        with pytest.raises(ValueError, match=r"^norm: norm=of_images does not follow a 1-d convolution: with dims=1"):
            net_of(Line, replace(BATCH, name="of_images", options={}))
    finally:
        NORMS.forget("of_images")


@pytest.mark.parametrize(
    ("kind", "norm", "message"),
    [
        (
            Attention,
            BATCH,
            r"n1 does not see \[B, C\], \[B, C, T\] or \[B, C, H, W\], and can only be left out or kept",
        ),
        (Encoder, GROUP, r"enc\.layers\.0\.norm1 does not see .*, got \[4, 8, 16\]\. Use norm=none or norm=own\."),
    ],
)
def test_a_norm_of_the_last_dimension_is_not_exchanged(kind: Kind, norm: NormSpec, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^model=mine: {message}"):
        net_of(kind, norm)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, "ReLU"),
    "torch.relu": (torch.relu, "ReLU"),
    "x.relu": (lambda x: x.relu(), "ReLU"),
    "x.relu_": (lambda x: x.relu_(), "ReLU"),
    "nn.ReLU made in forward": (lambda x: nn.ReLU()(x), "ReLU"),
    "gelu": (F.gelu, "GELU"),
    "gelu of tanh": (lambda x: F.gelu(x, approximate="tanh"), "GELU"),
    "silu": (F.silu, "SiLU"),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), "LeakyReLU"),
    "x.sigmoid": (lambda x: x.sigmoid(), "Sigmoid"),
    "logsigmoid": (F.logsigmoid, "LogSigmoid"),
    "hardsigmoid": (F.hardsigmoid, "Hardsigmoid"),
    "tanhshrink": (F.tanhshrink, "Tanhshrink"),
    "clamp": (lambda x: x.clamp(min=0), "Hardtanh"),
    "clamp_min": (lambda x: torch.clamp_min(x, 0), "Hardtanh"),
    "x * (x > 0)": (lambda x: x * (x > 0), "Identity"),
    "sin": (torch.sin, "Identity"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nonlinearity_that_is_a_function_is_found_or_one_line_says_what_to_write(name: str) -> None:
    function, kind = FUNCTIONS[name]

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, OUTPUTS)

        def forward(self, x: Tensor) -> Any:
            return self.head(function(self.norm(self.conv(x))).mean(dim=(2, 3)))

    net = adopted(Own(), HE, BATCH, IMAGE, OUTPUTS, seed=0)
    assert type(net.sites[0].activation).__name__ == kind
    said = [note for note in net.notes if "no nonlinearity" in note]
    assert said == (
        []
        if kind != "Identity"
        else [
            "model=mine: no nonlinearity follows norm directly: act_in is their output itself (to measure at a "
            "nonlinearity, make it a part, self.act = nn.ReLU(), and name the block in `sites`)"
        ]
    )
