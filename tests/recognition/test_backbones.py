import pytest
import torch

from factory.recipe import Backbone, InputError
from factory.recognition.backbones import DEPTHS, WIDTHS, make_backbone

SMALL = Backbone(name="iresnet", embedding_size=24, widths=(8, 8, 12, 16), depths=(1, 2, 1, 1))


def counted_by_hand(depths: tuple[int, ...], size: int, dimension: int) -> int:
    """Count an IResNet's trained parameters from its published layout, layer by layer."""
    total = 3 * 64 * 9 + 2 * 64 + 64  # stem: 3x3, batch norm, PReLU
    inside = 64
    for depth, width in zip(depths, WIDTHS, strict=True):
        for unit in range(depth):
            first = inside if unit == 0 else width
            total += 2 * first + 9 * first * width + 2 * width + width + 9 * width**2 + 2 * width
        total += inside * width + 2 * width  # every layer halves, so its first shortcut is 1x1 + BN
        inside = width
    total += 2 * 512 + 512 * (size // 16) ** 2 * dimension + dimension
    return total + 2 * dimension


@pytest.mark.parametrize("name", ["r18", "r34", "r50", "r100"])
def test_parameter_counts_follow_from_the_layout(name):
    with torch.device("meta"):
        module = make_backbone(Backbone(name=name), 112)
    count = sum(p.numel() for p in module.parameters())
    assert count == counted_by_hand(DEPTHS[name], 112, 512)


def test_published_parameter_counts():
    # insightface's model zoo states 43.6 M for r50 and 65.2 M for r100
    published = {"r50": 43.6e6, "r100": 65.2e6}
    for name, millions in published.items():
        with torch.device("meta"):
            module = make_backbone(Backbone(name=name), 112)
        assert sum(p.numel() for p in module.parameters()) == pytest.approx(millions, rel=0.002)


def test_ir_se50_has_the_parameters_its_public_code_counts():
    with torch.device("meta"):
        module = make_backbone(Backbone(name="ir_se50"), 112)
    assert sum(p.numel() for p in module.parameters()) == 43_797_696


def test_state_dict_names_are_arcface_torchs():
    with torch.device("meta"):
        names = set(make_backbone(Backbone(name="r18"), 112).state_dict())
    stems = {name.rpartition(".")[0] for name in names}
    unit = {"bn1", "conv1", "bn2", "prelu", "conv2", "bn3"}
    expected = {"conv1", "bn1", "prelu", "bn2", "fc", "features"}
    for layer in range(1, 5):
        expected |= {f"layer{layer}.{n}.{part}" for n in range(2) for part in unit}
        expected |= {f"layer{layer}.0.downsample.0", f"layer{layer}.0.downsample.1"}
    assert stems == expected


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (SMALL, 64),
        (SMALL, 32),
        (Backbone(name="mobilefacenet", embedding_size=24), 64),
        (Backbone(name="r18", embedding_size=24), 32),
        (Backbone(name="ir_se50", embedding_size=24), 32),
    ],
)
def test_maps_images_to_embeddings(backbone, size):
    module = make_backbone(backbone, size).eval()
    images = torch.rand(2, 3, size, size, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = module(images)
    assert embeddings.shape == (2, 24)
    assert embeddings.dtype == torch.float32
    embeddings.sum().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_mobilefacenet_is_about_a_million_parameters():
    with torch.device("meta"):
        module = make_backbone(Backbone(name="mobilefacenet", embedding_size=128), 112)
    count = sum(p.numel() for p in module.parameters())
    assert count == pytest.approx(0.99e6, rel=0.05)  # table 3 of the paper


@pytest.mark.parametrize(
    ("backbone", "size", "field"),
    [
        (SMALL, 60, "image.size: 60"),
        (Backbone(name="iresnet"), 64, "backbone.widths"),
        (Backbone(name="r18", widths=(1, 2, 3, 4)), 112, "backbone.widths"),
        (Backbone(name="mobilefacenet", dropout=0.4), 112, "backbone.dropout: 0.4"),
    ],
)
def test_refuses_what_does_not_fit(backbone, size, field):
    with pytest.raises(InputError, match=field):
        make_backbone(backbone, size)
