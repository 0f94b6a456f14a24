"""RandAugment on the device (Cubuk et al. 2020): N random operations per image.

Operations and strengths are the paper's, in timm's form: a magnitude from 0 to
10, where stronger always means further from the original. Pixels are `x_3xHxW`,
float32 in [0, 1], as in `augment.py`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from seer_jax.tasks import augment

# Fills what a warped image leaves free: grey, which normalizes to about zero.
_FILL = 0.5


def apply(
  pixels_NxHxWx3: jax.Array, keys_N: jax.Array, count: int, magnitude: float
) -> jax.Array:
  """Applies `count` random operations, drawn for each image by its key.

  Args:
    pixels_NxHxWx3: floats in [0, 1].
    keys_N: of the images.
    count: N of the paper; 0 changes nothing.
    magnitude: M, from 0 to 10.
  """
  if not count:
    return pixels_NxHxWx3

  def one(pixels_HxWx3, key):
    x_3xHxW = jnp.moveaxis(pixels_HxWx3, -1, 0)
    for each in jax.random.split(key, count):
      which, sign = jax.random.split(each)
      index = jax.random.randint(which, (), 0, len(OPERATIONS))
      # +1 or -1: to the left or the right, darker or brighter.
      sign = 2.0 * jax.random.bernoulli(sign) - 1
      branches = [
        functools.partial(operation, level=magnitude / 10)
        for operation in OPERATIONS
      ]
      x_3xHxW = jax.lax.switch(index, branches, x_3xHxW, sign)
    return jnp.moveaxis(x_3xHxW, 0, -1)

  return augment.on_each_shard(
    functools.partial(augment.one_by_one_on_cpu, one), pixels_NxHxWx3, keys_N
  )


def identity(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Changes nothing."""
  del sign, level
  return x_3xHxW


def auto_contrast(
  x_3xHxW: jax.Array, sign: jax.Array, level: float
) -> jax.Array:
  """Stretches each channel to the whole range."""
  del sign, level
  low = jnp.min(x_3xHxW, (1, 2), keepdims=True)
  width = jnp.max(x_3xHxW, (1, 2), keepdims=True) - low
  stretched = (x_3xHxW - low) / jnp.where(width > 0, width, 1)
  return jnp.where(width > 0, stretched, x_3xHxW)


def equalize(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Makes the histogram of each channel flat, as PIL does."""
  del sign, level

  def channel(x_HxW):
    pixels_HxW = jnp.round(x_HxW * 255).astype(jnp.int32)
    counts_256 = jnp.bincount(pixels_HxW.ravel(), length=256)
    last = jnp.max(jnp.where(counts_256 > 0, jnp.arange(256), 0))
    step = (pixels_HxW.size - counts_256[last]) // 255
    before_256 = jnp.cumsum(counts_256) - counts_256
    table_256 = (before_256 + step // 2) // jnp.maximum(step, 1)
    table_256 = jnp.where(step > 0, table_256, jnp.arange(256))
    return jnp.clip(table_256, 0, 255)[pixels_HxW] / 255.0

  return jnp.stack([channel(x_HxW) for x_HxW in x_3xHxW])


def rotate(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Rotates by up to 30 degrees."""
  angle = sign * jnp.deg2rad(30.0) * level
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return _warp(x_3xHxW, ((cos, sin), (-sin, cos)))


def solarize(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Inverts pixels above a threshold, which falls to 0."""
  del sign
  return jnp.where(x_3xHxW < 1 - level, x_3xHxW, 1 - x_3xHxW)


def posterize(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Keeps 4 bits per channel, down to none."""
  del sign
  step = 2 ** (8 - (4 - int(4 * level)))
  return jnp.floor(jnp.round(x_3xHxW * 255) / step) * step / 255


def color(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Less or more saturation."""
  return augment.adjust_saturation(x_3xHxW, _factor(sign, level))


def contrast(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Less or more contrast."""
  return augment.adjust_contrast(x_3xHxW, _factor(sign, level))


def brightness(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Darker or brighter."""
  return augment.adjust_brightness(x_3xHxW, _factor(sign, level))


def sharpness(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Blurs or sharpens; the outermost pixels stay, as in PIL."""
  weights_3x3 = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  height, width = x_3xHxW.shape[1:]
  smooth = sum(
    weights_3x3[row, column]
    * x_3xHxW[:, row : row + height - 2, column : column + width - 2]
    for row in range(3)
    for column in range(3)
  )
  smooth = x_3xHxW.at[:, 1:-1, 1:-1].set(smooth)
  factor = _factor(sign, level)
  return jnp.clip(smooth + (x_3xHxW - smooth) * factor, 0, 1)


def shear_x(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Shifts rows by up to 0.3 of their distance from the centre."""
  return _warp(x_3xHxW, ((1, 0), (sign * 0.3 * level, 1)))


def shear_y(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Shifts columns by up to 0.3 of their distance from the centre."""
  return _warp(x_3xHxW, ((1, sign * 0.3 * level), (0, 1)))


def translate_x(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Shifts by up to 0.45 of the width."""
  return _warp(x_3xHxW, ((1, 0), (0, 1)), (0, sign * 0.45 * level))


def translate_y(x_3xHxW: jax.Array, sign: jax.Array, level: float) -> jax.Array:
  """Shifts by up to 0.45 of the height."""
  return _warp(x_3xHxW, ((1, 0), (0, 1)), (sign * 0.45 * level, 0))


OPERATIONS: tuple[Callable[..., jax.Array], ...] = (
  *(identity, auto_contrast, equalize, rotate, solarize, color, posterize),
  *(contrast, brightness, sharpness, shear_x, shear_y),
  *(translate_x, translate_y),
)


def _factor(sign, level):
  """The factor of a blend: 1 is the original; from 0.1 to 1.9."""
  return 1 + sign * 0.9 * level


def _warp(x_3xHxW, matrix, shift=(0, 0)):
  """Samples each pixel at a position given by a matrix around the center.

  `matrix` and `shift` are in (row, column) order; a shift is relative to the
  side.
  """
  height, width = x_3xHxW.shape[1:]
  row_HxW, column_HxW = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2,
    jnp.arange(width) - (width - 1) / 2,
    indexing="ij",
  )
  (row_row, column_row), (row_column, column_column) = matrix
  from_row = row_row * row_HxW + column_row * column_HxW
  from_column = row_column * row_HxW + column_column * column_HxW
  at = [
    from_row + shift[0] * height + (height - 1) / 2,
    from_column + shift[1] * width + (width - 1) / 2,
  ]
  return jnp.stack(
    [
      ndimage.map_coordinates(x_HxW, at, order=1, mode="constant", cval=_FILL)
      for x_HxW in x_3xHxW
    ]
  )
