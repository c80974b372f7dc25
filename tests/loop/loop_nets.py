"""Modules written as people write them, each with a batch that it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


class Block(nn.Module):
    """A residual block with one ReLU used twice, in place, and a sum in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """Like torchvision's, with dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.drop(x.mean((2, 3))))


class Functional(nn.Module):
    """Nonlinearities, pooling and dropout as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 3 * 3, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2).flatten(1)
        return self.fc2(F.dropout(torch.tanh(self.fc1(x)), 0.1, self.training))


class FineTuned(nn.Module):
    """A frozen body whose batch norm stays in eval mode, whatever mode the net is put into."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
        for param in self.body.parameters():
            param.requires_grad = False

    def train(self, mode: bool = True) -> FineTuned:
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Transformer(nn.Module):
    """One block before norms, of pixels' rows as tokens, with attention's dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.ln1, self.attn = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.ln2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        h = self.ln1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.ln2(x))))
        return self.out(x.mean(1))


class StochasticDepth(nn.Module):
    """Blocks that training leaves out at random, by a number from torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()).item() > 0.3:
                x = block(x)
        return self.fc(x.mean((2, 3)))


class Sequences(nn.Module):
    """Words to classes: an embedding and 1-d convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.conv, self.bn = nn.Conv1d(8, 12, 3, padding=1), nn.BatchNorm1d(12)
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.conv(self.embedding(x).transpose(1, 2))))
        return self.fc(x.mean(2))


class Scheduled(nn.Module):
    """Dropout that the loop turns up by setting an attribute, a temperature that is a buffer, and a user's own hook."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.register_buffer("temperature", torch.ones(()))
        self.p = 0.1
        self.seen: list[float] = []
        self.fc1.register_forward_hook(lambda module, args, out: self.seen.append(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.bn(self.fc1(x.flatten(1)))), self.p, self.training)
        return self.fc2(x) / self.temperature


def spectral() -> nn.Module:
    """A parametrized layer beside plain ones: its weight is computed at every forward."""
    first = parametrizations.weight_norm(nn.Linear(64, 16))
    return nn.Sequential(
        nn.Flatten(), first, nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10)
    )


def images() -> Tensor:
    return torch.randn(96, 1, 8, 8)


def words() -> Tensor:
    return torch.randint(0, 30, (96, 9))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain_mlp": (plain_mlp, images),
    "resnet": (ResNet, images),
    "functional": (Functional, images),
    "fine_tuned": (FineTuned, images),
    "transformer": (Transformer, images),
    "stochastic_depth": (StochasticDepth, images),
    "sequences": (Sequences, words),
    "scheduled": (Scheduled, images),
    "spectral": (spectral, images),
    "double": (lambda: ResNet().double(), lambda: images().double()),
}
