import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.config import keys as config_keys
from seer_jax.runtime import mesh
from seer_jax.tasks import augment


def pixels(*shape, seed=0):
  return np.random.default_rng(seed).random((*shape, 3), np.float32)


def planes(x_HxWx3):
  return jnp.moveaxis(jnp.asarray(x_HxWx3), -1, 0)


def interleaved(x_3xHxW):
  return np.moveaxis(np.asarray(x_3xHxW), 0, -1)


def test_hue_turns_as_in_colorsys():
  x = pixels(5, 4)
  turned = interleaved(augment.shift_hue(planes(x), 0.13))
  for before, after in zip(
    x.reshape(-1, 3), turned.reshape(-1, 3), strict=True
  ):
    h, s, v = colorsys.rgb_to_hsv(*before)
    np.testing.assert_allclose(
      after, colorsys.hsv_to_rgb((h + 0.13) % 1, s, v), atol=1e-5
    )


def test_grey_pixels_have_no_hue_to_turn():
  x = jnp.full((3, 2, 2), 0.4)
  np.testing.assert_allclose(augment.shift_hue(x, 0.3), x, atol=1e-6)


@pytest.mark.parametrize(
  "adjust",
  [
    augment.adjust_brightness,
    augment.adjust_contrast,
    augment.adjust_saturation,
  ],
)
def test_a_factor_of_one_changes_nothing(adjust):
  x = planes(pixels(4, 4))
  np.testing.assert_allclose(adjust(x, 1.0), x, atol=1e-6)


def test_a_factor_of_zero_is_black_mean_grey_and_grey():
  x = planes(pixels(4, 4))
  luma = interleaved(x) @ [0.299, 0.587, 0.114]
  assert not augment.adjust_brightness(x, 0.0).any()
  np.testing.assert_allclose(
    augment.adjust_contrast(x, 0.0), np.full((3, 4, 4), luma.mean()), atol=1e-5
  )
  np.testing.assert_allclose(
    augment.adjust_saturation(x, 0.0)[1], luma, atol=1e-5
  )


def test_blur_is_the_gaussian_with_repeated_edges():
  x, sigma = pixels(9, 7), 1.3
  offsets = np.arange(-6, 7)
  taps = np.exp(-0.5 * (offsets / sigma) ** 2)
  taps /= taps.sum()
  rows = np.stack(
    [
      sum(
        t * x[np.clip(i + o, 0, 8)] for o, t in zip(offsets, taps, strict=True)
      )
      for i in range(9)
    ]
  )
  wanted = np.stack(
    [
      sum(
        t * rows[:, np.clip(j + o, 0, 6)]
        for o, t in zip(offsets, taps, strict=True)
      )
      for j in range(7)
    ],
    axis=1,
  )
  np.testing.assert_allclose(
    interleaved(augment.gaussian_blur(planes(x), sigma)), wanted, atol=1e-5
  )


def test_crops_differ_by_key_and_repeat_with_it():
  x = (pixels(6, 16, 16) * 255).astype(np.uint8)
  options = config_keys.base().augment
  run = jax.jit(
    lambda key: augment.augment(x, jax.random.split(key, len(x)), options)
  )
  one, again = run(jax.random.key(0)), run(jax.random.key(0))
  other = run(jax.random.key(1))
  np.testing.assert_array_equal(one, again)
  assert (np.abs(one - other).max((1, 2, 3)) > 0).all()
  assert one.min() >= 0
  assert one.max() <= 1


def test_a_loop_over_crops_gives_what_all_at_once_give():
  x = (pixels(40, 16, 12) * 255).astype(np.uint8)
  options = config_keys.base().augment
  keys = jax.random.split(jax.random.key(0), len(x))
  drawn = jax.vmap(lambda key: augment.draw(key, options))(keys)
  together = jax.jit(jax.vmap(lambda x, d: augment.apply(x, d, options)))
  looped = jax.jit(lambda x, keys: augment.augment(x, keys, options))
  np.testing.assert_allclose(looped(x, keys), together(x, drawn), atol=1e-5)


def test_rows_stay_on_their_devices():
  here = mesh.make(8)
  x = (pixels(16, 8, 8) * 255).astype(np.uint8)
  options = config_keys.base().augment
  keys = jax.random.split(jax.random.key(0), len(x))
  run = jax.jit(lambda x, keys: augment.augment(x, keys, options))
  alone = run(x, keys)
  with jax.set_mesh(here):
    spread = jax.device_put((x, keys), mesh.rows(here))
    compiled = run.lower(*spread).compile()
    done = compiled(*spread)
  assert "all-gather" not in compiled.as_text()
  assert done.sharding.is_equivalent_to(mesh.rows(here), done.ndim)
  np.testing.assert_allclose(done, alone, atol=1e-6)


def test_operations_happen_as_often_as_their_probabilities():
  x = (np.tile(pixels(1, 4, 4), (4000, 1, 1, 1)) * 255).astype(np.uint8)
  options = config_keys.base().augment
  options.jitter = options.blur = 0.0
  done = augment.augment(
    x, jax.random.split(jax.random.key(0), len(x)), options
  )
  grey = np.ptp(np.asarray(done), axis=-1).max((1, 2)) < 1e-6
  # The two columns' order tells the flip.
  plain = np.asarray(x, np.float32)[0] / 255
  flipped = [
    np.allclose(row, plain[:, ::-1], atol=1e-6)
    for row in np.asarray(done)[~grey]
  ]
  assert grey.mean() == pytest.approx(0.2, abs=0.03)
  assert np.mean(flipped) == pytest.approx(0.5, abs=0.03)


def test_nothing_happens_at_probability_zero():
  x = (pixels(2, 4, 4) * 255).astype(np.uint8)
  options = config_keys.base().augment
  options.flip = options.jitter = options.grey = options.blur = 0.0
  np.testing.assert_allclose(
    augment.augment(x, jax.random.split(jax.random.key(0), len(x)), options),
    x / np.float32(255),
  )
