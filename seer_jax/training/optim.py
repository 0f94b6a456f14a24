"""SEER's optimizers and schedules.

SEER used SGD with LARC: each tensor's gradient is rescaled to a fixed fraction
(`trust`) of the tensor's norm, then come momentum and the learning rate. Biases
and BatchNorm parameters are treated like the rest; only tensors that are
exactly zero are not rescaled.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from seer_jax.config import batch
from seer_jax.runtime import mesh
from seer_jax.tasks import base

# Maps a step on the device, or a number: then NumPy computes it, without the
# device.
Schedule = Callable[[jax.Array | int], jax.Array | np.ndarray]


def warmup_cosine(
  peak: float, total_steps: int, warmup_steps: float, start: float, end: float
) -> Schedule:
  """Linear warm-up from `start` to `peak`, then a cosine to `end`.

  The cosine is a function of progress in the whole run, warm-up included, as in
  SEER's scheduler, so the rate drops to the cosine's value after the warm-up.
  Step 0 has `start`; no step has `end` itself.
  """

  def schedule(step):
    lib = _library(step)
    step = lib.asarray(step, lib.float32)
    warm = start + (peak - start) * step / max(warmup_steps, 1e-9)
    wave = (1 + lib.cos(lib.pi * step / total_steps)) / 2
    return lib.where(step < warmup_steps, warm, end + (peak - end) * wave)

  return schedule


def _library(step):
  return jnp if isinstance(step, jax.Array) else np


def steps_down(
  peak: float, total_steps: int, milestones: Sequence[float], factor: float
) -> Schedule:
  """`peak`, times `factor` from each milestone (shares of the run) on.

  VISSL's multistep schedule, which tolerates progress that rounding leaves 1e-6
  short of a milestone.
  """

  def schedule(step):
    lib = _library(step)
    progress = lib.asarray(step, lib.float32) / total_steps + 1e-6
    passed = lib.sum(progress >= lib.array(milestones))
    return peak * factor**passed

  return schedule


def add_decay(decay_of: Callable[[str], float]) -> optax.GradientTransformation:
  """Adds to each gradient its parameter times the decay of its path."""

  def update(grads, state, params):
    return jax.tree.map_with_path(
      lambda path, g, p: g + decay_of(mesh.path_of(path)) * p, grads, params
    ), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_larc(
  trust: float, decay_of: Callable[[str], float], epsilon: float = 1e-8
) -> optax.GradientTransformation:
  """Adds weight decay, then rescales each tensor to trust |p| / (|g| + wd |p|).

  LARC without clipping (You et al. 2017; NVIDIA apex, `clip=False`). A tensor
  whose value or gradient is exactly zero is passed on without decay, so frozen
  prototypes stay and fresh BatchNorm biases can leave zero.
  """

  def rescale(path, grad, param):
    weight_decay = decay_of(mesh.path_of(path))
    norm_p, norm_g = jnp.linalg.norm(param), jnp.linalg.norm(grad)
    ratio = trust * norm_p / (norm_g + weight_decay * norm_p + epsilon)
    scaled = ratio * (grad + weight_decay * param)
    return jnp.where((norm_p > 0) & (norm_g > 0), scaled, grad)

  def update(grads, state, params):
    return jax.tree.map_with_path(rescale, grads, params), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale_by_schedule(
  schedule: Schedule, factor_of: Callable[[str], Any]
) -> optax.GradientTransformationExtraArgs:
  """Multiplies by minus the rate at `step`, an argument of `update`.

  And by the factor of the parameter's path: a number, or an array along its
  first axis. The step is the run's: skipped updates count, as in SEER.
  """

  def update(updates, state, params=None, *, step, **others):
    del params, others
    rate = schedule(step)

    def scale(path, update):
      factor = factor_of(mesh.path_of(path))
      if jnp.ndim(factor):
        factor = factor.reshape(-1, *(1,) * (update.ndim - 1))
      return -rate * factor * update

    return jax.tree.map_with_path(scale, updates), state

  return optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )


def make(
  optim: ml_collections.ConfigDict,
  total_steps: int,
  batch_size: int,
  task: base.Task | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
  """The optimizer of a resolved config, and its schedule.

  Its `update` needs the run's `step` beside gradients, state and parameters.
  The task may set rates and decays of single parameters.
  """
  schedule = _schedule(optim, total_steps, batch.peak_rate(optim, batch_size))

  def decay_of(path):
    if _is_norm(path) and not optim.decay_norms:
      return 0.0
    if path.endswith("/bias") and not optim.decay_biases:
      return 0.0
    own = task.weight_decay(path) if task else None
    return optim.weight_decay if own is None else own

  rate = scale_by_schedule(schedule, task.rate if task else lambda path: 1.0)
  momentum = optax.trace(optim.momentum, nesterov=optim.nesterov)
  decay = add_decay(decay_of)
  chains = {
    "larc": (scale_by_larc(optim.trust, decay_of), momentum, rate),
    "lars": (
      decay,
      optax.scale_by_trust_ratio(trust_coefficient=optim.trust),
      rate,
      momentum,
    ),
    "sgd": (decay, momentum, rate),
    "adamw": (optax.scale_by_adam(), decay, rate),
  }
  tx = optax.chain(*chains[optim.name])
  if task and task.online_rate:
    sgd = optax.sgd(task.online_rate, momentum=0.9)
    tx = optax.partition({"main": tx, "online": sgd}, _groups)
  return tx, schedule


def _groups(params):
  return jax.tree.map_with_path(
    lambda path, _: (
      "online" if mesh.path_of(path).startswith("online/") else "main"
    ),
    params,
  )


def _schedule(optim, total_steps, peak):
  if optim.milestones:
    return steps_down(peak, total_steps, optim.milestones, optim.step_factor)
  return warmup_cosine(
    peak,
    total_steps,
    warmup_steps=optim.warmup_fraction * total_steps,
    start=peak * optim.warmup_start,
    end=peak * optim.end,
  )


def _is_norm(path):
  """Whether a parameter is a BatchNorm's scale or bias."""
  return bool(re.search(r"(^|/)bn\w*/|/(scale|shift)$", path))
