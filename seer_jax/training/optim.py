"""Optimisers and schedules, as SEER ran them.

SEER's optimiser is SGD with LARC: every tensor's gradient is rescaled to a
fixed fraction (`trust`) of the tensor's own norm, then momentum, then the
learning rate. Biases and BatchNorm parameters are decayed and rescaled like
the rest; only tensors that are exactly zero are left alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from seer_jax.config import batch

Schedule = Callable[[jax.Array], jax.Array]


def warmup_cosine(
  peak: float,
  total_steps: int,
  warmup_steps: float,
  start: float,
  end: float,
) -> Schedule:
  """Linear warm-up from `start` to `peak`, then a cosine towards `end`.

  The cosine is a function of progress through the whole run, not through what
  the warm-up left, as in SEER's scheduler: at the hand-over the rate drops to
  the cosine's value there. Step 0 gets `start`; no step gets `end` itself.
  """

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    warm = start + (peak - start) * step / max(warmup_steps, 1e-9)
    wave = (1 + jnp.cos(jnp.pi * step / total_steps)) / 2
    return jnp.where(step < warmup_steps, warm, end + (peak - end) * wave)

  return schedule


def scale_by_larc(
  trust: float, weight_decay: float, epsilon: float = 1e-8
) -> optax.GradientTransformation:
  """Adds weight decay, then rescales each tensor to trust |p| / (|g| + wd |p|).

  LARC without clipping (You et al. 2017; NVIDIA apex, `clip=False`). A tensor
  whose value or gradient is exactly zero passes unchanged, without decay: so
  frozen prototypes stay put and fresh BatchNorm biases can leave zero.
  """

  def rescale(grad, param):
    norm_p, norm_g = jnp.linalg.norm(param), jnp.linalg.norm(grad)
    ratio = trust * norm_p / (norm_g + weight_decay * norm_p + epsilon)
    scaled = ratio * (grad + weight_decay * param)
    return jnp.where((norm_p > 0) & (norm_g > 0), scaled, grad)

  def update(grads, state, params):
    return jax.tree.map(rescale, grads, params), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_schedule(
  schedule: Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Times minus the rate at `step`, an argument of `update`.

  The step is the run's: one whose update is skipped counts, as in SEER's runs.
  """

  def update(updates, state, params=None, *, step, **others):
    del params, others
    rate = schedule(step)
    return jax.tree.map(lambda u: -rate * u, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )


def make(
  optim: ml_collections.ConfigDict, total_steps: int, batch_size: int
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
  """The optimiser of a resolved config, and its schedule.

  Its `update` needs the run's `step` beside gradients, state and parameters.
  """
  peak = batch.peak_rate(optim, batch_size)
  schedule = warmup_cosine(
    peak,
    total_steps,
    warmup_steps=optim.warmup_fraction * total_steps,
    start=peak * optim.warmup_start,
    end=peak * optim.end,
  )
  decay, rate = optim.weight_decay, scale_by_schedule(schedule)
  momentum = optax.trace(optim.momentum)
  chains = {
    "larc": (scale_by_larc(optim.trust, decay), momentum, rate),
    "lars": (
      optax.add_decayed_weights(decay),
      optax.scale_by_trust_ratio(trust_coefficient=optim.trust),
      rate,
      momentum,
    ),
    "sgd": (optax.add_decayed_weights(decay), momentum, rate),
    "adamw": (optax.scale_by_adam(), optax.add_decayed_weights(decay), rate),
  }
  return optax.chain(*chains[optim.name]), schedule
