"""The rasterizer against a loop over every pixel and triangle."""

import numpy as np

from factory.studio.raster import rasterize

SIZE = 24


def by_hand(points, depth, faces, two_sided):
    """Nearest triangle per pixel centre, by solving for the barycentric weights one by one."""
    nearest = np.full((SIZE, SIZE), -1)
    best = np.full((SIZE, SIZE), np.inf)
    for f, (i, j, k) in enumerate(faces):
        a, b, c = points[[i, j, k]].astype(np.float64)
        matrix = np.column_stack([b - a, c - a])
        determinant = np.linalg.det(matrix)
        if determinant > -1e-9 and not (two_sided[f] and determinant > 1e-9):
            continue
        for row in range(SIZE):
            for column in range(SIZE):
                u, v = np.linalg.solve(matrix, np.array([column + 0.5, row + 0.5]) - a)
                if u >= 0 and v >= 0 and u + v <= 1:
                    z = depth[i] * (1 - u - v) + depth[j] * u + depth[k] * v
                    if z < best[row, column]:
                        best[row, column], nearest[row, column] = z, f
    return nearest


def scene(seed: int):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, SIZE + 4, (18, 2)).astype(np.float32)
    depth = rng.uniform(1, 9, 18).astype(np.float32)
    faces = rng.permuted(np.tile(np.arange(18), (9, 1)), axis=1)[:, :3]
    return points, depth, faces, rng.random(9) < 0.5


def test_agrees_with_the_loop():
    for seed in range(4):
        points, depth, faces, two_sided = scene(seed)
        pixel, face, weights = rasterize(points, depth, faces, two_sided, SIZE)
        found = np.full(SIZE * SIZE, -1)
        found[pixel] = face
        assert np.array_equal(found.reshape(SIZE, SIZE), by_hand(points, depth, faces, two_sided))
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
        centre = np.stack([pixel % SIZE + 0.5, pixel // SIZE + 0.5], 1)
        located = np.einsum("pk,pkc->pc", weights, points[faces[face]])
        np.testing.assert_allclose(located, centre, atol=2e-3)


def test_nothing_in_sight_is_an_empty_picture():
    points = np.array([[50, 50], [60, 50], [50, 60]], np.float32)
    pixel, face, weights = rasterize(
        points, np.ones(3, np.float32), np.array([[0, 1, 2]]), np.array([True]), SIZE
    )
    assert len(pixel) == len(face) == len(weights) == 0
