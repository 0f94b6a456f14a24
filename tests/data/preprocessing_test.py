"""One normalisation: of NumPy and JAX, of weights and of training."""

import jax
import jax.numpy as jnp
import numpy as np
import ten_steps

from seer_jax.data import preprocessing
from seer_jax.tasks import swav


def test_numpy_and_jax_normalise_alike():
  pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
  prepared = preprocessing.Preprocessing()
  here = prepared.normalize(pixels)
  there = prepared.normalize(jnp.asarray(pixels).astype(jnp.float32))
  assert here.dtype == there.dtype == np.float32
  np.testing.assert_allclose(here, there, atol=1e-6)  # XLA multiplies.
  scaled = jnp.asarray(pixels) / np.float32(255)
  np.testing.assert_array_equal(
    there, preprocessing.normalize(scaled, prepared.mean, prepared.std)
  )
  grey = (0.5 - 0.485) / 0.229
  middle = prepared.normalize(np.full((1, 1, 3), 127.5, np.float32))
  np.testing.assert_allclose(middle[0, 0, 0], grey, rtol=1e-5)


def test_views_of_training_are_normalised_in_the_dtype_of_the_trunk():
  config = ten_steps.make_config("one-head", precision="fp16")
  for name in ("flip", "jitter", "grey", "blur"):
    config.augment[name] = 0.0
  task = swav.SwAV(config, jnp.dtype(jnp.float16))
  crops = np.full((2, 2, 8, 8, 3), 100, np.uint8)
  batch = {"crops": (crops,), "keys_B": jax.random.split(jax.random.key(0), 2)}
  (view,) = task.view(batch)
  assert view.dtype == jnp.float16
  np.testing.assert_array_equal(
    view, task.encoder.preprocessing.normalize(crops).astype(np.float16)
  )
