"""Find which triangle covers a pixel, and where inside it: a z-buffer rasterizer in plain numpy.

Every triangle is expanded into the pixels of its bounding box at once, so that the thousands of
tiny triangles of a head cost a few array operations instead of a loop.
"""

import numpy as np


def rasterize(
    points: np.ndarray, depth: np.ndarray, faces: np.ndarray, two_sided: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the nearest triangle under every pixel centre of a square image.

    Args:
        points: float32 [V, 2], pixel coordinates (x right, y down; pixel centres at k + 0.5).
        depth: float32 [V], distance to the camera.
        faces: int [F, 3], counter-clockwise as seen from outside the surface.
        two_sided: bool [F], marks the triangles that are drawn from behind as well.
        size: edge of the image in pixels.

    Returns:
        pixel: int64 [P], the covered pixels as row * size + column, ascending.
        face: int64 [P], the row of `faces` that is seen there.
        weights: float32 [P, 3], barycentric weights of that triangle's corners.
    """
    first, second, third = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    edge_b = second - first
    edge_c = third - first
    area = edge_b[:, 0] * edge_c[:, 1] - edge_b[:, 1] * edge_c[:, 0]
    low = np.ceil(np.minimum(np.minimum(first, second), third) - 0.5).astype(np.int32)
    high = np.floor(np.maximum(np.maximum(first, second), third) - 0.5).astype(np.int32)
    np.maximum(low, 0, out=low)
    np.minimum(high, size - 1, out=high)
    extent = high - low + 1
    # y points down, so that a triangle facing the camera has negative signed area.
    seen = (area < -1e-9) | (two_sided & (np.abs(area) > 1e-9))
    kept = np.flatnonzero(seen & (extent[:, 0] > 0) & (extent[:, 1] > 0))
    if len(kept) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32)
    a, b, c = first[kept], edge_b[kept], edge_c[kept]
    scale = 1.0 / area[kept]
    z = depth[faces[kept]]
    plane = np.empty((len(kept), 8), np.float32)
    plane[:, 0] = c[:, 1] * scale
    plane[:, 1] = -c[:, 0] * scale
    plane[:, 2] = -b[:, 1] * scale
    plane[:, 3] = b[:, 0] * scale
    plane[:, 4:6] = a - 0.5
    plane[:, 6] = z[:, 1] - z[:, 0]
    plane[:, 7] = z[:, 2] - z[:, 0]
    width = extent[kept, 0]
    count = width * extent[kept, 1]
    owner = np.repeat(np.arange(len(kept), dtype=np.int32), count)
    start = np.cumsum(count) - count
    inside_box = np.arange(len(owner), dtype=np.int32) - start.astype(np.int32)[owner]
    row = inside_box // width[owner]
    column = inside_box - row * width[owner] + low[kept, 0][owner]
    row += low[kept, 1][owner]
    q = plane[owner]
    x = column.astype(np.float32) - q[:, 4]
    y = row.astype(np.float32) - q[:, 5]
    weight_b = x * q[:, 0] + y * q[:, 1]
    weight_c = x * q[:, 2] + y * q[:, 3]
    hit = np.flatnonzero((weight_b >= 0) & (weight_c >= 0) & (weight_b + weight_c <= 1))
    owner, weight_b, weight_c = owner[hit], weight_b[hit], weight_c[hit]
    pixel_of_hit = row[hit] * size + column[hit]
    distance = z[owner, 0] + weight_b * q[hit, 6] + weight_c * q[hit, 7]
    order = np.argsort(-distance, kind="stable")
    nearest = np.full(size * size, -1, np.int64)
    nearest[pixel_of_hit[order]] = order  # the last write stays; it is the nearest hit
    pixel = np.flatnonzero(nearest >= 0)
    best = nearest[pixel]
    weight_b, weight_c = weight_b[best], weight_c[best]
    weights = np.stack([1 - weight_b - weight_c, weight_b, weight_c], 1)
    return pixel, kept[owner[best]], weights
