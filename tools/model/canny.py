"""Canny's edges (Canny 1986, as OpenCV computes them with an aperture of 3 and L1 magnitudes)."""

import numpy as np

SHIFT, TAN_22 = 15, 13573   # tan(22.5°) in fixed point


def _around(a, dy, dx):
    """The neighbour of every pixel; what is outside of the picture is 0."""
    padded = np.pad(a, 1)
    return padded[1 + dy:1 + dy + a.shape[0], 1 + dx:1 + dx + a.shape[1]]


def _sobel(grey):
    p = np.pad(grey, 1, mode="edge")
    rows = p[:-2] + 2 * p[1:-1] + p[2:]
    columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]


def edges(rgb, low=100, high=200):
    """uint8 [h, w, 3] → uint8 [h, w]: 255 on an edge, else 0."""
    rgb = rgb.astype(np.int64)
    grey = (rgb[..., 0] * 4899 + rgb[..., 1] * 9617 + rgb[..., 2] * 1868 + 8192) >> 14
    dx, dy = _sobel(grey)
    size = abs(dx) + abs(dy)
    ax, ay = abs(dx), abs(dy) << SHIFT
    flat, steep = ay < ax * TAN_22, ay > ax * (TAN_22 + (1 << SHIFT + 1))
    same = (dx ^ dy) >= 0
    kept = np.where(
        flat, (size > _around(size, 0, -1)) & (size >= _around(size, 0, 1)),
        np.where(steep, (size > _around(size, -1, 0)) & (size >= _around(size, 1, 0)),
                 np.where(same, (size > _around(size, -1, -1)) & (size > _around(size, 1, 1)),
                          (size > _around(size, -1, 1)) & (size > _around(size, 1, -1)))))
    weak, found = kept & (size > low), kept & (size > high)
    while True:
        grown = found.copy()
        for y in (-1, 0, 1):
            for x in (-1, 0, 1):
                grown |= _around(found, y, x)
        grown &= weak
        if (grown == found).all():
            return np.where(found, 255, 0).astype(np.uint8)
        found = grown
