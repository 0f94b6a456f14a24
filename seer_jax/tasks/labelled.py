"""Common to tasks with labels: their view of a batch, targets, and loss."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from seer_jax.data import preprocessing
from seer_jax.tasks import augment, base, randaugment


class Labelled(base.Task):
  """A task whose batches are one crop per image, and labels."""

  METRICS = ("loss", "train/accuracy")

  def __init__(self, config: ml_collections.ConfigDict, dtype: Any):
    self.config, self.dtype = config, dtype

  def view(self, batch: dict[str, Any]) -> list[jax.Array]:
    """The crops, augmented and normalized, as Bx1xHxWx3."""
    options = self.config.augment
    keys_Bx2 = jax.vmap(jax.random.split)(batch["keys_B"])
    pixels = augment.augment(batch["crops"][0][:, 0], keys_Bx2[:, 0], options)
    pixels = randaugment.apply(
      pixels, keys_Bx2[:, 1], options.randaugment, options.magnitude
    )
    x = preprocessing.normalize(pixels, options.mean, options.std)
    return [x.astype(self.dtype)[:, None]]


def targets(
  labels_B: jax.Array, classes: int, smoothing: float = 0.0
) -> jax.Array:
  """Rows of probabilities, BxL; zeros for images without a label (-1)."""
  one_hot_BxL = jax.nn.one_hot(labels_B, classes)
  smooth_BxL = one_hot_BxL * (1 - smoothing) + smoothing / classes
  return jnp.where(labels_B[:, None] >= 0, smooth_BxL, 0)


def cross_entropy(logits: jax.Array, targets_BxL: jax.Array) -> jax.Array:
  """Mean over images of logits (..., B, L); (...)."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.mean(jnp.sum(targets_BxL * log_p, -1), -1)


def accuracy(logits: jax.Array, labels_B: jax.Array) -> jax.Array:
  """Share of images whose largest logit is that of their label; (...)."""
  return jnp.mean(jnp.argmax(logits, -1) == labels_B, -1)
