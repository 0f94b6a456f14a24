"""The training step: gradient, update, window of metrics. No I/O."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, state
from seer_jax.training import loss_scale

Step = Callable[[state.State, Any], tuple[state.State, Any]]


class Programs(NamedTuple):
  """The jitted functions of a run, and what they pass on.

  Attributes:
    init: () -> State, born where it belongs.
    step: (State, batch) -> (State, window); the old state is given up.
    abstract: the State as shapes, dtypes and shardings.
    natural: the same without padding, as the layers see it.
  """

  init: Callable[[], state.State]
  step: Step
  abstract: state.State
  natural: state.State


def build(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> Programs:
  """Jits a run's functions for a mesh, to be called under `jax.set_mesh`."""
  natural = jax.eval_shape(lambda: init(task, tx, config))
  abstract = mesh_lib.layout(natural, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  # Triton's matrix products crash the compiler on Ampere and newer (jax 0.10,
  # RG-10B at 160 px: "triton_tiling_propagation.cc: Check failed"); cuBLAS's
  # do not.
  platform = mesh.devices.flat[0].platform
  on_gpu = platform in ("gpu", "cuda")
  options = {"xla_gpu_enable_triton_gemm": False} if on_gpu else {}
  # It runs once: half the time to compile is more than it loses.
  once = {"xla_backend_optimization_level": 0} if platform == "cpu" else {}

  def born():
    return jax.tree.map(
      lambda leaf, stored: mesh_lib.pad(leaf, stored.shape),
      init(task, tx, config),
      abstract,
    )

  return Programs(
    init=jax.jit(born, out_shardings=shardings, compiler_options=once),
    step=jax.jit(
      train_step(task, tx, config),
      donate_argnums=0,
      out_shardings=(shardings, mesh_lib.replicated(mesh)),
      compiler_options=options,
    ),
    abstract=abstract,
    natural=natural,
  )


def init(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
) -> state.State:
  """The state before the first step; trace it for shapes, jit it for arrays."""
  params, batch_stats, extra = task.init(state.key_of(config.seed, "params"))
  return state.State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(params),
    extra=extra,
    loss_scale=loss_scale.initial(config.precision, config.loss_scale.first),
    streak=jnp.zeros((), jnp.int32),
    window=_empty_window(task),
  )


def train_step(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
) -> Step:
  """(state, batch) -> (state, window), to be jitted with the state donated.

  A step whose loss or gradient is not finite changes nothing but the step
  count, the streak of such steps, the loss scale and the window.

  The window is the sum of each metric over the steps since the last multiple
  of `config.log.every`; `steps` and `skipped` are their numbers. Beside them
  stand the newest `loss_scale` and `streak`.
  """

  def step(now, batch):
    stand_ins = jnp.sum(batch["stand_ins"])
    grads, aux = gradient(task, config, now, batch)
    grad_norm = optax.tree.norm(grads)
    good = jnp.isfinite(grad_norm) & jnp.isfinite(aux.metrics["loss"])
    with jax.named_scope("update"):
      updates, opt_state = tx.update(
        grads, now.opt_state, now.params, step=now.step
      )
      params = task.after_update(optax.apply_updates(now.params, updates))
    done = {"grad_norm": grad_norm, "steps": 1.0, **aux.metrics, **aux.totals}
    always = {"stand_ins": stand_ins, "skipped": 1.0 - good}
    window = _grown(now.window, done, always, good, now.step, config.log.every)
    after = now.replace(
      params=params, batch_stats=aux.batch_stats, opt_state=opt_state
    )
    after = after.replace(extra=task.after_step(after, aux.kept))
    after = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, now)
    after = after.replace(
      step=now.step + 1,
      loss_scale=loss_scale.adjust(
        now.loss_scale, good, config.loss_scale.growth_steps
      ),
      streak=jnp.where(good, 0, now.streak + 1),
      window=window,
    )
    told = {
      "loss_scale": loss_scale.factor(after.loss_scale),
      "streak": after.streak,
    }
    return after, window | told

  return step


def gradient(
  task: base.Task,
  config: ml_collections.ConfigDict,
  now: state.State,
  batch: dict[str, Any],
) -> tuple[Any, base.Aux]:
  """Gradients by the parameters, and Aux, of a batch as the pipeline makes it.

  Zero where nothing is to be learned at this step.
  """
  images = keyed(config, now, batch)
  grads, aux = _whole_gradient(task, now, images, config.accumulate)
  grads = jax.tree.map_with_path(
    lambda path, g: jnp.where(
      task.trainable(mesh_lib.path_of(path), now.step), g, 0
    ),
    grads,
  )
  return grads, aux


def keyed(
  config: ml_collections.ConfigDict, now: state.State, batch: dict[str, Any]
) -> dict[str, Any]:
  """A batch of the pipeline as tasks want it: with a key for each image."""
  images = {name: x for name, x in batch.items() if name != "stand_ins"}
  key = state.key_of(config.seed, "augment", now.step)
  count = jax.tree.leaves(images)[0].shape[0]
  return images | {"keys_B": jax.random.split(key, count)}


def _whole_gradient(task, now, batch, parts):

  def scaled(params, part, targets):
    loss, aux = task.loss(params, now, part, targets)
    return loss * loss_scale.factor(now.loss_scale), aux

  slope = jax.grad(scaled, has_aux=True)
  if parts == 1:
    grads, aux = slope(now.params, batch, None)
  else:
    grads, aux = _accumulated(task, slope, now, batch, parts)
  scale = loss_scale.factor(now.loss_scale)
  return jax.tree.map(lambda g: g / scale, grads), aux


def _accumulated(task, slope, now, batch, parts):
  """The gradient of a batch that is too large to differentiate at once.

  Where losses of images depend on each other (SwAV's codes are balanced over
  the whole batch), its parts go through the network twice: once for a summary,
  from which all targets follow, and once for gradients. Only BatchNorm tells it
  from one large batch: its statistics are those of each part; the running ones
  move once, by the parts' mean.
  """
  batch = mesh_lib.into_parts(batch, parts)

  def summarize(_, part):
    return None, task.summarize(now.params, now, part)

  summary = mesh_lib.from_parts(jax.lax.scan(summarize, None, batch)[1])
  targets = task.targets(now.params, now, summary)
  targets = mesh_lib.into_parts(targets, parts)

  def add(sums, part):
    means, totals = sums
    images, targets_of_part = part
    grads, aux = slope(now.params, images, targets_of_part)
    one = grads, aux.batch_stats, aux.metrics
    means = jax.tree.map(lambda s, x: s + x / parts, means, one)
    return (means, jax.tree.map(jnp.add, totals, aux.totals)), aux.kept

  means = (
    jax.tree.map(jnp.zeros_like, now.params),
    jax.tree.map(jnp.zeros_like, now.batch_stats),
    {name: jnp.zeros(()) for name in task.METRICS},
  )
  sums = means, _empty_totals(task)
  (means, totals), kept = jax.lax.scan(add, sums, (batch, targets))
  grads, batch_stats, metrics = means
  kept = mesh_lib.from_parts(kept)
  return grads, base.Aux(batch_stats, metrics, totals, kept)


def _grown(window, done, always, good, step, every):
  """The window with one more step; skipped ones add to `always` alone."""
  fresh = step % every == 0
  more = {name: jnp.where(good, value, 0) for name, value in done.items()}
  return jax.tree.map(
    lambda total, new: jnp.where(fresh, 0, total) + new, window, more | always
  )


def _empty_window(task):
  names = (*task.METRICS, "grad_norm", "stand_ins", "steps", "skipped")
  return {name: jnp.zeros(()) for name in names} | _empty_totals(task)


def _empty_totals(task):
  return {name: jnp.zeros(shape) for name, shape in task.totals.items()}
