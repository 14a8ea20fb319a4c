import colorsys

import numpy as np
import pytest
import torch
from gpu import GPU, pretended_gpu

from factory.recipe import InputError
from factory.training.augment import AUGMENTATIONS, augment, check_names, hue

IMAGES = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (12, 3, 32, 32))).float()


def applied(*names, step=0, rows=slice(0, 12)):
    return augment(IMAGES[rows].clone(), names, 7, step, rows, 12)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_changes_some_images_within_range_and_by_position_only(name):
    made = applied(name)
    assert made.shape == IMAGES.shape
    assert made.dtype == torch.float32
    assert made.abs().max() <= 1
    assert not torch.equal(made, IMAGES)
    assert torch.equal(made, applied(name))
    assert not torch.equal(made, applied(name, step=1))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_worker_gets_its_part_of_the_global_batch(name):
    whole = applied(name)
    part = applied(name, rows=slice(4, 8))
    assert torch.allclose(whole[4:8], part, atol=1e-6)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_images_on_a_gpu_stay_there(name):
    with pretended_gpu():
        made = augment(IMAGES.to("cuda"), [name], 7, 0, slice(0, 12), 12)
        assert made.device == GPU and torch.equal(made.cpu(), applied(name))


def test_flip_mirrors_or_keeps():
    for before, after in zip(IMAGES, applied("flip"), strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))


def test_erasing_paints_two_to_ten_percent_grey():
    made = applied("erasing")
    shares = ((made == 0).all(1) & (IMAGES != 0).any(1)).float().mean((1, 2))
    erased = shares[shares > 0]
    assert len(erased) > 0
    assert (erased < 0.14).all()


def test_cutting_leaves_a_fifth_to_all_of_a_fifth_of_the_images():
    plain = torch.zeros(400, 3, 32, 32)
    made = augment(plain, ["cutting"], 7, 0, slice(0, 400), 400)
    shares = (made == 0).all(1).float().mean((1, 2))
    cut = shares[shares < 1]
    assert 0.1 < len(cut) / 400 < 0.25
    assert 0.15 < cut.min() < 0.4 and ((made == 0) | (made == -1)).all()


def test_photometric_changes_a_fifth():
    images = IMAGES.repeat(25, 1, 1, 1)
    made = augment(images.clone(), ["photometric"], 7, 0, slice(0, 300), 300)
    changed = (made != images).flatten(1).any(1).float().mean()
    assert 0.1 < changed < 0.3


@pytest.mark.parametrize("turn", [0.0, 0.3, 0.999])
def test_hue_turns_as_colorsys_does(turn):
    images, draws = IMAGES[:1, :, :8, :8], np.full((1, 16), turn)
    made = (hue(images, draws) + 1) / 2
    for y in range(8):
        for x in range(8):
            h, s, v = colorsys.rgb_to_hsv(*((images[0, :, y, x] + 1) / 2).tolist())
            wanted = colorsys.hsv_to_rgb((h - 0.1 + 0.2 * turn) % 1.0, s, v)
            assert made[0, :, y, x].tolist() == pytest.approx(wanted, abs=1e-5)
    grey = torch.full((1, 3, 2, 2), 0.3)
    assert torch.allclose(hue(grey, draws), grey, atol=1e-6)


def test_crop_keeps_a_plain_image_plain():
    plain = torch.full((12, 3, 32, 32), 0.25)
    assert torch.allclose(augment(plain.clone(), ["crop"], 7, 0, slice(0, 12), 12), plain)


def many(name, images):
    return augment(images.clone(), [name], 7, 0, slice(0, len(images)), len(images))


def test_grey_takes_the_colours_of_a_tenth():
    made = many("grey", IMAGES.repeat(50, 1, 1, 1))
    grey = (made[:, :1] - made).abs().flatten(1).amax(1) < 1e-6
    assert 0.06 < grey.float().mean() < 0.14
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    whole = (IMAGES.repeat(50, 1, 1, 1) * weights).sum(1, keepdim=True)
    assert torch.allclose(made[grey], whole[grey].expand(-1, 3, -1, -1), atol=1e-6)


def test_exposure_is_a_power_of_the_brightness():
    light = torch.full((400, 3, 4, 4), 2 * 0.25 - 1)
    made = (many("exposure", light)[:, 0, 0, 0] + 1) / 2
    power = made.log() / np.log(0.25)
    changed = (power - 1).abs() > 1e-5
    assert 0.4 < changed.float().mean() < 0.6
    assert power.min() > np.exp(-0.4) - 1e-4 and power.max() < np.exp(0.4) + 1e-4


def test_noise_has_the_strength_it_says():
    made = many("noise", torch.zeros(600, 3, 32, 32))
    spread = made.flatten(1).std(1) / 2
    noisy = spread[spread > 0]
    assert 0.28 < len(noisy) / 600 < 0.39
    assert noisy.min() > 0.009 and noisy.max() < 0.082 and abs(float(made.mean())) < 1e-3


def test_compression_is_that_of_a_jpeg_and_of_a_third():
    smooth = torch.linspace(-1, 1, 32).expand(300, 3, 32, 32).contiguous()
    made = many("compression", smooth)
    changed = (made != smooth).flatten(1).any(1)
    assert 0.26 < changed.float().mean() < 0.41
    assert (made - smooth).abs().mean((1, 2, 3)).max() < 0.05


def test_zoom_moves_half_of_the_images_and_keeps_a_plain_one():
    made = many("zoom", IMAGES.repeat(30, 1, 1, 1))
    moved = (made - IMAGES.repeat(30, 1, 1, 1)).abs().flatten(1).amax(1) > 1e-4
    assert 0.4 < moved.float().mean() < 0.6
    plain = torch.full((40, 3, 32, 32), 0.25)
    assert torch.allclose(many("zoom", plain), plain)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"augment: 'mirror'; accepted: .*flip"):
        check_names(["flip", "mirror"])
