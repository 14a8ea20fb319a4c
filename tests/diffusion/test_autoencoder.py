"""The desk autoencoder: shapes, unit latents, a frozen encoder, and a paper-scale twin."""

import pytest
import torch

from factory.diffusion.autoencoder import (
    AutoencoderConfig,
    Bottleneck,
    edge_loss,
    to_images,
    to_pixels,
)

SMALL = AutoencoderConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def test_latents_have_a_quarter_of_the_size_and_unit_variance() -> None:
    torch.manual_seed(0)
    network = Bottleneck(SMALL).train()
    images = torch.randn(16, 3, 16, 16)
    for _ in range(600):
        network.normalize(network.encoder(images))
    latents = network.eval().encode(images)
    assert latents.shape == (16, 4, 4, 4)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.02, rtol=0.0)
    assert network.decode(latents).shape == images.shape


def test_the_desk_file_stays_small() -> None:
    assert sum(p.numel() for p in Bottleneck(AutoencoderConfig()).parameters()) < 4_900_000


def test_a_frozen_encoder_gives_the_same_latents_after_training() -> None:
    torch.manual_seed(0)
    network = Bottleneck(SMALL)
    images = torch.randn(8, 3, 16, 16)
    before = network.eval().encode(images)
    network.freeze_encoder()
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for _ in range(3):
        loss = (network(images, torch.randn(8, 4, 4, 4)) - images).square().mean()
        loss.backward()
        optimizer.step()
    assert torch.equal(network.eval().encode(images), before)


def test_pixels_round_trip() -> None:
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_images(to_pixels(images)), images)
    assert to_images(torch.full((1, 3, 2, 2), 9.0)).max() == 255


def test_edges_do_not_see_a_constant_but_see_a_contour() -> None:
    flat, bright = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert edge_loss(flat, bright) == 0.0
    contour = flat.clone()
    contour[..., 2:] = 1.0
    # one of the three differences in each row
    assert edge_loss(flat, contour).item() == pytest.approx(1 / 3)
