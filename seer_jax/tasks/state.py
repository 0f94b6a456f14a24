"""State: everything a run consists of, as arrays."""

import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class State:
  """What a checkpoint holds of the network and its optimization."""

  step: jax.Array  # Batches seen so far.
  params: Any  # Of trunk, head and prototypes.
  batch_stats: Any  # BatchNorm's running statistics.
  opt_state: Any  # Of the optax chain.
  extra: Any  # What the task keeps between steps (SwAV: its queue).
  loss_scale: Any  # A `loss_scale.LossScale` in fp16, else None.
  # How many steps in a row, up to this, were not finite.
  nonfinite_steps: jax.Array
  # Sums of metrics since the last logged step; part of the state so that a
  # resumed run logs the very same numbers.
  window: Any

  @property
  def variables(self) -> dict[str, Any]:
    """What an encoder is applied with."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def key_of(seed: int, name: str, step: jax.Array | int = 0) -> jax.Array:
  """The key of one use (`name`) at one step; the same whenever asked for."""
  stream = zlib.crc32(name.encode())
  key = jax.random.fold_in(jax.random.key(seed), jnp.uint32(stream))
  return jax.random.fold_in(key, step)
