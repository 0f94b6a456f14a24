"""Batch normalization over the global batch, and what usually follows it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from seer_jax.models import cpu_kernels


class BatchNorm(nn.Module):
  """Batch normalization over the rows of the global batch, in float32.

  Under `jit` the mean over rows is the mean over all devices' rows, which
  PyTorch calls SyncBN. `groups` > 1 normalizes runs of neighbouring rows
  separately, as SEER's SyncBN groups did. Running statistics follow PyTorch:
  the unbiased variance, decay 0.9.
  """

  groups: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5
  affine: bool = True

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    train: bool,
    add: jax.Array | None = None,
    relu: bool = False,
  ) -> jax.Array:
    """Normalizes; then adds `add`, if given; then applies the ReLU."""
    channels = x.shape[-1]
    scale, bias = 1.0, 0.0
    if self.affine:
      scale = self.param("scale", nn.initializers.ones, (channels,))
      bias = self.param("bias", nn.initializers.zeros, (channels,))
    mean_C = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    var_C = self.variable("batch_stats", "var", jnp.ones, (channels,))
    mean, var = mean_C.value, var_C.value
    whole = train and self.groups == 1 and self.affine
    if whole and cpu_kernels.can_normalize(x):
      y, mean, var = cpu_kernels.batch_norm(
        x, mean, scale, bias, add, relu, self.epsilon
      )
      self._keep(mean_C, var_C, mean, var, y.size // channels)
      return y
    y = x.astype(jnp.float32)
    if train:
      # A single group keeps its shape: compilers handle the reshape badly.
      if self.groups > 1:
        y = y.reshape(self.groups, -1, *x.shape[1:])
      parts = int(self.groups > 1)
      mean, var = _moments(y, tuple(range(parts, y.ndim - 1)), around_C=mean)
      self._keep(mean_C, var_C, mean, var, y.size // mean.size)
    # One multiplication and addition per element; the rest is per channel.
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    y = y * factor + (bias - mean * factor)
    y = y.astype(x.dtype).reshape(x.shape)
    y = y if add is None else add + y
    return nn.relu(y) if relu else y

  def _keep(self, mean_C, var_C, mean, var, count):
    """Moves the running statistics towards those of `count` rows."""
    if not self.is_initializing():
      self._update(mean_C, mean)
      self._update(var_C, var * count / max(count - 1, 1))

  def _update(self, running_C, batch):
    batch_C = jnp.mean(batch.reshape(-1, batch.shape[-1]), axis=0)
    running_C.value = (
      self.momentum * running_C.value + (1 - self.momentum) * batch_C
    )


def _moments(y, axes, around_C):
  """Mean and variance over `axes`, kept as axes of size one.

  One pass over the data, around the running mean: E[y^2] - E[y]^2 would cancel
  if the mean is large.
  """
  around_C = jax.lax.stop_gradient(around_C)
  shifted = y - around_C
  mean = jnp.mean(shifted, axes, keepdims=True)
  square = jnp.mean(jnp.square(shifted), axes, keepdims=True)
  return mean + around_C, jnp.maximum(square - jnp.square(mean), 0)
