"""Nets as tutorials and repositories have them, each trained and then trained again in plain torch: the same losses,
gradients, landscape, buffers and accuracy; or refused in one line before anything is trained."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from bnlab.core.registry import MODELS
from bnlab.core.seeds import stream
from bnlab.core.spec import ModelSpec, NormSpec, RunSpec
from bnlab.net.adopt import adopted
from bnlab.net.evaluate import Inference
from bnlab.run.setup import assemble

HE = ModelSpec(name="mine", activation="relu", init="he", init_scale=1.0, init_std=0.1, bias="auto", options={})
BATCH = NormSpec(
    name="batch", layers="all", every=1, position="before", options={"eps": 1e-5, "momentum": 0.1, "affine": True}
)
OWN, NONE = replace(BATCH, name="own", options={}), replace(BATCH, name="none", options={})
IMAGE, OUTPUTS = (1, 8, 8), 10
Sites = dict[str, tuple[str, str, str]]


class Found(nn.Module):
    """Of images [B, 1, 8, 8]: conv1, bn1, then what a case adds, then a head."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(input_shape[0], 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(self.add(), outputs)

    def add(self) -> int:
        """Make the parts of the middle; returns its channels."""
        return 6

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        x = self.middle(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class BasicBlock(nn.Module):
    """One relu for both places, and a sum in place."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(after), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        result: Tensor = self.relu(out)
        return result


class ResNet(Found):
    def add(self) -> int:
        self.blocks = nn.Sequential(BasicBlock(6, 6, 1), BasicBlock(6, 8, 2))
        return 8

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class ResNetNamed(ResNet):
    sites: ClassVar[Sites] = {
        "stem": ("conv1", "bn1", "relu"),
        "a1": ("blocks.0.conv1", "blocks.0.bn1", "blocks.0.relu"),
        "a2": ("blocks.0.conv2", "blocks.0.bn2", "blocks.0.relu"),
        "b1": ("blocks.1.conv1", "blocks.1.bn1", "blocks.1.relu"),
        "b2": ("blocks.1.conv2", "blocks.1.bn2", "blocks.1.relu"),
        "short": ("blocks.1.downsample.0", "blocks.1.downsample.1", ""),
        "out": ("fc", "", ""),
    }


class PreActivation(Found):
    """The norm sees a sum, which its relu changes in place; the branch is added in place."""

    def add(self) -> int:
        self.bn2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        return 6

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.bn2(x), inplace=True))
        out += x
        return F.relu_(self.bn3(out))


class DenseNet(Found):
    """Norms see concatenations, and what they see is used again."""

    def add(self) -> int:
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 1)])
        return 14

    def middle(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms[:2], self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x), inplace=True))], 1)
        return F.relu(self.norms[2](x), inplace=True)


class Inception(Found):
    def add(self) -> int:
        self.one, self.three = nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm_one, self.norm_three = nn.BatchNorm2d(3, eps=0.001), nn.BatchNorm2d(4, eps=0.001)
        self.dropout = nn.Dropout2d(0.2)
        return 7

    def middle(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1)
        branches = [self.norm_one(self.one(pooled)), self.norm_three(self.three(x))]
        out: Tensor = self.dropout(torch.cat([F.relu(branch, inplace=True) for branch in branches], 1))
        return out


class InvertedResidual(Found):
    """Its last norm has no nonlinearity after it."""

    def add(self) -> int:
        self.block = nn.Sequential(
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            nn.Conv2d(12, 6, 1, bias=False),
            nn.BatchNorm2d(6),
        )
        return 6

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


class SqueezeExcite(Found):
    def add(self) -> int:
        self.se = nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True), nn.Linear(3, 6), nn.Sigmoid())
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        return 6

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(x))
        scale: Tensor = self.se(out.mean([2, 3])).view(x.size(0), x.size(1), 1, 1)
        out *= scale.expand_as(out)
        out += x
        return F.relu(out, inplace=True)


class MNISTExample(Found):
    """Dropout and pooling between convolution and nonlinearity; what is flat is viewed."""

    def add(self) -> int:
        self.conv2, self.drop = nn.Conv2d(6, 8, 3), nn.Dropout2d()
        self.fc1 = nn.Linear(72, 12)
        return 12

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        x = F.dropout(F.relu(self.fc1(x.view(-1, 72))), training=self.training)
        return F.log_softmax(self.fc(x), dim=1)


class Recurrent(Found):
    """A norm after no affine map."""

    def add(self) -> int:
        self.gru, self.bn2 = nn.GRU(8, 7, num_layers=2, batch_first=True, dropout=0.2), nn.BatchNorm1d(7)
        return 7

    def forward(self, x: Tensor) -> Any:
        states, _ = self.gru(self.bn1(self.conv1(x))[:, 0])
        return self.fc(self.bn2(states[:, -1]))


class ConvNeXt(Found):
    def add(self) -> int:
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6, eps=1e-6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.full((6,), 0.1))
        return 6

    def middle(self, x: Tensor) -> Tensor:
        y = self.gamma * self.down(F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class Transformer(Found):
    def add(self) -> int:
        self.cls = nn.Parameter(torch.zeros(1, 1, 6))
        self.norm, self.attn = nn.LayerNorm(6), nn.MultiheadAttention(6, 2, dropout=0.1, batch_first=True)
        return 6

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.bn1(self.conv1(x)))[..., ::4, ::4].flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)
        y = self.norm(x)
        return self.fc((x + self.attn(y, y, y, need_weights=False)[0])[:, 0])


class Unusual(Found):
    """Weights that are computed, used several times, or in a function too; a part that the outputs do not need."""

    def add(self) -> int:
        self.spectral = spectral_norm(nn.Conv2d(6, 6, 3, padding=1))
        self.weighted, self.repeated, self.tied = weight_norm(nn.Linear(6, 6)), nn.Linear(6, 6), nn.Linear(6, 6)
        self.unused = nn.Linear(6, 3)
        return 6

    def forward(self, x: Tensor) -> Any:
        x = self.spectral(self.relu(self.bn1(self.conv1(x)))).relu_().mean((2, 3))
        x = torch.tanh(self.weighted(x))
        for _ in range(3):
            x = torch.tanh(self.repeated(x))
        x = F.linear(torch.tanh(self.tied(x)), self.tied.weight.t())
        self.kept = self.unused(x.detach())
        return self.fc(x)


class StochasticDepth(Found):
    """Whole blocks are left out at random."""

    def add(self) -> int:
        self.convs = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(6) for _ in range(2)])
        return 6

    def middle(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            if not self.training or torch.rand(1) < 0.6:
                x = x + F.relu(norm(conv(x)))
        return x


class Autocast(Found):
    def add(self) -> int:
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        return 6

    def middle(self, x: Tensor) -> Tensor:
        return torch.tanh(self.bn2(self.conv2(x)))

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = super().forward(x)
        return out.float()


class NoGradient(Found):
    """A backbone that is not trained."""

    def add(self) -> int:
        self.hidden, self.bn2 = nn.Linear(6, 7), nn.BatchNorm1d(7)
        return 7

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            x = self.relu(self.bn1(self.conv1(x))).mean((2, 3))
        return self.fc(F.relu(self.bn2(self.hidden(x))))


class AuxiliaryInTraining(Found):
    def add(self) -> int:
        self.aux_bn, self.aux = nn.BatchNorm2d(6), nn.Linear(6, OUTPUTS)
        return 6

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.bn1(self.conv1(x)))
        out = self.fc(x.mean((2, 3)))
        return out + 0.3 * self.aux(self.aux_bn(x).mean((2, 3))) if self.training else out


class Lazy(Found):
    def add(self) -> int:
        self.lazy = nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(9))
        return 9

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.lazy(self.relu(self.bn1(self.conv1(x)))))


class Bare(nn.Sequential):
    """No norms at all."""

    def __init__(self, input_shape: tuple[int, ...] = IMAGE, outputs: int = OUTPUTS) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 9), nn.LeakyReLU(0.1, inplace=True), nn.Linear(9, outputs))


class Double(Found):
    def __init__(self, *shape: Any) -> None:
        super().__init__(*shape)
        self.double()

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.double())


class Checkpointed(Found):
    def add(self) -> int:
        self.conv2, self.reentrant = nn.Conv2d(6, 6, 3, padding=1), False
        return 6

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(lambda x: torch.tanh(self.conv2(x)), x, use_reentrant=self.reentrant)  # type: ignore[no-untyped-call]
        return out


class Reentrant(Checkpointed):
    def add(self) -> int:
        channels = super().add()
        self.reentrant = True
        return channels


class LateSchedule(Found):
    """What it counts has no effect at first."""

    steps = 0

    def middle(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return x if self.steps < 10_000 else x / 2


class RareDraw(Found):
    """Hardly ever has its draw an effect: two passes are equal."""

    def middle(self, x: Tensor) -> Tensor:
        return x / 2 if random.random() < 1e-9 else x


class MovingCentre(Found):
    def add(self) -> int:
        self.centre = torch.zeros(6, 1, 1)
        return 6

    def middle(self, x: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * x.detach().mean((0, 2, 3)).view(6, 1, 1)
        return x - self.centre


class ChangesInput(Found):
    def forward(self, x: Tensor) -> Any:
        x -= 0.5
        return super().forward(x)


class HalfOutputs(Autocast):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).bfloat16()


class Tied(Found):
    def add(self) -> int:
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight
        return 6


TRAINED: list[tuple[type[nn.Module], str]] = [
    (ResNet, "own batch none"),
    (ResNetNamed, "own batch none"),
    (PreActivation, "own batch none"),
    (DenseNet, "own batch none"),
    (Inception, "own batch"),
    (InvertedResidual, "own none"),
    (SqueezeExcite, "batch none"),
    (MNISTExample, "batch none"),
    (Recurrent, "own batch none"),
    (ConvNeXt, "own none"),
    (Transformer, "own none"),
    (Unusual, "own none"),
    (StochasticDepth, "own batch"),
    (Autocast, "own batch none"),
    (NoGradient, "own none"),
    (AuxiliaryInTraining, "own"),
    (Lazy, "own batch none"),
    (Bare, "own none"),
]
NORMS = {"own": OWN, "batch": BATCH, "none": NONE}


class Passed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def by_hand(module: nn.Module, norm: str) -> nn.Module:
    """The module with torch's batch norm, or nothing, in place of each of its norms."""
    for path, part in list(module.named_modules()):
        if norm != "own" and isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            parent, _, name = path.rpartition(".")
            features = part.normalized_shape[0] if isinstance(part, nn.LayerNorm) else part.num_features
            kind = nn.BatchNorm2d if isinstance(part, nn.BatchNorm2d) else nn.BatchNorm1d
            setattr(module.get_submodule(parent), name, kind(features) if norm == "batch" else Passed())
    return module


@pytest.fixture
def mine() -> Iterator[Callable[[Callable[..., nn.Module]], None]]:
    """Registers a class as `model=mine`."""
    yield MODELS.register("mine")
    MODELS.forget("mine")


def _spec(spec_of: Callable[..., RunSpec], norm: NormSpec, *overrides: str) -> RunSpec:
    spec = spec_of(
        "probes=standard",
        "probes.gradients.cancellation=true",
        "probes.activations.batch=24",
        "probes.landscape.every=1",
        "steps=4",
        *overrides,
        model="cnn",
    )
    return replace(spec, model=HE, norm=norm)


def _near(one: Mapping[str, Any], name: str, other: float, rel: float) -> None:
    assert one[name] == pytest.approx(other, rel=rel), name


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(
    ("kind", "norm"),
    [(kind, norm) for kind, norms in TRAINED for norm in norms.split()],
    ids=lambda of: getattr(of, "__name__", of),
)
def test_a_found_net_is_trained_and_measured_as_in_a_loop_of_plain_torch(
    kind: Callable[..., nn.Module], norm: str, mine: Any, spec_of: Callable[..., RunSpec], run: Any
) -> None:
    mine(kind)
    spec = _spec(spec_of, NORMS[norm])
    start = copy.deepcopy(assemble(spec).net.module.state_dict())
    ended = run(spec)
    setup, records = ended.setup, {record["step"]: record for record in ended.records}
    module = kind(IMAGE, OUTPUTS)
    module(setup.batches.at(0).x)  # for what is lazy
    module = by_hand(module, norm).train()
    assert module.load_state_dict(start)
    params = dict(module.named_parameters())
    optimizer = torch.optim.SGD(params.values(), lr=spec.optim.lr)
    torch.manual_seed(stream(spec.seed, "noise").initial_seed())
    probe = setup.observer.probes["landscape"]
    for step in range(spec.steps or 0):
        batch, record = setup.batches.at(step), records[step]
        before, drawn = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        optimizer.zero_grad()
        loss = F.cross_entropy(module(batch.x), batch.y)
        loss.backward()  # type: ignore[no-untyped-call]
        after, next_draw = copy.deepcopy(module.state_dict()), torch.get_rng_state()
        grads = {name: param.grad.clone() for name, param in params.items() if param.grad is not None}
        _near(record, "train_loss", loss.item(), 1e-6)
        _near(record, "grad_norm_total", math.hypot(*(float(grad.norm()) for grad in grads.values())), 1e-5)
        for site, value in zip(setup.net.sites, record["grad_norm"], strict=True):
            assert value == pytest.approx(float(grads[site.params[0]].norm()), rel=1e-4, abs=1e-7), site.name
        losses, changes = [], []
        for factor in probe.factors:
            module.load_state_dict(before)
            for name, grad in grads.items():
                params[name].data -= factor * spec.optim.lr * grad
            torch.set_rng_state(drawn)
            optimizer.zero_grad()
            there = F.cross_entropy(module(batch.x), batch.y)
            there.backward()  # type: ignore[no-untyped-call]
            losses.append(there.item())
            moved = (float((params[name].grad - grad).norm()) for name, grad in grads.items())  # type: ignore[operator]
            changes.append(math.hypot(*moved))
        _near(record, "loss_lo", min(losses), 1e-5)
        _near(record, "loss_hi", max(losses), 1e-5)
        _near(record, "grad_change", max(changes), 1e-3)
        module.load_state_dict(after)
        torch.set_rng_state(next_draw)
        for name, grad in grads.items():
            params[name].grad = grad
        optimizer.step()
    for name, value in setup.net.module.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=1e-4, atol=1e-6)
    test = setup.dataset.test
    with torch.no_grad():
        outputs = module.eval()(test.x)
    assert ended.status["metrics"]["test_loss"] == pytest.approx(F.cross_entropy(outputs, test.y).item(), rel=1e-4)


REFUSED: list[tuple[type[nn.Module], NormSpec, str]] = [
    (
        ConvNeXt,
        BATCH,
        r"norm does not see \[B, C\], \[B, C, T\] or \[B, C, H, W\], and can only be left out or kept, got \[4, 8, 8",
    ),
    (AuxiliaryInTraining, NONE, r"aux_bn is left out of a forward in evaluation, and cannot be exchanged\. Keep it"),
    (Checkpointed, OWN, r"conv2 is computed again in the backward pass, as by torch\.utils\.checkpoint, .* Call it"),
    (Reentrant, OWN, r"conv2 is computed again in the backward pass, as by torch\.utils\.checkpoint, .* Call it"),
    (LateSchedule, BATCH, r"its forward changes its attribute steps, which neither a checkpoint nor .* in a buffer\."),
    (MovingCentre, BATCH, r"its forward changes its attribute centre, which neither a checkpoint nor .* in a buffer\."),
    (RareDraw, BATCH, r"its forward draws from Python's or NumPy's generator, which no measurement sets back\. Draw"),
    (ChangesInput, BATCH, r"its forward changes its input in place\. Write x = x - m for x -= m\."),
    (
        HalfOutputs,
        BATCH,
        r"its forward returns 16 bits, of which no loss is exact, got 'bfloat16'\. Return out\.float\(\)\.",
    ),
    (Tied, BATCH, r"one\.weight and two\.weight are one tensor, and measurements are of each part\. Give each"),
    (Bare, BATCH, r"has no norm that could be exchanged, got 'batch'\."),
]


@pytest.mark.parametrize(("kind", "norm", "message"), REFUSED, ids=lambda of: getattr(of, "__name__", ""))
def test_what_could_not_be_measured_is_refused_before_anything_is_trained(
    kind: type[nn.Module], norm: NormSpec, message: str, mine: Any, spec_of: Callable[..., RunSpec]
) -> None:
    mine(kind)
    with pytest.raises(ValueError, match=rf"^(norm: )?model=mine:? {message}"):
        assemble(_spec(spec_of, norm))


def test_weights_in_float64_are_not_rounded(mine: Any, spec_of: Callable[..., RunSpec], run: Any) -> None:
    mine(Double)
    with pytest.raises(
        ValueError, match=r"^dtype: model=mine has .*weight in float64, got 'float32'\. Use dtype=float"
    ):
        assemble(_spec(spec_of, BATCH))
    ended = run(_spec(spec_of, BATCH, "dtype=float64"))
    assert {param.dtype for param in ended.setup.net.params.values()} == {torch.float64}
    assert ended.status["status"] == "finished"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_part_is_refused_by_its_name() -> None:
    module = Found()
    module.relu = torch.jit.script(nn.ReLU())
    with pytest.raises(ValueError, match=r"^model=mine: relu is compiled by torch\.jit\.script, and could not be meas"):
        adopted(module, HE, BATCH, IMAGE, OUTPUTS, seed=0)


def test_what_is_measured_is_kept_where_the_forward_changes_it_in_place() -> None:
    net = adopted(PreActivation(), HE, BATCH, IMAGE, OUTPUTS, seed=0)
    assert net.copies
    assert not adopted(InvertedResidual(), HE, BATCH, IMAGE, OUTPUTS, seed=0).copies


def test_what_has_no_site_is_said() -> None:
    net = adopted(Unusual(), HE, OWN, IMAGE, OUTPUTS, seed=0)
    assert [site.name for site in net.sites] == ["L00_conv1", "L01_fc"]
    assert [note for note in net.notes if "no site" in note] == [
        "model=mine: trained, but no site: spectral.bias, spectral.parametrizations.weight.original, weighted.bias, "
        "weighted.parametrizations.weight.original0, weighted.parametrizations.weight.original1, repeated (Linear), "
        "tied (Linear) and unused (Linear)"
    ]
    net = adopted(InvertedResidual(), HE, OWN, IMAGE, OUTPUTS, seed=0)
    assert net.notes[0] == (
        "model=mine: no nonlinearity follows block.7 directly: act_in is their output itself (to measure at a "
        "nonlinearity, make it a part, self.act = nn.ReLU(), and name the block in `sites`)"
    )
    net = adopted(StochasticDepth(), HE, BATCH, IMAGE, OUTPUTS, seed=0)
    assert [site.name for site in net.sites] == ["L00_conv1", "L01_fc"]


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_weights_of_its_own_depend_on_the_seed(mine: Any, spec_of: Callable[..., RunSpec]) -> None:
    mine(Lazy)
    spec = replace(_spec(spec_of, OWN), model=replace(HE, init="own"))
    one, again, other = (assemble(replace(spec, seed=seed)).net.params["lazy.4.weight"].detach() for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_norms_of_no_site_take_part_in_every_evaluation(mine: Any, spec_of: Callable[..., RunSpec]) -> None:
    mine(Recurrent)
    setup = assemble(_spec(spec_of, OWN, "data.batch_size=full"))
    module, train = setup.net.module, setup.dataset.train
    assert [type(part) for part in setup.net.unsited] == [nn.BatchNorm1d]
    expected = copy.deepcopy(module).eval()
    for part in expected.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.train()
            part.momentum = 1.0
    with torch.no_grad():
        of_batch = expected(train.x)
        of_population = expected.eval()(train.x)
    for mode, wanted in (("batch", of_batch), ("population", of_population)):
        inference = Inference(setup.net, mode, batch_size="full", training=train, training_size=len(train))  # type: ignore[arg-type]
        with inference.outputs(train) as batches:
            found = torch.cat([outputs for outputs, _ in batches])
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
