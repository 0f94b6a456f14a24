"""Augmentation on the device: flip, color jitter, grey, blur.

uint8 crops and keys in, floats out, inside the training step. Each crop draws
its own parameters. Order and values are SwAV's: flip 1/2, then with probability
0.8 brightness, contrast, saturation and hue in random order, then grey 0.2,
then blur 0.5.

Inside, colors come first (`x_3xHxW`): arithmetic on three planes has long rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

# ITU-R 601 luma, as PIL converts to grey.
_LUMA_3 = (0.299, 0.587, 0.114)
_MIN_BLUR_SIGMA, _MAX_BLUR_SIGMA = 0.1, 2.0
_BLUR_RADIUS = int(3 * _MAX_BLUR_SIGMA)


class Drawn(NamedTuple):
  """The random parameters of one crop."""

  flip: jax.Array
  jitter: jax.Array
  factor_3: jax.Array  # Of brightness, contrast and saturation.
  # The order of these three, 0 for brightness and so on, and how many of them
  # come before hue.
  order_3: jax.Array
  before_hue: jax.Array
  turn: jax.Array  # Of the hue circle; 1 is once around.
  grey: jax.Array
  blur: jax.Array
  sigma: jax.Array  # Pixels.


def augment(
  crops_NxHxWx3: jax.Array,
  keys_N: jax.Array,
  options: ml_collections.ConfigDict,
) -> jax.Array:
  """Randomly augments uint8 crops; float32 in [0, 1], not yet normalized.

  Each crop uses its own key: the result does not depend on the other crops, up
  to rounding. Under `jax.set_mesh` rows stay on their devices.
  """
  drawn_N = jax.vmap(functools.partial(draw, options=options))(keys_N)
  one = functools.partial(apply, options=options)
  return on_each_shard(
    functools.partial(one_by_one_on_cpu, one), crops_NxHxWx3, drawn_N
  )


def draw(key: jax.Array, options: ml_collections.ConfigDict) -> Drawn:
  """The parameters of one crop.

  Hue, which is expensive, is applied once, at a random position among the other
  three in their random order: each of the 24 orders is equally likely.
  """
  flip, jitter, grey, blur = jax.random.split(key, 4)
  chance, factors, order, position, hue = jax.random.split(jitter, 5)
  reach_3 = options.strength * jnp.array(
    [options.brightness, options.contrast, options.saturation]
  )
  most_hue = options.strength * options.hue
  blur_chance, spread = jax.random.split(blur)
  return Drawn(
    flip=jax.random.bernoulli(flip, options.flip),
    jitter=jax.random.bernoulli(chance, options.jitter),
    factor_3=jax.random.uniform(
      factors, (3,), minval=jnp.maximum(1 - reach_3, 0), maxval=1 + reach_3
    ),
    order_3=jax.random.permutation(order, 3),
    before_hue=jax.random.randint(position, (), 0, 4),
    turn=jax.random.uniform(hue, (), minval=-most_hue, maxval=most_hue),
    grey=jax.random.bernoulli(grey, options.grey),
    blur=jax.random.bernoulli(blur_chance, options.blur),
    sigma=jax.random.uniform(
      spread, (), minval=_MIN_BLUR_SIGMA, maxval=_MAX_BLUR_SIGMA
    ),
  )


def apply(
  crop_HxWx3: jax.Array, drawn: Drawn, options: ml_collections.ConfigDict
) -> jax.Array:
  """Augments a uint8 crop as drawn; float32 in [0, 1].

  An operation whose probability is 0 is left out of the program.
  """
  x_3xHxW = to_float(jnp.moveaxis(crop_HxWx3, -1, 0))
  if options.flip:
    x_3xHxW = _when(drawn.flip, lambda x: x[..., ::-1], x_3xHxW)
  if options.jitter:
    x_3xHxW = _when(drawn.jitter, lambda x: _jitter(x, drawn, options), x_3xHxW)
  if options.grey:
    x_3xHxW = _when(
      drawn.grey, lambda x: jnp.broadcast_to(_luma(x), x.shape), x_3xHxW
    )
  if options.blur:
    x_3xHxW = _when(
      drawn.blur, lambda x: gaussian_blur(x, drawn.sigma), x_3xHxW
    )
  return jnp.moveaxis(x_3xHxW, 0, -1)


def to_float(pixels: jax.Array) -> jax.Array:
  """uint8 in 0..255 to float32 in 0..1."""
  return pixels.astype(jnp.float32) / 255


def on_each_shard(
  fn: Callable[[jax.Array, Any], jax.Array], crops: jax.Array, drawn: Any
) -> jax.Array:
  """Runs `fn` on each device's own rows of the mesh of `jax.set_mesh`.

  The partitioner would gather all rows for a loop over them.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(name for name, size in mesh.shape.items() if size > 1)
  if not axes:
    return fn(crops, drawn)
  return jax.shard_map(
    fn, in_specs=jax.P(axes), out_specs=jax.P(axes), check_vma=False
  )(crops, drawn)


def one_by_one_on_cpu(
  one: Callable[[jax.Array, Any], jax.Array], crops: jax.Array, drawn: Any
) -> jax.Array:
  """Maps a function over crops: in a loop on CPUs, vectorized elsewhere.

  The loop skips operations that were not drawn; the vectorized form computes
  both outcomes of each.
  """
  return jax.lax.platform_dependent(
    crops,
    drawn,
    cpu=lambda crops, drawn: jax.lax.map(lambda x: one(*x), (crops, drawn)),
    default=jax.vmap(one),
  )


def _when(chance: jax.Array, fn: Callable, x: jax.Array) -> jax.Array:
  return jax.lax.cond(chance, fn, lambda x: x, x)


def _luma(x_3xHxW):
  red, green, blue = (
    share * x_HxW for share, x_HxW in zip(_LUMA_3, x_3xHxW, strict=True)
  )
  return red + green + blue


def _jitter(x_3xHxW, drawn, options):
  """Brightness, contrast, saturation and hue, in the order drawn."""

  def blend(x_3xHxW, slot):
    op = drawn.order_3[slot]
    adjust = (adjust_brightness, adjust_contrast, adjust_saturation)
    return jax.lax.switch(op, adjust, x_3xHxW, drawn.factor_3[op])

  for slot in range(3):
    x_3xHxW = _when(
      slot < drawn.before_hue, functools.partial(blend, slot=slot), x_3xHxW
    )
  if options.hue:
    x_3xHxW = shift_hue(x_3xHxW, drawn.turn)
  for slot in range(3):
    x_3xHxW = _when(
      slot >= drawn.before_hue, functools.partial(blend, slot=slot), x_3xHxW
    )
  return x_3xHxW


def adjust_brightness(x_3xHxW: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends with black; factor 1 changes nothing."""
  return jnp.clip(x_3xHxW * factor, 0, 1)


def adjust_contrast(x_3xHxW: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends with the image's mean grey; factor 1 changes nothing."""
  mean = jnp.mean(_luma(x_3xHxW))
  return jnp.clip(mean + (x_3xHxW - mean) * factor, 0, 1)


def adjust_saturation(x_3xHxW: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends each pixel with its own grey; factor 1 changes nothing."""
  grey = _luma(x_3xHxW)
  return jnp.clip(grey + (x_3xHxW - grey) * factor, 0, 1)


def shift_hue(x_3xHxW: jax.Array, turn: jax.Array) -> jax.Array:
  """Rotates the hue by `turn` (1 is a full circle), through HSV."""
  r, g, b = x_3xHxW
  value = jnp.maximum(jnp.maximum(r, g), b)
  chroma = value - jnp.minimum(jnp.minimum(r, g), b)
  scale = 1 / jnp.where(chroma > 0, chroma, 1)
  sextant = jnp.where(
    value == r,
    (g - b) * scale,
    jnp.where(value == g, 2 + (b - r) * scale, 4 + (r - g) * scale),
  )
  # Each channel is the value minus the chroma times a trapezoid of the hue.
  k_3xHxW = jnp.array([5.0, 3.0, 1.0])[:, None, None] + (sextant + 6 * turn)
  k_3xHxW = k_3xHxW - 6 * jnp.floor(k_3xHxW / 6)
  dip_3xHxW = jnp.clip(jnp.minimum(k_3xHxW, 4 - k_3xHxW), 0, 1)
  return value - chroma * dip_3xHxW


def gaussian_blur(x_3xHxW: jax.Array, sigma: jax.Array) -> jax.Array:
  """Separable Gaussian of `sigma` pixels (at most 2), edges repeated."""
  offsets = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  taps = jax.nn.softmax(-0.5 * jnp.square(offsets / sigma))
  for axis in (1, 2):
    size = x_3xHxW.shape[axis]
    pad = [(0, 0)] * 3
    pad[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
    padded = jnp.pad(x_3xHxW, pad, mode="edge")
    x_3xHxW = sum(
      tap * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i, tap in enumerate(taps)
    )
  return x_3xHxW
