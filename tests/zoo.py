"""Published recognizers' layouts, written down from their facts: every name and its shape.

`filled.filled` makes weights of them.
"""

import hashlib
from collections.abc import Iterator

Layout = dict[str, tuple[int, ...]]


def digest(layout: Layout) -> str:
    """Return what names a layout: its names and shapes in any order."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in layout.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def norm(name: str, width: int, affine: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias") if affine else ():
        yield f"{name}.{part}", (width,)
    yield f"{name}.running_mean", (width,)
    yield f"{name}.running_var", (width,)
    yield f"{name}.num_batches_tracked", ()


def arcface_torch(depths: tuple[int, ...], prefix: str = "") -> Layout:
    """Return the layout of an iResNet of 112 pixels and embeddings of 512."""
    made: Layout = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    made |= dict(norm("bn1", 64))
    inside = 64
    for layer, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512), strict=True), 1):
        for unit in range(depth):
            name = f"layer{layer}.{unit}"
            made |= {
                f"{name}.conv1.weight": (width, inside, 3, 3),
                f"{name}.prelu.weight": (width,),
                f"{name}.conv2.weight": (width, width, 3, 3),
            }
            made |= dict(norm(f"{name}.bn1", inside))
            made |= dict(norm(f"{name}.bn2", width)) | dict(norm(f"{name}.bn3", width))
            if unit == 0:
                made[f"{name}.downsample.0.weight"] = (width, inside, 1, 1)
                made |= dict(norm(f"{name}.downsample.1", width))
            inside = width
    made |= {"fc.weight": (512, 512 * 49), "fc.bias": (512,)}
    made |= dict(norm("bn2", 512)) | dict(norm("features", 512))
    return {prefix + name: shape for name, shape in made.items()}


def adaface(depths: tuple[int, ...], prefix: str = "model.") -> Layout:
    """Return the layout of AdaFace's IR networks."""
    made: Layout = {"input_layer.0.weight": (64, 3, 3, 3), "input_layer.2.weight": (64,)}
    made |= dict(norm("input_layer.1", 64))
    units = zip(depths, (64, 128, 256, 512), strict=True)
    widths = [width for depth, width in units for _ in range(depth)]
    inside = 64
    for unit, width in enumerate(widths):
        name = f"body.{unit}.res_layer"
        made |= {
            f"{name}.1.weight": (width, inside, 3, 3),
            f"{name}.3.weight": (width,),
            f"{name}.4.weight": (width, width, 3, 3),
        }
        made |= dict(norm(f"{name}.0", inside))
        made |= dict(norm(f"{name}.2", width)) | dict(norm(f"{name}.5", width))
        if inside != width:
            made[f"body.{unit}.shortcut_layer.0.weight"] = (width, inside, 1, 1)
            made |= dict(norm(f"body.{unit}.shortcut_layer.1", width))
        inside = width
    made |= {"output_layer.3.weight": (512, 512 * 49), "output_layer.3.bias": (512,)}
    made |= dict(norm("output_layer.0", 512)) | dict(norm("output_layer.4", 512, affine=False))
    return {prefix + name: shape for name, shape in made.items()}


def mbf() -> Layout:
    """Return the layout of arcface_torch's mbf."""

    def convolved(name: str, out: int, inside: int, side: int, slopes: bool = True) -> Layout:
        made: Layout = {f"{name}.layers.0.weight": (out, inside, side, side)}
        made |= {f"{name}.layers.2.weight": (out,)} if slopes else {}
        return made | dict(norm(f"{name}.layers.1", out))

    def bottleneck(name: str, inside: int, middle: int, out: int) -> Layout:
        return {
            **convolved(f"{name}.layers.0", middle, inside, 1),
            **convolved(f"{name}.layers.1", middle, 1, 3),
            **convolved(f"{name}.layers.2", out, middle, 1, slopes=False),
        }

    made = convolved("layers.0", 128, 3, 3) | convolved("layers.1", 128, 2, 3)
    made |= bottleneck("layers.2", 128, 128, 128) | bottleneck("layers.4", 128, 256, 256)
    made |= bottleneck("layers.6", 256, 512, 256)
    for place, count, width in ((3, 4, 128), (5, 6, 256), (7, 2, 256)):
        for unit in range(count):
            made |= bottleneck(f"layers.{place}.layers.{unit}", width, width, width)
    made |= convolved("conv_sep", 512, 256, 1)
    made |= convolved("features.layers.0", 512, 1, 7, slopes=False)
    return made | {"features.layers.2.weight": (512, 512)} | dict(norm("features.layers.3", 512))
