"""What is trained is what the user wrote, and what is measured is what was trained: nets as people write them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab.core.registry import MODELS
from bnlab.core.spec import ModelSpec, NormSpec, RunSpec
from bnlab.net.adopt import adopted
from bnlab.net.build import Net
from bnlab.net.wrap import Tap
from bnlab.run.setup import assemble
from bnlab.verify.checks import findings
from bnlab.verify.contract import MODEL_CHECKS, contract

OWN = ModelSpec(name="mine", activation="relu", init="own", init_scale=1.0, init_std=0.1, bias="auto", options={})
HE = replace(OWN, init="he")
BATCH = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
KEPT, NONE = replace(BATCH, name="own", options={}), replace(BATCH, name="none", options={})
IMAGE, OUTPUTS = (1, 8, 8), 10


class Net2(nn.Module):
    """conv1 -> bn1 -> relu -> pooled -> fc: the net that the cases below change in one place."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 6, 3, padding=1)
        self.bn1: nn.Module = nn.BatchNorm2d(6)
        self.relu: nn.Module = nn.ReLU()
        self.fc = nn.Linear(6, outputs)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        return out

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features(x).mean(dim=(2, 3)))


class BNAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class Fused(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.bn1, self.relu = BNAct(6), nn.Identity()


class FusedNamed(Fused):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {"a": ("conv1", "bn1", ""), "b": ("fc", "", "")}


class WithChild(nn.BatchNorm2d):
    """Norm and nonlinearity in one, the second as a part of the first."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(super().forward(x))
        return out


class FusedChild(Net2):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {"a": ("conv1", "bn1", "bn1.act"), "b": ("fc", "", "")}

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.bn1, self.relu = WithChild(6), nn.Identity()


class ByHand(nn.Module):
    """Layer normalization as in a textbook."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(x)


class NormByHand(Net2):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {"a": ("conv1", "bn1", "relu"), "b": ("fc", "", "")}

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.own = ByHand()

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(super().features(x))
        return out


class Unnamed(Net2):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {"b": ("fc", "", "")}


class FusedStack(nn.Sequential):
    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), BNAct(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, outputs))


class Dropped(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.dropout = nn.Dropout(0.5)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(super().features(x))
        return out


class StaysInEval(Net2):
    """Batch norm with running statistics, in training too, as for fine-tuning."""

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.bn1.running_var = torch.full((6,), 3.0)
        self.bn1.running_mean = torch.full((6,), 0.7)

    def train(self, mode: bool = True) -> StaysInEval:
        super().train(mode)
        self.bn1.eval()
        return self


class Viewed(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.fc = nn.Linear(6 * 64, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x).view(len(x), -1))
        return out


class Functional(Net2):
    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class FunctionalInPlace(Net2):
    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class Skipping(Net2):
    """A convolution that training leaves out."""

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.more = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x if self.training else self.more(x))


class LogSoftmax(Net2):
    """As in many tutorials; a cross entropy of it is that of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(super().forward(x), dim=1)


class Frozen(Net2):
    """A fixed first layer, as for transfer."""

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.stem = nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return super().forward(torch.tanh(self.stem(x)))


class Unused(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.never = nn.Linear(3, 3)


class Keywords(Net2):
    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(input=self.conv1(input=x)))
        return out


class Recurrent(nn.Module):
    """The rows of an image, one after the other."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 7, batch_first=True), nn.Linear(7, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x[:, 0])
        out: Tensor = self.fc(states[:, -1])
        return out


class EveryStep(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x[:, 0])
        out: Tensor = self.fc(states).mean(dim=1)
        return out


class RootMeanSquare(nn.Module):
    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.fc1, self.norm, self.act, self.fc2 = (
            nn.Linear(64, 9),
            nn.RMSNorm(9),
            nn.SiLU(),
            nn.Linear(9, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.norm(self.fc1(x.flatten(1)))))
        return out


class Swish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.beta * x)


class OwnActivation(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.relu = Swish()


class Block(nn.Module):
    """A residual block with one relu for both of its places, as in many libraries; and no sum before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)
        return out


class SharedRelu(Net2):
    sites: ClassVar[dict[str, tuple[str, str, str]]] = {
        "head": ("fc", "", ""),
        "stem": ("conv1", "bn1", "relu"),
        "first": ("block.conv1", "block.bn1", "block.relu"),
        "second": ("block.conv2", "block.bn2", "block.relu"),
    }

    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.block = Block()

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(super().features(x))
        return out


class TwicePaths(nn.Module):
    """Parts under two names: in a list, and in the stack that is called."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs)]
        )
        self.stack = nn.Sequential(*self.parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stack(x)
        return out


TRAINED: list[tuple[type[nn.Module], NormSpec, list[str]]] = [
    (FusedNamed, KEPT, ["L00_a", "L01_b"]),
    (NormByHand, KEPT, ["L00_a", "L01_b"]),
    (Dropped, BATCH, ["L00_conv1", "L01_fc"]),
    (Dropped, NONE, ["L00_conv1", "L01_fc"]),
    (StaysInEval, KEPT, ["L00_conv1", "L01_fc"]),
    (Viewed, BATCH, ["L00_conv1", "L01_fc"]),
    (Functional, BATCH, ["L00_conv1", "L01_fc"]),
    (Functional, NONE, ["L00_conv1", "L01_fc"]),
    (LogSoftmax, BATCH, ["L00_conv1", "L01_fc"]),
    (Frozen, BATCH, ["L00_conv1", "L01_fc"]),
    (Unused, BATCH, ["L00_conv1", "L01_fc"]),
    (Keywords, BATCH, ["L00_conv1", "L01_fc"]),
    (Recurrent, NONE, ["L00_fc"]),
    (RootMeanSquare, BATCH, ["L00_fc1", "L01_fc2"]),
    (RootMeanSquare, KEPT, ["L00_fc1", "L01_fc2"]),
    (OwnActivation, BATCH, ["L00_conv1", "L01_fc"]),
    (SharedRelu, BATCH, ["L00_stem", "L01_first", "L02_second", "L03_head"]),
    (TwicePaths, NONE, ["L00_parts_1", "L01_parts_4"]),
    (TwicePaths, BATCH, ["L00_parts_1", "L01_parts_4"]),
    (Unnamed, BATCH, ["L00_b"]),
    (FunctionalInPlace, BATCH, ["L00_conv1", "L01_fc"]),
    (FunctionalInPlace, NONE, ["L00_conv1", "L01_fc"]),
    (Skipping, BATCH, ["L00_conv1", "L01_fc"]),
]


@pytest.fixture
def mine() -> Iterator[Callable[[type[nn.Module]], None]]:
    """Registers a class as `model=mine`."""
    yield MODELS.register("mine")
    MODELS.forget("mine")


def _spec(spec_of: Callable[..., RunSpec], norm: NormSpec, *overrides: str) -> RunSpec:
    spec = spec_of("probes=standard", "probes.activations.batch=24", "steps=5", *overrides, model="cnn")
    return replace(spec, model=HE, norm=norm)


@pytest.mark.parametrize(
    ("kind", "norm", "names"), TRAINED, ids=lambda of: getattr(of, "__name__", getattr(of, "name", ""))
)
def test_what_is_measured_of_a_net_is_what_was_trained(
    kind: type[nn.Module], norm: NormSpec, names: list[str], mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(kind)
    spec = _spec(spec_of, norm)
    assert [site.name for site in assemble(spec).net.sites] == names
    assert [(found.check, found.why) for found in findings("model=mine", MODEL_CHECKS, spec)] == [
        ("at rest", None),
        ("gradients", None),
    ]


@pytest.mark.parametrize("kind", [case[0] for case in TRAINED], ids=lambda kind: kind.__name__)
def test_a_module_that_keeps_its_norms_and_weights_computes_what_it_computed(kind: type[nn.Module]) -> None:
    x = torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    module = kind(IMAGE, OUTPUTS)
    norm = (
        KEPT
        if any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.RMSNorm) for part in module.modules())
        else NONE
    )
    torch.manual_seed(3)
    net = adopted(kind(IMAGE, OUTPUTS), OWN, norm, IMAGE, OUTPUTS, seed=0)
    for mode in (False, True):
        outputs = []
        for one in (module, net.module):
            torch.manual_seed(4)
            outputs.append(one.train(mode)(x))
        assert torch.equal(*outputs)


class More(Net2):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.fc, self.more = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, OUTPUTS)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.more(torch.relu(super().forward(x)))))


def _refusals() -> list[tuple[type[nn.Module], NormSpec, str]]:
    def changed(name: str, **methods: Any) -> type[nn.Module]:
        return type(name, (Net2,), methods)

    def also(prepare: Callable[[Any], None], base: type[nn.Module] = Net2) -> Callable[..., None]:
        def init(self: Any, *shape: Any) -> None:
            base.__init__(self, *shape)
            prepare(self)

        return init

    def stateful(self: Any, x: Tensor) -> Tensor:
        self.count = getattr(self, "count", 0) + 1
        return self.fc(self.features(x).mean(dim=(2, 3)) * (1 + self.count))  # type: ignore[no-any-return]

    def pre_activation(self: Any, x: Tensor) -> Tensor:
        first = self.bn1(self.conv1(x)) + 0
        return self.fc((self.relu(first) + first).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def in_a_list(self: Any) -> None:
        self.norms = [self.bn1]

    class Stem(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, None, None, training=True)

    fused = r"model=mine: bn1 is a BNAct, which computes something else than its nn\.BatchNorm2d, and"
    return [
        (Fused, BATCH, rf"{fused} no nonlinearity is seen after it\. Make the nonlinearity a part of its own, or"),
        (Fused, KEPT, fused),
        (FusedNamed, BATCH, rf"{fused} cannot be exchanged\. Keep it with norm=own, or"),
        (FusedNamed, NONE, fused),
        (FusedChild, KEPT, r"model=mine sites: bn1\.act of a is inside of bn1, .* Write \"\" in its place"),
        (
            NormByHand,
            NONE,
            r"model=mine: own normalizes by code of its own, which cannot be exchanged\.",
        ),
        (FusedStack, BATCH, r"model=mine: 1 is a BNAct"),
        (
            type("Tied", (More,), {"__init__": also(lambda net: setattr(net.more, "weight", net.fc.weight), More)}),
            BATCH,
            r"model=mine: fc\.weight and more\.weight are one tensor, and measurements are of each part\.",
        ),
        (
            changed("Unordered", sites={"a": ("conv1", "bn1", "relu"), "b": ("fc", "bn1", "")}),
            BATCH,
            r"model=mine sites: bn1 of b does not see the output of fc, but that of conv1\. Pair the parts as forward",
        ),
        (
            changed("Auxiliary", forward=lambda self, x: (self.fc(self.features(x).mean((2, 3))), x)),
            BATCH,
            r"model=mine: its forward must return one tensor \[B, 10\], and returns a tuple\.",
        ),
        (
            changed("Fewer", __init__=also(lambda net: setattr(net, "fc", nn.Linear(6, 4)))),
            BATCH,
            r"model=mine: its forward must return one tensor \[B, 10\], and returns \[B, 4\]\.",
        ),
        (EveryStep, NONE, r"model=mine: has no nn\.Linear, nn\.Conv1d or nn\.Conv2d that is trained"),
        (
            changed("Twice", features=lambda self, x: self.bn1(self.relu(self.bn1(self.conv1(x))))),
            BATCH,
            r"model=mine: bn1 is used more than once in a forward\. Give each place its own part\.",
        ),
        (
            changed(
                "PreActivation", forward=pre_activation, __init__=also(lambda net: setattr(net.relu, "inplace", True))
            ),
            BATCH,
            r"model=mine: .* changes where no part works in place, as measuring needs it\. Use inplace=False",
        ),
        (
            changed(
                "Listed", __init__=also(in_a_list), features=lambda self, x: self.relu(self.norms[0](self.conv1(x)))
            ),
            BATCH,
            r"model=mine: bn1 cannot be exchanged: forward does not find it by its name\. Call self\.bn1\(x\)",
        ),
        (
            changed(
                "Hidden",
                __init__=also(lambda net: setattr(net, "stem", Stem())),
                features=lambda self, x: self.relu(self.bn1(self.conv1(self.stem(x)))),
            ),
            BATCH,
            r"model=mine: stem normalizes by code of its own, which cannot be exchanged\. Keep it with norm=own",
        ),
        (
            changed("Stateful", forward=stateful),
            BATCH,
            r"model=mine: its forward changes its attribute count, which neither a checkpoint nor a measurement res",
        ),
        (
            changed("Numpy", forward=lambda self, x: self.fc(self.features(x).mean((2, 3)) * (1 + np.random.rand()))),
            BATCH,
            r"model=mine: its forward draws from Python's or NumPy's generator, .*\. Draw from torch's global",
        ),
        (
            changed("Python", forward=lambda self, x: self.fc(self.features(x).mean((2, 3)) * (1 + random.random()))),
            BATCH,
            r"model=mine: its forward draws from Python's or NumPy's generator",
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "norm", "message"), _refusals(), ids=lambda of: getattr(of, "__name__", getattr(of, "name", ""))
)
def test_a_net_that_would_be_changed_or_mismeasured_is_refused_by_the_name_of_the_part(
    kind: type[nn.Module], norm: NormSpec, message: str, mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(kind)
    with pytest.raises(ValueError, match=f"^{message}"):
        assemble(_spec(spec_of, norm))


class Author(nn.Module):
    """The author's settings: none of them the usual ones."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.fc1, self.bn1, self.act = nn.Linear(64, 8), nn.BatchNorm1d(8, eps=1e-3, momentum=0.01), nn.ReLU()
        self.fc2 = nn.Linear(8, outputs)
        nn.init.orthogonal_(self.fc1.weight)
        nn.init.constant_(self.fc2.bias, -2.0)
        nn.init.constant_(self.bn1.weight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.bn1(self.fc1(x.flatten(1)))))
        return out


def _author(model: ModelSpec, norm: NormSpec) -> Net:
    return adopted(Author(), model, norm, IMAGE, OUTPUTS, seed=0)


def test_what_was_replaced_in_a_module_is_said() -> None:
    assert _author(HE, BATCH).notes == (
        "model=mine: norm=batch replaces bn1 (eps 0.001 becomes 1e-05, momentum 0.01 becomes 0.1, "
        "gamma 0.1 becomes 1); norm=own keeps the module's",
        "model=mine: model.init=he draws the weights of its 2 sites and sets their biases to 0 "
        "(model.init=own keeps the module's)",
    )
    assert _author(OWN, NONE).notes == ()


def test_own_keeps_the_norms_and_the_weights_of_a_module() -> None:
    net = _author(OWN, KEPT)
    assert net.notes == ()
    norm = net.sites[0].norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert (norm.eps, norm.momentum, norm.weight.tolist()) == (1e-3, 0.01, pytest.approx([0.1] * 8))
    weight = net.params["fc1.weight"]
    torch.testing.assert_close(weight @ weight.T, torch.eye(8))
    assert net.params["fc2.bias"].tolist() == [-2.0] * 10


def test_parts_that_belong_to_no_site_are_named() -> None:
    net = adopted(Recurrent(), OWN, NONE, IMAGE, OUTPUTS, seed=0)
    assert net.notes == ("model=mine: trained, but no site: lstm (LSTM)",)


def test_a_frozen_layer_keeps_its_weights_and_is_no_site(mine: Any, spec_of: Callable[..., RunSpec], run: Any) -> None:
    mine(Frozen)
    spec = _spec(spec_of, BATCH)
    before = assemble(spec).net.module.get_parameter("stem.weight").clone()
    ended = run(spec)
    assert torch.equal(ended.setup.net.module.get_parameter("stem.weight"), before)
    assert "stem.weight" not in ended.setup.net.params


def test_the_sum_at_the_second_place_of_a_shared_nonlinearity_is_seen() -> None:
    net = adopted(SharedRelu(), OWN, BATCH, IMAGE, OUTPUTS, seed=0)
    assert [site.activation_call for site in net.sites] == [0, 0, 1, 0]
    assert [site.residual_sum for site in net.sites] == [False, False, True, False]
    x = torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(1))
    with Tap(net) as tap:
        net.module(x)
    below = tap.sites.act_in[0].relu()
    expected = F.batch_norm(tap.sites.pre[2], None, None, training=True) + below
    torch.testing.assert_close(tap.sites.act_in[2], expected)


def test_a_function_that_makes_a_module_is_a_model(spec_of: Callable[..., RunSpec]) -> None:
    @MODELS.register("mine")
    def make(input_shape: tuple[int, ...], outputs: int, *, width: int = 4) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, outputs)
        )

    spec = _spec(spec_of, BATCH)
    spec = replace(spec, model=replace(spec.model, options={"width": 4}))
    try:
        assert [site.name for site in assemble(spec).net.sites] == ["L00_1", "L01_4"]
    finally:
        MODELS.forget("mine")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("norm=own", r"norm: only a module of your own has norms of its own, got 'own'"),
        ("model.init=own", r"model\.init: model=cnn has no weights of its own, got 'own'\. Use model\.init=he"),
    ],
)
def test_own_is_for_own_modules(override: str, message: str, spec_of: Callable[..., RunSpec]) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        assemble(spec_of(override, model="cnn"))


def test_a_pass_with_other_masks_than_the_training_step_would_be_seen(
    mine: Any, spec_of: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(Dropped)
    monkeypatch.setattr("bnlab.core.state.set_random_state", lambda state, device: None)
    with pytest.raises(ValueError, match=r"two forwards from the same state do not have the same loss"):
        assemble(_spec(spec_of, BATCH))
    monkeypatch.setattr("bnlab.run.setup.refuse_other_passes", lambda *parts: None)
    found = {it.check: it.why for it in findings("model=mine", MODEL_CHECKS, _spec(spec_of, BATCH))}
    assert found["at rest"] is not None
    assert found["at rest"].startswith("with a learning rate of almost 0, loss_lo is ")


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (Fused, "bn1 is a BNAct"),
        (EveryStep, "has no nn.Linear, nn.Conv1d or nn.Conv2d that is trained"),
        (Dropped, None),
        (StaysInEval, None),
    ],
    ids=lambda of: getattr(of, "__name__", ""),
)
def test_verify_names_the_fault_or_finds_none(
    kind: type[nn.Module], fault: str | None, mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(kind)
    spec = _spec(spec_of, BATCH)
    why = [found.why for found in contract("model", "mine", spec, spec)]
    if fault is None:
        assert why == [None] * 6
    else:
        assert len(why) == 1
        assert fault in str(why[0])


def test_the_equality_of_batch_statistics_is_not_measured_where_training_keeps_eval_mode(
    mine: Any, spec_of: Callable[..., RunSpec], run: Any
) -> None:
    mine(StaysInEval)
    records = run(_spec(spec_of, KEPT)).records
    assert any("loss_lo" in record for record in records)
    assert not any("thm41_error" in record for record in records)
    mine(Functional)
    assert any("thm41_error" in record for record in run(_spec(spec_of, KEPT), where="other").records)
