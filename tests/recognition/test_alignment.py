"""Alignment against insightface's own."""

import numpy as np
import pytest
from insightface.utils import face_align

from factory.recognition.alignment import aligned
from factory.studio.render import TEMPLATE_112


@pytest.mark.parametrize("seed", range(4))
def test_equals_insightfaces_crop(seed):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (20, 25, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    angle, scale = rng.uniform(-0.6, 0.6), rng.uniform(0.5, 1.5)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (TEMPLATE_112 - 56) @ turn.T + rng.uniform(80, 130, 2) + rng.normal(0, 2, (5, 2))
    theirs = face_align.norm_crop(image, points.astype(np.float32), 112)
    ours = aligned(image, points.astype(np.float32), 112)
    assert np.abs(ours.astype(int) - theirs).mean() < 0.2


def test_points_on_the_template_leave_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    np.testing.assert_array_equal(aligned(image, TEMPLATE_112), image)
