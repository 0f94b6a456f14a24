"""The training step: gradient, update, window of metrics. No I/O."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from seer_jax import state, tasks

Step = Callable[[state.State, Any], tuple[state.State, Any]]


def init(
  task: tasks.SwAV, tx: optax.GradientTransformation, seed: int
) -> state.State:
  """The state before the first step; trace it for shapes, jit it for arrays."""
  params, batch_stats, extra = task.init(state.key_of(seed, "params"))
  return state.State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(params),
    extra=extra,
    window=_empty_window(task),
  )


def train_step(
  task: tasks.SwAV,
  tx: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
) -> Step:
  """(state, batch) -> (state, window), to be jitted with the state donated.

  The window is the sum of each metric over the steps since the last multiple
  of `config.log.every`, and `steps`, their number.
  """

  def step(now, batch):
    key = state.key_of(config.seed, "augment", now.step)
    value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
    (_, aux), grads = value_and_grad(now.params, now, batch, key)
    grads = jax.tree.map_with_path(
      lambda path, g: jnp.where(
        task.trainable(
          jax.tree_util.keystr(path, simple=True, separator="/"), now.step
        ),
        g,
        0,
      ),
      grads,
    )
    with jax.named_scope("update"):
      updates, opt_state = tx.update(grads, now.opt_state, now.params)
      params = task.project(optax.apply_updates(now.params, updates))
    metrics = aux.metrics | {
      "grad_norm": optax.tree.norm(grads),
      "stand_ins": jnp.sum(batch["stand_ins"]),
      "steps": jnp.float32(1),
    }
    fresh = now.step % config.log.every == 0
    window = jax.tree.map(
      lambda total, new: jnp.where(fresh, 0, total) + new, now.window, metrics
    )
    after = now.replace(
      step=now.step + 1,
      params=params,
      batch_stats=aux.batch_stats,
      opt_state=opt_state,
      extra=aux.extra,
      window=window,
    )
    return after, window

  return step


def _empty_window(task):
  scalars = ("loss", "loss_over_lnk", "grad_norm", "stand_ins", "steps")
  window = {name: jnp.zeros(()) for name in scalars}
  return window | {"usage_K": jnp.zeros(task.model.prototype_counts[0])}
