"""Common corruptions: 15 kinds in 5 strengths (Hendrycks & Dietterich 2019).

Made on the fly, from the view of an image that the network would get, with the
published constants: those of CIFAR-10-C for views of up to 64 pixels, those of
ImageNet-C for larger ones. Lengths in pixels scale with the side of the view,
from 32 and 224. What is random follows from the pixels, kind and strength, so
every pass makes the same images.

Frost differs from the published files: its photographs are not free, so it is
drawn. Images are not saved as JPEG afterwards, as those of ImageNet-C were.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from seer_jax.data import preprocessing
from seer_jax.evals.robustness import textures

# Views up to this side take the constants of CIFAR-10-C.
_SMALL = 64


@dataclasses.dataclass(frozen=True)
class Corrupted:
  """A view, corrupted."""

  view: preprocessing.View
  kind: str  # Of `KINDS`.
  severity: int  # 1 to 5.

  @property
  def shape(self) -> tuple[int, int]:
    return self.view.shape

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    return corrupt(self.view(image_HxWx3, index), self.kind, self.severity)


def corrupt(image_SxSx3: np.ndarray, kind: str, severity: int) -> np.ndarray:
  """A corrupted image, uint8.

  Raises ValueError for an unknown kind or strength.
  """
  if kind not in KINDS or not 1 <= severity <= 5:
    raise ValueError(f"there is no corruption {kind!r} of strength {severity}")
  small, large, function = KINDS[kind]
  side = image_SxSx3.shape[0]
  is_small = side <= _SMALL
  constant = (small if is_small else large)[severity - 1]
  seed = zlib.crc32(np.ascontiguousarray(image_SxSx3))
  rng = np.random.default_rng((seed, list(KINDS).index(kind), severity))
  x = image_SxSx3.astype(np.float32) / 255
  found = function(x, constant, rng, side / (32 if is_small else 224))
  return np.uint8(np.clip(found, 0, 1) * 255)


def _gaussian_noise(x, c, rng, scale):
  del scale
  return x + rng.normal(scale=c, size=x.shape)


def _shot_noise(x, c, rng, scale):
  del scale
  return rng.poisson(x * c) / c


def _impulse_noise(x, c, rng, scale):
  """Salt and pepper: a share of the values becomes 0 or 1."""
  del scale
  hit, salt = rng.random(x.shape) < c, rng.random(x.shape) < 0.5
  return np.where(hit, salt, x)


def _defocus_blur(x, c, rng, scale):
  del rng
  radius, alias = c[0] * scale, c[1]
  reach = max(8, int(np.ceil(radius)))
  offsets = np.arange(-reach, reach + 1)
  disk = np.float32(offsets[:, None] ** 2 + offsets**2 <= radius**2)
  width = (3, 3) if radius <= 8 else (5, 5)
  kernel = cv2.GaussianBlur(disk / disk.sum(), width, sigmaX=alias)
  return cv2.filter2D(x, -1, kernel)


def _glass_blur(x, c, rng, scale):
  sigma, delta, times = c[0] * scale, max(1, round(c[1] * scale)), c[2]
  pixels = np.uint8(textures.gaussian(x, sigma) * 255)
  moved = textures.scattered(pixels, delta, times, rng)
  return textures.gaussian(moved / np.float32(255), sigma)


def _motion_blur(x, c, rng, scale):
  angle = rng.uniform(-45, 45)
  return textures.motion(x, c[0] * scale, c[1] * scale, angle)


def _zoom_blur(x, c, rng, scale):
  del rng, scale
  total, zooms = x.copy(), np.arange(1, *c)
  for zoom in zooms:
    total += textures.zoomed(x, zoom)
  return total / (len(zooms) + 1)


def _snow(x, c, rng, scale):
  mean, deviation, zoom, least, radius, sigma, keep = c
  flakes = rng.normal(mean, deviation, x.shape[:2]).astype(np.float32)
  flakes = textures.zoomed(flakes, zoom)
  flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
  flakes = textures.motion(
    flakes, radius * scale, sigma * scale, rng.uniform(-135, -45)
  )[..., None]
  grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
  whiter = np.maximum(x, grey * 1.5 + 0.5)
  return keep * x + (1 - keep) * whiter + flakes + np.rot90(flakes, 2)


def _frost(x, c, rng, scale):
  del scale
  return c[0] * x + c[1] * textures.frost(x.shape[0], rng)


def _fog(x, c, rng, scale):
  del scale
  largest = x.max()
  plasma = textures.plasma(x.shape[0], c[1], rng)[..., None]
  return (x + c[0] * plasma) * largest / (largest + c[0])


def _brightness(x, c, rng, scale):
  del rng, scale
  hsv = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
  hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _contrast(x, c, rng, scale):
  del rng, scale
  means = x.mean((0, 1), keepdims=True)
  return (x - means) * c + means


def _elastic(x, c, rng, scale):
  """A random affine map, then a smooth displacement."""
  del scale
  side = x.shape[0]
  alpha, sigma, jitter = (side * each for each in c)
  middle, arm = side // 2, side // 3
  corners = np.float32([(1, 1), (1, -1), (-1, -1)]) * arm + middle
  moved = corners + rng.uniform(-jitter, jitter, (3, 2)).astype(np.float32)
  matrix = cv2.getAffineTransform(corners, np.float32(moved))
  x = cv2.warpAffine(x, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
  dx, dy = (
    alpha * textures.smooth(rng.uniform(-1, 1, (side, side)), sigma)
    for _ in range(2)
  )
  rows, columns = np.mgrid[:side, :side]
  return cv2.remap(
    x,
    np.float32(columns + dx),
    np.float32(rows + dy),
    cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REFLECT,
  )


def _pixelate(x, c, rng, scale):
  del rng, scale
  side = x.shape[0]
  small = max(1, int(side * c))
  few = cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA)
  return cv2.resize(few, (side, side), interpolation=cv2.INTER_NEAREST)


def _jpeg(x, c, rng, scale):
  del rng, scale
  bgr = np.uint8(np.rint(x[..., ::-1] * 255))
  data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, c])[1]
  return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] / 255


# Kind -> (constants of CIFAR-10-C, of ImageNet-C, by strength; function), in
# the order of the paper.
KINDS: Mapping[str, tuple[Any, Any, Callable[..., np.ndarray]]] = {
  "gaussian_noise": (
    (0.04, 0.06, 0.08, 0.09, 0.10),
    (0.08, 0.12, 0.18, 0.26, 0.38),
    _gaussian_noise,
  ),
  "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3), _shot_noise),
  "impulse_noise": (
    (0.01, 0.02, 0.03, 0.05, 0.07),
    (0.03, 0.06, 0.09, 0.17, 0.27),
    _impulse_noise,
  ),
  # Radius, and blur of the disk's edge.
  "defocus_blur": (
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    _defocus_blur,
  ),
  # Sigma, reach of the scatter, repetitions.
  "glass_blur": (
    ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    _glass_blur,
  ),
  # Radius and sigma.
  "motion_blur": (
    ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    _motion_blur,
  ),
  # Zooms from 1 to the first number, in steps of the second.
  "zoom_blur": (
    ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    _zoom_blur,
  ),
  # Mean and deviation of the noise, zoom, least value, radius and sigma of the
  # motion, share of the image that is kept.
  "snow": (
    (
      (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
      (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
      (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
      (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
      (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
      (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
      (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
      (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
      (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
      (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    _snow,
  ),
  # Weights of image and frost.
  "frost": (
    ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    _frost,
  ),
  # Thickness, and decay of the detail.
  "fog": (
    ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    _fog,
  ),
  "brightness": (
    (0.05, 0.1, 0.15, 0.2, 0.3),
    (0.1, 0.2, 0.3, 0.4, 0.5),
    _brightness,
  ),
  "contrast": (
    (0.75, 0.5, 0.4, 0.3, 0.15),
    (0.4, 0.3, 0.2, 0.1, 0.05),
    _contrast,
  ),
  # Displacement, its smoothness, and the affine jitter, as shares of the side
  # (the published script has 244 for 224).
  "elastic_transform": (
    (
      (0, 0, 0.08),
      (0.05, 0.2, 0.07),
      (0.08, 0.06, 0.06),
      (0.1, 0.04, 0.05),
      (0.1, 0.03, 0.03),
    ),
    tuple(
      tuple(244 / 224 * each for each in c)
      for c in (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
      )
    ),
    _elastic,
  ),
  "pixelate": (
    (0.95, 0.9, 0.85, 0.75, 0.65),
    (0.6, 0.5, 0.4, 0.3, 0.25),
    _pixelate,
  ),
  "jpeg_compression": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7), _jpeg),
}
