"""Augmentations of a batch of faces, each drawn from its position in the training.

Each augmentation maps float images [B, 3, S, S] in [-1, 1] and an array of draws to images of the
same shape. Draws are made for the whole global batch, so that images do not depend on the number of
workers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from factory.recipe import InputError
from factory.seeding import generator, seed64

CROP_AREA = (0.9, 1.0)  # CemiFace's FR recipe
ERASED_AREA = (0.02, 0.1)  # CemiFace's FR recipe
ERASING_RATE = 0.5
JITTER = 0.1  # CemiFace: brightness, contrast, saturation, and hue in turns of the colour wheel
RARE = 0.2  # AdaFace's rate of cutting, of low resolution and of photometric changes
LOWEST = 0.2  # AdaFace's smallest side of a low-resolution image, as a share of the side
CUT_AREA = (0.2, 1.0)  # share of the area that AdaFace's crop leaves
CUT_RATIO = 4 / 3  # largest ratio of the two sides that it leaves
PHOTOMETRIC = 0.5  # AdaFace: brightness, contrast and saturation
STRENGTH = 16 / 30  # RandAugment's magnitude 16 of the 31 bins 0 to 30
ZOOM = (0.75, 1.1)  # side of the crop, as a share of the image's side
SHIFT = 0.06  # largest shift of the crop, as a share of the image's side
GREYED = 0.1  # rate of images without colours
NOISE = (0.01, 0.08)  # standard deviation of a sensor's noise, as a share of the range
GAMMA = 0.4  # exposure: largest absolute log of the exponent
QUALITY = (20, 90)  # JPEG quality


def augment(
    images: Tensor, names: Sequence[str], seed: int, step: int, rows: slice, total: int
) -> Tensor:
    """Apply augmentations in order.

    Args:
        images: float [B, 3, S, S] in [-1, 1]: rows `rows` of the global batch.
        names: names from AUGMENTATIONS.
        seed: the recipe's seed.
        step: global step.
        rows: the rows of the images in the global batch.
        total: number of images of the global batch.
    """
    for number, name in enumerate(names):
        draws = generator(seed64(seed, f"augment {name}", number, step))
        images = AUGMENTATIONS[name](images, draws.random((total, WIDTH))[rows])
    return images.clamp_(-1.0, 1.0)


def check_names(names: Sequence[str]) -> None:
    """Raise InputError if an augmentation is unknown."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise InputError(
                f"recipe field augment: {name!r}; accepted: {', '.join(sorted(AUGMENTATIONS))}"
            )


WIDTH = 16  # number of uniform draws that an augmentation gets for each image
Draws = np.ndarray  # float64 [B, WIDTH] in [0, 1)


def flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirror half of the images."""
    mirrored = _column(draws[:, 0] < 0.5).to(images.device)
    return torch.where(mirrored, images.flip(3), images)


def crop(images: Tensor, draws: Draws) -> Tensor:
    """Cut out a square of 90 to 100 percent of the area and scale it up again."""
    side = np.sqrt(_between(draws[:, 0], *CROP_AREA))
    x, y = ((2.0 * draws[:, n] - 1.0) * (1.0 - side) for n in (1, 2))
    zero = np.zeros_like(side)
    return _warp(images, np.stack([side, zero, x, zero, side, y], 1))


def erasing(images: Tensor, draws: Draws) -> Tensor:
    """Paint a grey rectangle of 2 to 10 percent of the area over half of the images."""
    size = images.shape[-1]
    area = _between(draws[:, 0], *ERASED_AREA)
    ratio = np.exp(_between(draws[:, 1], -np.log(3.3), np.log(3.3)))
    height, width = np.sqrt(area * ratio).clip(0, 1), np.sqrt(area / ratio).clip(0, 1)
    top, left = draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)
    chosen = (draws[:, 4] < ERASING_RATE)[:, None, None]
    hole = torch.from_numpy(chosen & _rectangle(size, top, left, height, width))
    return images.masked_fill(hole[:, None].to(images.device), 0.0)


def cutting(images: Tensor, draws: Draws) -> Tensor:
    """In a fifth of the images, keep a rectangle of 20 to 100 percent of the area, black around."""
    size = images.shape[-1]
    area = _between(draws[:, 0], *CUT_AREA)
    ratio = np.exp(_between(draws[:, 1], -np.log(CUT_RATIO), np.log(CUT_RATIO)))
    height, width = np.sqrt(area * ratio).clip(0, 1), np.sqrt(area / ratio).clip(0, 1)
    top, left = draws[:, 2] * (1 - height), draws[:, 3] * (1 - width)
    left_over = _rectangle(size, top, left, height, width) | (draws[:, 4] >= RARE)[:, None, None]
    return images.masked_fill(~torch.from_numpy(left_over)[:, None].to(images.device), -1.0)


def jitter(images: Tensor, draws: Draws) -> Tensor:
    """Change brightness, contrast and saturation by up to 10 percent."""
    return _lit(images, draws, JITTER)


def photometric(images: Tensor, draws: Draws) -> Tensor:
    """Change brightness, contrast and saturation of a fifth of the images by up to 50 percent."""
    chosen = _column(draws[:, 3] < RARE).to(images.device)
    return torch.where(chosen, _lit(images, draws, PHOTOMETRIC), images)


def hue(images: Tensor, draws: Draws) -> Tensor:
    """Turn hues by up to a tenth of the colour wheel; value and saturation stay the same."""
    colours = (images.clamp(-1.0, 1.0) + 1.0) / 2.0
    value, low = colours.amax(1, keepdim=True), colours.amin(1, keepdim=True)
    spread = value - low
    red, green, blue = colours.split(1, dim=1)
    safe = spread.clamp(min=1e-8)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2.0, (red - green) / safe + 4.0),
    )
    turned = sextant + 6.0 * _column(_between(draws[:, 0], -JITTER, JITTER), images)
    # A channel is lower than the value if its hue is more than one sextant away.
    away = (turned - turned.new_tensor([0.0, 2.0, 4.0]).view(1, 3, 1, 1) + 3.0) % 6.0 - 3.0
    return 2.0 * (value - spread * (away.abs() - 1.0).clamp(0.0, 1.0)) - 1.0


def _lit(images: Tensor, draws: Draws, most: float) -> Tensor:
    brightness, contrast, saturation = (
        _column(_between(draws[:, n], 1.0 - most, 1.0 + most), images) for n in range(3)
    )
    images = (images + 1.0) * brightness
    images = _blend(images, _grey(images).mean((2, 3), keepdim=True), contrast)
    return _blend(images, _grey(images), saturation) - 1.0


def lowres(images: Tensor, draws: Draws) -> Tensor:
    """Scale a fifth of the images down to 20 to 100 percent of the side, and up again."""
    size = images.shape[-1]
    out = images.clone()
    for row in np.flatnonzero(draws[:, 0] < RARE):
        small = max(round(size * float(_between(draws[row, 1], LOWEST, 1.0))), 4)
        piece = functional.interpolate(images[row : row + 1], small, mode="area")
        out[row] = functional.interpolate(piece, size, mode="bilinear", align_corners=False)[0]
    return out


def blur(images: Tensor, draws: Draws) -> Tensor:
    """Blur a fifth of the images with a Gaussian of 0.4 to 1.4 pixels."""
    sigma = _between(draws[:, 1], 0.4, 1.4)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / sigma[:, None]) ** 2)
    taps = torch.from_numpy(taps / taps.sum(1, keepdims=True)).to(images)
    chosen = np.flatnonzero(draws[:, 0] < RARE)
    out = images.clone()
    for row in chosen:
        kernel = taps[row].expand(3, 1, 1, 5)
        piece = functional.pad(images[row : row + 1], (2, 2, 2, 2), mode="replicate")
        piece = functional.conv2d(piece, kernel, groups=3)
        out[row] = functional.conv2d(piece, kernel.transpose(2, 3), groups=3)[0]
    return out


def zoom(images: Tensor, draws: Draws) -> Tensor:
    """Crop half of the images tighter or looser and off centre, as another detector would."""
    chosen = draws[:, 0] < 0.5
    side = np.where(chosen, _between(draws[:, 1], *ZOOM), 1.0)
    x, y = (np.where(chosen, 2.0 * SHIFT * (2.0 * draws[:, n] - 1.0), 0.0) for n in (2, 3))
    zero = np.zeros_like(side)
    return _warp(images, np.stack([side, zero, x, zero, side, y], 1))


def grey(images: Tensor, draws: Draws) -> Tensor:
    """Remove the colours of a tenth of the images."""
    chosen = _column(draws[:, 0] < GREYED).to(images.device)
    return torch.where(chosen, _grey(images).expand_as(images), images)


def exposure(images: Tensor, draws: Draws) -> Tensor:
    """Raise the brightness of half of the images to a power between 2/3 and 3/2."""
    power = np.where(draws[:, 0] < 0.5, np.exp(_between(draws[:, 1], -GAMMA, GAMMA)), 1.0)
    light = (images.clamp(-1.0, 1.0) + 1.0) / 2.0
    return 2.0 * light.clamp_min(1e-4) ** _column(power, images) - 1.0


def noise(images: Tensor, draws: Draws) -> Tensor:
    """Add a sensor's noise of equal strength in all channels to a third of the images."""
    strength = np.where(draws[:, 0] < 1 / 3, 2.0 * _between(draws[:, 1], *NOISE), 0.0)
    out = images.clone()
    for row in np.flatnonzero(strength):
        grain = generator(int(draws[row, 2] * 2**53))
        drawn = grain.standard_normal(tuple(images.shape[1:]), np.float32)
        out[row] += strength[row] * torch.from_numpy(drawn).to(images)
    return out


def compression(images: Tensor, draws: Draws) -> Tensor:
    """Compress a third of the images as JPEG of quality 20 to 90, and decode them again."""
    import simplejpeg

    from factory.datasets.decode import decode

    out = images.clone()
    for row in np.flatnonzero(draws[:, 0] < 1 / 3):
        pixels = images[row].add(1.0).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
        quality = round(float(_between(draws[row, 1], *QUALITY)))
        data = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels.cpu().numpy()), quality, colorspace="RGB"
        )
        read = torch.from_numpy(decode(data))
        out[row] = read.permute(2, 0, 1).to(images).div(127.5).sub(1.0)
    return out


def randaugment(images: Tensor, draws: Draws) -> Tensor:
    """Apply IDiff-Face's RandAugment: 4 operations at magnitude 16 of 31, drawn for each image."""
    from PIL import Image

    arrays = images.add(1.0).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    out = np.empty(arrays.shape, np.uint8)
    for row, array in enumerate(arrays.cpu().numpy()):
        image = Image.fromarray(array)
        for number in range(4):
            choice = RANDAUGMENT[int(draws[row, number] * len(RANDAUGMENT))]
            image = choice(image, STRENGTH, 1.0 if draws[row, 4 + number] < 0.5 else -1.0)
        out[row] = np.asarray(image)
    made = torch.from_numpy(out).permute(0, 3, 1, 2).to(images)
    return made.div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last)


def _randaugment_operations() -> tuple[Callable[..., object], ...]:
    from PIL import Image, ImageEnhance, ImageOps

    affine, grey = Image.Transform.AFFINE, (127, 127, 127)

    def moved(image: Image.Image, numbers: tuple[float, ...]) -> Image.Image:
        return image.transform(
            image.size, affine, numbers, Image.Resampling.NEAREST, fillcolor=grey
        )

    def enhanced(kind: Callable[..., object]) -> Callable[..., object]:
        return lambda i, m, s: kind(i).enhance(1.0 + s * 0.9 * m)  # type: ignore[attr-defined]

    return (
        lambda i, m, s: i,
        lambda i, m, s: moved(i, (1, s * 0.3 * m, 0, 0, 1, 0)),
        lambda i, m, s: moved(i, (1, 0, s * 150 / 331 * i.width * m, 0, 1, 0)),
        lambda i, m, s: i.rotate(s * 30 * m, Image.Resampling.NEAREST, fillcolor=grey),
        enhanced(ImageEnhance.Brightness),
        enhanced(ImageEnhance.Color),
        enhanced(ImageEnhance.Contrast),
        enhanced(ImageEnhance.Sharpness),
        lambda i, m, s: ImageOps.posterize(i, 8 - round(4 * m)),
        lambda i, m, s: ImageOps.solarize(i, round(255 * (1.0 - m))),
        lambda i, m, s: ImageOps.autocontrast(i),
        lambda i, m, s: ImageOps.equalize(i),
        lambda i, m, s: ImageOps.grayscale(i).convert("RGB"),
    )


RANDAUGMENT = _randaugment_operations()
AUGMENTATIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "erasing": erasing,
    "cutting": cutting,
    "jitter": jitter,
    "hue": hue,
    "photometric": photometric,
    "lowres": lowres,
    "blur": blur,
    "zoom": zoom,
    "grey": grey,
    "exposure": exposure,
    "noise": noise,
    "compression": compression,
    "randaugment": randaugment,
}


def _warp(images: Tensor, affine: np.ndarray) -> Tensor:
    matrix = torch.from_numpy(affine).to(images).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _rectangle(
    size: int, top: np.ndarray, left: np.ndarray, height: np.ndarray, width: np.ndarray
) -> np.ndarray:
    """Return bool [B, size, size], true inside rectangles given as shares of the side."""
    grid = (np.arange(size) + 0.5) / size
    rows = (grid >= top[:, None]) & (grid < (top + height)[:, None])
    columns = (grid >= left[:, None]) & (grid < (left + width)[:, None])
    return rows[:, :, None] & columns[:, None, :]


def _between(draw: np.ndarray, low: float, high: float) -> np.ndarray:
    return low + (high - low) * draw


def _column(values: np.ndarray, like: Tensor | None = None) -> Tensor:
    column = torch.from_numpy(np.ascontiguousarray(values))[:, None, None, None]
    return column if like is None else column.to(like)


def _grey(images: Tensor) -> Tensor:
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return share * images + (1.0 - share) * other
