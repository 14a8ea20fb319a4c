import numpy as np
import pytest
import torch

from factory.recipe import InputError
from factory.training.augment import AUGMENTATIONS, augment, check_names

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


def test_flip_mirrors_or_keeps():
    for before, after in zip(IMAGES, applied("flip"), strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))


def test_erasing_paints_two_to_ten_percent_grey():
    made = applied("erasing")
    shares = ((made == 0).all(1) & (IMAGES != 0).any(1)).float().mean((1, 2))
    erased = shares[shares > 0]
    assert len(erased) > 0
    assert (erased < 0.14).all()


def test_crop_keeps_a_plain_image_plain():
    plain = torch.full((12, 3, 32, 32), 0.25)
    assert torch.allclose(augment(plain.clone(), ["crop"], 7, 0, slice(0, 12), 12), plain)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"augment: 'mirror'; accepted: .*flip"):
        check_names(["flip", "mirror"])
