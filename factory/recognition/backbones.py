"""Recognition networks: the improved residual network (IResNet), IR-SE50 and MobileFaceNet.

IResNet follows Duta et al., "Improved Residual Networks". It has the state-dict names of
insightface's arcface_torch, so that weights can be exchanged unchanged in both directions. IR-SE50
is the network of ArcFace's first papers; the papers of DCFace and CemiFace evaluate with it.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from factory.recipe import Backbone, InputError

M = TypeVar("M", bound=nn.Module)
DEPTHS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r200": (6, 26, 60, 6),
}
WIDTHS = (64, 128, 256, 512)
REDUCTION = 16  # an input of S pixels becomes a map of S/16
SQUEEZE = 16  # IR-SE50 computes the weights of C channels through C/16


class Block(nn.Module):
    """One residual unit: BN, 3x3, BN, PReLU, 3x3 with stride, BN, plus the shortcut.

    Maps [B, inside, H, W] to [B, outside, H/stride, W/stride]. With `squeeze` its last map is
    squeezed and excited before the shortcut is added, as in AdaFace's IR-SE networks.
    """

    def __init__(
        self, inside: int, outside: int, stride: int, small: bool = False, squeeze: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.prelu = _activation(outside, small)
        self.conv2 = nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.squeeze = Squeeze(outside) if squeeze else nn.Identity()
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.squeeze(self.bn3(self.conv2(x))) + shortcut


class IResNet(nn.Module):
    """An IResNet from images [B, 3, S, S] in [-1, 1] to raw embeddings [B, D] float32.

    Args:
        depths: units of each of the four layers.
        widths: channels of each of the four layers; the stem has the first number.
        size: S, a multiple of 16.
        embedding_size: D.
        dropout: rate before the last linear layer.
        small: spare a CPU: halve in the stem instead of in the first layer, and put a leaky ReLU
            of slope 0.25 (where PReLU starts) for the PReLUs, which would cost more than the
            convolutions do.
        squeeze: squeeze and excite in every unit.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        size: int = 112,
        embedding_size: int = 512,
        dropout: float = 0.0,
        small: bool = False,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.conv1 = nn.Conv2d(3, first, 3, 2 if small else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.prelu = _activation(first, small)
        inside = first
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stride = 1 if small and number == 1 else 2
            units = [Block(inside, width, stride, small, squeeze)]
            units += [Block(width, width, 1, small, squeeze) for _ in range(depth - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*units))
            inside = width
        self.bn2 = nn.BatchNorm2d(last)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last * (size // REDUCTION) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        # A learned scale would only rescale the embedding, which the margin loss normalises.
        self.features.weight.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if "conv" in name or "downsample.0" in name:
                nn.init.normal_(parameter, 0.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return raw embeddings; the last normalisation runs in float32."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        return _float32(self.features, self.fc(x))


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): each channel of a map [B, C, H, W] gets a weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // SQUEEZE, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // SQUEEZE, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted map."""
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class SqueezedUnit(nn.Module):
    """IR-SE's residual unit: BN, 3x3, PReLU, 3x3 with stride, BN, squeeze, plus the shortcut.

    It maps [B, inside, H, W] to [B, outside, H/stride, W/stride]. The shortcut is every stride-th
    pixel if the width stays the same, else a 1x1 convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.prelu = nn.PReLU(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.squeeze = Squeeze(outside)
        self.downsample: nn.Module | None = None
        if inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        if self.downsample is None:
            shortcut = x[:, :, :: self.stride, :: self.stride]
        else:
            shortcut = self.downsample(x)
        x = self.conv2(self.prelu(self.conv1(self.bn1(x))))
        return self.squeeze(self.bn2(x)) + shortcut


class IRSE50(nn.Module):
    """IR-SE50 from images [B, 3, S, S] in [-1, 1] to raw embeddings [B, D] float32.

    Args:
        size: S, a multiple of 16.
        embedding_size: D.
        dropout: rate before the linear layer.
    """

    def __init__(self, size: int = 112, embedding_size: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.PReLU(WIDTHS[0]),
        )
        units: list[nn.Module] = []
        inside = WIDTHS[0]
        for depth, width in zip(DEPTHS["r50"], WIDTHS, strict=True):
            for number in range(depth):
                units.append(SqueezedUnit(inside, width, 2 if number == 0 else 1))
                inside = width
        self.body = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(inside)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inside * (size // REDUCTION) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return raw embeddings; the last normalisation runs in float32."""
        x = self.dropout(torch.flatten(self.norm(self.body(self.stem(x))), 1))
        return _float32(self.features, self.linear(x))


class MobileFaceNet(nn.Module):
    """MobileFaceNet (Chen et al. 2018, table 1) from [B, 3, S, S] in [-1, 1] to [B, D] float32.

    Args:
        size: S, a multiple of 16.
        embedding_size: D.
        wide: twice the paper's channels over the same inner widths, as arcface_torch's `mbf`.
    """

    # (expansion, channels, repeats, stride of the first) of the bottlenecks in table 1
    LAYOUT = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
    WIDE = ((1, 128, 5, 2), (2, 256, 1, 2), (1, 256, 6, 1), (2, 256, 1, 2), (1, 256, 2, 1))

    def __init__(self, size: int = 112, embedding_size: int = 128, wide: bool = False) -> None:
        super().__init__()
        inside = 128 if wide else 64
        layers: list[nn.Module] = [_conv(3, inside, 3, 2), _conv(inside, inside, 3, 1, groups=64)]
        for expansion, channels, repeats, stride in self.WIDE if wide else self.LAYOUT:
            for number in range(repeats):
                layers.append(IRBlock(inside, channels, expansion, stride if number == 0 else 1))
                inside = channels
        layers.append(_conv(inside, 512, 1, 1))
        self.body = nn.Sequential(*layers)
        map_size = size // REDUCTION
        self.global_depthwise = nn.Sequential(
            nn.Conv2d(512, 512, map_size, groups=512, bias=False), nn.BatchNorm2d(512)
        )
        self.linear = nn.Conv2d(512, embedding_size, 1, bias=False)
        self.features = nn.BatchNorm1d(embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return raw embeddings; the last normalisation runs in float32."""
        x = self.linear(self.global_depthwise(self.body(x)))
        return _float32(self.features, torch.flatten(x, 1))


class IRBlock(nn.Module):
    """MobileFaceNet's inverted bottleneck: expand, depthwise with stride, linear projection."""

    def __init__(self, inside: int, outside: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = inside * expansion
        self.shortcut = stride == 1 and inside == outside
        self.expand = _conv(inside, middle, 1, 1)
        self.depthwise = _conv(middle, middle, 3, stride, groups=middle)
        self.project = nn.Sequential(
            nn.Conv2d(middle, outside, 1, bias=False), nn.BatchNorm2d(outside)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the bottleneck's output, plus its input if the shapes agree."""
        made = self.project(self.depthwise(self.expand(x)))
        return made + x if self.shortcut else made


def channels_last(module: M) -> M:
    """Store a network's weights channels last, which is fast for convolutions, and return it."""
    return module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _activation(channels: int, small: bool) -> nn.Module:
    return nn.LeakyReLU(0.25, inplace=True) if small else nn.PReLU(channels)


def _conv(inside: int, outside: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outside),
        nn.PReLU(outside),
    )


def _float32(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def make_backbone(backbone: Backbone, size: int) -> nn.Module:
    """Return the network that a recipe names, with fresh weights.

    Args:
        backbone: name and sizes; `iresnet` is the small network for CPUs, with the recipe's widths
            and depths.
        size: height and width of its images, a multiple of 16.

    Raises:
        InputError: size, widths or depths do not fit.
    """
    if size % REDUCTION:
        raise InputError(
            f"recipe field image.size: {size}; a recognizer accepts multiples of {REDUCTION}"
        )
    if backbone.name == "iresnet":
        for field in ("widths", "depths"):
            if len(getattr(backbone, field)) != 4:
                raise InputError(
                    f"recipe field backbone.{field}: {list(getattr(backbone, field))}; "
                    "iresnet accepts four numbers"
                )
        return IResNet(
            backbone.depths,
            backbone.widths,
            size,
            backbone.embedding_size,
            backbone.dropout,
            small=True,
        )
    for field in ("widths", "depths"):
        if getattr(backbone, field):
            raise InputError(
                f"recipe field backbone.{field}: {list(getattr(backbone, field))}; "
                f"{backbone.name} has its own, only iresnet accepts {field}"
            )
    if backbone.name == "mobilefacenet":
        if backbone.dropout:
            raise InputError(
                f"recipe field backbone.dropout: {backbone.dropout}; mobilefacenet accepts 0"
            )
        return MobileFaceNet(size, backbone.embedding_size)
    if backbone.name == "ir_se50":
        return IRSE50(size, backbone.embedding_size, backbone.dropout)
    return IResNet(DEPTHS[backbone.name], WIDTHS, size, backbone.embedding_size, backbone.dropout)
