"""A small convolutional net with a residual block."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from bnlab.registry import MODELS


@MODELS.register("my_net")
class MyNet(nn.Module):
    """x [B, C, H, W] -> [B, outputs]."""

    sites: ClassVar[dict[str, tuple[str, str, str]]] = {
        "stem": ("conv1", "bn1", "relu1"),
        "block": ("conv2", "bn2", "relu2"),
        "out": ("fc", "", ""),
    }

    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)) + x)
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out
