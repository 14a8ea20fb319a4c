"""The baked head: linear shape changes do what their names say."""

import numpy as np
import pytest

from factory.studio.head import load_head, phenotype_coefficients, shape_vertices, vertex_normals


def neutral(**changes: float) -> np.ndarray:
    head = load_head()
    local = np.zeros(len(head.local_names), np.float32)
    for name, value in changes.items():
        local[head.local_names.index(name.replace("_", "-"))] = value
    middle = phenotype_coefficients(0.5, 30, 0.5, np.full(3, 1 / 3))
    return shape_vertices(middle, local)


def test_the_parts_of_the_file_fit_together():
    head = load_head()
    count = len(head.mean)
    assert head.faces.min() >= 0 and head.faces.max() < count
    assert head.expressions.shape == (52, count, 3) and len(head.expression_names) == 52
    assert head.local.shape == (2 * len(head.local_names), count, 3)
    assert np.isfinite(head.local).all() and np.isfinite(head.components).all()


def test_eyes_nose_and_mouth_lie_where_a_face_has_them():
    right_eye, left_eye, nose, right_mouth, left_mouth = (
        load_head().mean[rows].mean(0) for rows in load_head().landmark_rows
    )
    assert right_eye[0] < -2 and left_eye[0] > 2
    assert nose[2] > max(left_eye[2], left_mouth[2])
    assert right_mouth[0] < -1.5 < 1.5 < left_mouth[0]
    assert left_eye[1] > nose[1] > left_mouth[1]


def test_a_change_and_its_reverse_move_opposite_ways():
    width = [np.ptp(neutral(head_scale_horiz_incr=v)[:, 0]) for v in (-1, 0, 1)]
    head = load_head()
    mouth = [np.ptp(neutral(mouth_scale_horiz_incr=v)[head.lips > 0.5, 0]) for v in (-1, 0, 1)]
    assert mouth[0] < mouth[1] < mouth[2]
    assert width[0] <= width[1] <= width[2]


def test_phenotype_is_linear_between_its_corners():
    share = np.array([0.0, 1.0, 0.0])
    low, middle, high = (phenotype_coefficients(0.5, age, 0.5, share) for age in (25, 57.5, 90))
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-3)
    with_mix = phenotype_coefficients(0.25, 40, 0.5, share)
    female, male = (phenotype_coefficients(g, 40, 0.5, share) for g in (0.0, 1.0))
    np.testing.assert_allclose(with_mix, 0.75 * female + 0.25 * male, atol=1e-3)


def test_normals_of_a_sphere_point_outward():
    turn, rows = np.meshgrid(np.linspace(0, 2 * np.pi, 40), np.linspace(0.3, np.pi - 0.3, 20))
    sphere = np.stack(
        [np.sin(rows) * np.sin(turn), np.cos(rows), np.sin(rows) * np.cos(turn)], -1
    ).astype(np.float32)
    index = np.arange(800).reshape(20, 40)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)]).reshape(-1, 3)
    normals = vertex_normals(sphere.reshape(-1, 3), faces)
    inner = sphere[1:-1, 1:-1].reshape(-1, 3)
    found = normals.reshape(20, 40, 3)[1:-1, 1:-1].reshape(-1, 3)
    assert pytest.approx(1.0, abs=0.02) == (inner * found).sum(1).min()
