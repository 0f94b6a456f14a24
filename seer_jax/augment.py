"""Device pixels: flip, colour jitter, grey, blur, normalise.

uint8 crops and keys in, floats out, inside the training step. Each crop draws
its own parameters. Order and values are SwAV's: flip 1/2, then with
probability 0.8 brightness, contrast, saturation and hue in random order, then
grey 0.2, then blur 0.5.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections

# ITU-R 601 luma, as PIL converts to grey.
_LUMA_3 = (0.299, 0.587, 0.114)
_MAX_BLUR_SIGMA = 2.0
_BLUR_RADIUS = int(3 * _MAX_BLUR_SIGMA)


def augment(
  crops_NxHxWx3: jax.Array,
  keys_N: jax.Array,
  options: ml_collections.ConfigDict,
) -> jax.Array:
  """Randomly augments uint8 crops; float32 in [0, 1], not yet normalised.

  Each crop by its own key: the outcome is the same in whatever company.
  """
  one = functools.partial(_augment_one, options=options)
  return jax.vmap(one)(to_float(crops_NxHxWx3), keys_N)


def to_float(pixels: jax.Array) -> jax.Array:
  """uint8 0..255 to float32 0..1."""
  return pixels.astype(jnp.float32) / 255


def normalize(
  pixels: jax.Array, options: ml_collections.ConfigDict, dtype: jnp.dtype
) -> jax.Array:
  """Pixels in [0, 1] to zero mean and unit variance, in the trunk's dtype."""
  mean_3, std_3 = jnp.array(options.mean), jnp.array(options.std)
  return ((pixels - mean_3) / std_3).astype(dtype)


def _augment_one(x_HxWx3, key, *, options):
  flip, jitter, grey, blur = jax.random.split(key, 4)
  if options.flip:
    x_HxWx3 = jnp.where(
      jax.random.bernoulli(flip, options.flip), x_HxWx3[:, ::-1], x_HxWx3
    )
  if options.jitter:
    x_HxWx3 = _jitter(x_HxWx3, jitter, options)
  if options.grey:
    x_HxWx3 = jnp.where(
      jax.random.bernoulli(grey, options.grey), _luma(x_HxWx3), x_HxWx3
    )
  if options.blur:
    x_HxWx3 = _blur(x_HxWx3, blur, options)
  return x_HxWx3


def _luma(x_HxWx3):
  return jnp.sum(x_HxWx3 * jnp.array(_LUMA_3), -1, keepdims=True)


def _jitter(x_HxWx3, key, options):
  """Brightness, contrast, saturation and hue, in random order.

  The first three blend with a target (black, the mean grey, the pixel's grey)
  and are cheap; hue is not. So the three take a random order, and hue, applied
  once, a random place among them: each of the 24 orders is equally likely.
  """
  chance, factors, order, place, hue = jax.random.split(key, 5)
  reach_3 = jnp.array(
    [options.brightness, options.contrast, options.saturation]
  )
  factor_3 = jax.random.uniform(
    factors, (3,), minval=jnp.maximum(1 - reach_3, 0), maxval=1 + reach_3
  )
  order_3 = jax.random.permutation(order, 3)
  hue_place = jax.random.randint(place, (), 0, 4)
  turn = jax.random.uniform(hue, (), minval=-options.hue, maxval=options.hue)

  y = x_HxWx3
  for slot in range(3):
    y = jnp.where(slot < hue_place, _blend(y, order_3[slot], factor_3), y)
  if options.hue:
    y = shift_hue(y, turn)
  for slot in range(3):
    y = jnp.where(slot < hue_place, y, _blend(y, order_3[slot], factor_3))
  return jnp.where(jax.random.bernoulli(chance, options.jitter), y, x_HxWx3)


def _blend(x_HxWx3, op, factor_3):
  adjust = (adjust_brightness, adjust_contrast, adjust_saturation)
  return jnp.select(
    [op == i for i in range(3)],
    [fn(x_HxWx3, factor_3[i]) for i, fn in enumerate(adjust)],
  )


def adjust_brightness(x_HxWx3: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends with black; factor 1 changes nothing."""
  return jnp.clip(x_HxWx3 * factor, 0, 1)


def adjust_contrast(x_HxWx3: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends with the image's mean grey; factor 1 changes nothing."""
  mean = jnp.mean(_luma(x_HxWx3))
  return jnp.clip(mean + (x_HxWx3 - mean) * factor, 0, 1)


def adjust_saturation(x_HxWx3: jax.Array, factor: jax.Array) -> jax.Array:
  """Blends each pixel with its own grey; factor 1 changes nothing."""
  grey = _luma(x_HxWx3)
  return jnp.clip(grey + (x_HxWx3 - grey) * factor, 0, 1)


def shift_hue(x_HxWx3: jax.Array, turn: jax.Array) -> jax.Array:
  """Turns the hue circle by `turn` (1 is once around), through HSV."""
  r, g, b = x_HxWx3[..., 0], x_HxWx3[..., 1], x_HxWx3[..., 2]
  value = jnp.max(x_HxWx3, -1)
  chroma = value - jnp.min(x_HxWx3, -1)
  safe = jnp.where(chroma > 0, chroma, 1)
  sextant = jnp.select(
    [value == r, value == g],
    [(g - b) / safe, 2 + (b - r) / safe],
    4 + (r - g) / safe,
  )
  sextant_1 = (jnp.where(chroma > 0, sextant, 0) + 6 * turn)[..., None]
  # Each channel is the value less the chroma times a trapezium of the hue.
  k_3 = jnp.mod(jnp.array([5.0, 3.0, 1.0]) + sextant_1, 6)
  dip_3 = jnp.clip(jnp.minimum(k_3, 4 - k_3), 0, 1)
  return value[..., None] - chroma[..., None] * dip_3


def _blur(x_HxWx3, key, options):
  chance, spread = jax.random.split(key)
  sigma = jax.random.uniform(spread, (), minval=0.1, maxval=_MAX_BLUR_SIGMA)
  blurred = gaussian_blur(x_HxWx3, sigma)
  return jnp.where(jax.random.bernoulli(chance, options.blur), blurred, x_HxWx3)


def gaussian_blur(x_HxWx3: jax.Array, sigma: jax.Array) -> jax.Array:
  """Separable Gaussian of `sigma` pixels (at most 2), edges repeated."""
  offsets = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  taps = jax.nn.softmax(-0.5 * jnp.square(offsets / sigma))
  for axis in (0, 1):
    size = x_HxWx3.shape[axis]
    pad = [(0, 0)] * 3
    pad[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
    padded = jnp.pad(x_HxWx3, pad, mode="edge")
    x_HxWx3 = sum(
      tap * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i, tap in enumerate(taps)
    )
  return x_HxWx3
