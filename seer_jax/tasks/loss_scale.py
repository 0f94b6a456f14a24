"""Dynamic loss scaling, for gradients in float16.

Small gradients vanish in float16 and large ones overflow. So the loss is
multiplied by a scale before it is differentiated, and the gradients are divided
by it, in float32. An overflow halves the scale, and that step is skipped; a
long run of good steps doubles it (Micikevicius et al. 2018, section 3.2).
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class LossScale:
  """Attributes: the scale, and the good steps since it last changed."""

  scale: jax.Array
  good: jax.Array


def initial(precision: str, first: float) -> LossScale | None:
  """`first` for fp16; None where gradients need no scale."""
  if precision != "fp16":
    return None
  return LossScale(jnp.float32(first), jnp.zeros((), jnp.int32))


def factor(loss_scale: LossScale | None) -> jax.Array | float:
  """What the loss is multiplied by."""
  return 1.0 if loss_scale is None else loss_scale.scale


def before_overflow(loss_scale: LossScale | None) -> LossScale | None:
  """What `adjust` made this of, when the one before overflowed as well."""
  if loss_scale is None:
    return None
  return LossScale(loss_scale.scale * 2, jnp.zeros((), jnp.int32))


def adjust(
  loss_scale: LossScale | None, good: jax.Array, growth_steps: int
) -> LossScale | None:
  """The scale after a step whose gradients were all finite, or not (`good`)."""
  if loss_scale is None:
    return None
  run = jnp.where(good, loss_scale.good + 1, 0)
  grown = jnp.where(run >= growth_steps, 2.0, 1.0)
  # float32 holds scales far beyond any use; stay finite anyway.
  scale = jnp.minimum(
    loss_scale.scale * jnp.where(good, grown, 0.5), jnp.float32(2.0**60)
  )
  return LossScale(scale, jnp.where(run >= growth_steps, 0, run))
