"""AdaFace's network, written down from the names and shapes of its published state dicts."""

import torch
from torch import nn


class IRUnit(nn.Module):
    """A residual unit."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inside != outside:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.Conv2d(inside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.PReLU(outside),
            nn.Conv2d(outside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IRNet(nn.Module):
    """The unit embedding of 24 numbers and its length."""

    def __init__(self, depths: tuple[int, ...], size: int) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        units, inside = [], 64
        for depth, width in zip(depths, (64, 128, 256, 512), strict=True):
            units.append(IRUnit(inside, width, 2))
            units += [IRUnit(width, width, 1) for _ in range(depth - 1)]
            inside = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * (size // 16) ** 2, 24),
            nn.BatchNorm1d(24, affine=False),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.output_layer(self.body(self.input_layer(x)))
        length = raw.norm(dim=1, keepdim=True)
        return raw / length, length
