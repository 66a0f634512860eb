"""tests/golden/hints.safetensors: a picture, its edges as OpenCV finds them, and other sizes of it as Pillow makes them.

    picture                     f16 [height, width, 3]
    canny.<low>-<high>          f16 [height, width]
    resize.<width>x<height>     f16 [height, width, 3]

Needs opencv-python-headless, which nothing else here does; made with 5.0.0 and Pillow 13.0.0.
"""

import cv2
import numpy
import torch
from PIL import Image
from safetensors.torch import save_file

import shared

THRESHOLDS = ((100, 200), (60, 120), (20, 300), (33.7, 90.2))
# Both wider, both narrower, one kept; the last ones begin with their columns.
SIZES = ((33, 28), (13, 9), (27, 30), (20, 24), (31, 17), (24, 8))


def draw():
    """Smooth shapes, a hard square and noise, 27 × 24."""
    y, x = numpy.mgrid[0:24, 0:27].astype(numpy.float64)
    planes = [128 + 100 * numpy.sin(x / 3), 255 * (numpy.hypot(x - 14, y - 12) < 8), 10 * y]
    pixels = numpy.stack(planes, -1)
    pixels[3:9, 17:25] = (250, 20, 200)
    pixels[16:, :8] += numpy.random.default_rng(7).integers(-60, 60, (8, 8, 3))
    return pixels.clip(0, 255).astype(numpy.uint8)


def main():
    pixels = draw()
    made = {"picture": pixels}
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    for low, high in THRESHOLDS:
        made[f"canny.{low}-{high}"] = cv2.Canny(gray, low, high)
    for size in SIZES:
        made["resize.{}x{}".format(*size)] = numpy.array(Image.fromarray(pixels).resize(size, Image.LANCZOS))
    tensors = {name: torch.from_numpy(value.astype(numpy.float16)).contiguous() for name, value in made.items()}
    save_file(tensors, shared.GOLDEN / "hints.safetensors")


if __name__ == "__main__":
    main()
