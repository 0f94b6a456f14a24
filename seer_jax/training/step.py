"""The training step: gradient, update, window of metrics. No I/O."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, loss_scale
from seer_jax.tasks import state as state_lib

Step = Callable[[state_lib.State, Any], tuple[state_lib.State, Any]]


class Programs(NamedTuple):
  """The jitted functions of a run, and the shapes of its state."""

  # () -> State, initialized on the devices that hold it.
  init: Callable[[], state_lib.State]
  step: Step  # (State, batch) -> (State, window); the old state is donated.
  abstract: state_lib.State  # The State as shapes, dtypes and shardings.
  unpadded: state_lib.State  # The same without padding, as the layers see it.


def build(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
  mesh: jax.sharding.Mesh,
) -> Programs:
  """Jits a run's functions for a mesh, to be called under `jax.set_mesh`."""
  unpadded = jax.eval_shape(lambda: init(task, tx, config))
  abstract = mesh_lib.layout(unpadded, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  # Triton's matrix products crash the compiler on Ampere and newer (jax 0.10,
  # RG-10B at 160 px: "triton_tiling_propagation.cc: Check failed"); cuBLAS's
  # do not.
  platform = mesh.devices.flat[0].platform
  on_gpu = platform in ("gpu", "cuda")
  options = {"xla_gpu_enable_triton_gemm": False} if on_gpu else {}
  # It runs once, so halving the time to compile is worth more.
  once = {"xla_backend_optimization_level": 0} if platform == "cpu" else {}

  def initialized():
    return jax.tree.map(
      lambda leaf, stored: mesh_lib.pad(leaf, stored.shape),
      init(task, tx, config),
      abstract,
    )

  return Programs(
    init=jax.jit(initialized, out_shardings=shardings, compiler_options=once),
    step=jax.jit(
      train_step(task, tx, config),
      donate_argnums=0,
      out_shardings=(shardings, mesh_lib.replicated(mesh)),
      compiler_options=options,
    ),
    abstract=abstract,
    unpadded=unpadded,
  )


def init(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
) -> state_lib.State:
  """The state before the first step; trace it for shapes, jit it for arrays."""
  params, batch_stats, extra = task.init(
    state_lib.key_of(config.seed, "params")
  )
  return state_lib.State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=batch_stats,
    opt_state=tx.init(params),
    extra=extra,
    loss_scale=loss_scale.initial(config.precision, config.loss_scale.first),
    nonfinite_steps=jnp.zeros((), jnp.int32),
    window=_empty_window(task),
  )


def train_step(
  task: base.Task,
  tx: optax.GradientTransformationExtraArgs,
  config: ml_collections.ConfigDict,
) -> Step:
  """(state, batch) -> (state, window), to be jitted with the state donated.

  A step whose loss or gradient is not finite changes only the step count, the
  number of such steps in a row, the loss scale and the window.

  The window is the sum of each metric over the steps since the last multiple of
  `config.log.every`; `steps` and `skipped` count them. It also has the newest
  `loss_scale` and `nonfinite_steps`.
  """

  def step(state, batch):
    replacements = jnp.sum(batch["replacements"])
    grads, aux = gradient(task, config, state, batch)
    grad_norm = optax.tree.norm(grads)
    good = jnp.isfinite(grad_norm) & jnp.isfinite(aux.metrics["loss"])
    with jax.named_scope("update"):
      updates, opt_state = tx.update(
        grads, state.opt_state, state.params, step=state.step
      )
      params = task.after_update(optax.apply_updates(state.params, updates))
    done = {"grad_norm": grad_norm, "steps": 1.0, **aux.metrics, **aux.totals}
    always = {"replacements": replacements, "skipped": 1.0 - good}
    window = _grown(
      state.window, done, always, good, state.step, config.log.every
    )
    after = state.replace(
      params=params, batch_stats=aux.batch_stats, opt_state=opt_state
    )
    after = after.replace(extra=task.after_step(after, aux.kept))
    after = jax.tree.map(
      lambda new, old: jnp.where(good, new, old), after, state
    )
    after = after.replace(
      step=state.step + 1,
      loss_scale=loss_scale.adjust(
        state.loss_scale, good, config.loss_scale.growth_steps
      ),
      nonfinite_steps=jnp.where(good, 0, state.nonfinite_steps + 1),
      window=window,
    )
    latest = {
      "loss_scale": loss_scale.factor(after.loss_scale),
      "nonfinite_steps": after.nonfinite_steps,
    }
    return after, window | latest

  return step


def gradient(
  task: base.Task,
  config: ml_collections.ConfigDict,
  state: state_lib.State,
  batch: dict[str, Any],
) -> tuple[Any, base.Aux]:
  """Gradients, and Aux, of a batch as the pipeline makes it.

  Gradients of parameters that are not trained at this step are zero.
  """
  images = keyed(config, state, batch)
  grads, aux = _whole_gradient(task, state, images, config.accumulate)
  grads = jax.tree.map_with_path(
    lambda path, g: jnp.where(
      task.trainable(mesh_lib.path_of(path), state.step), g, 0
    ),
    grads,
  )
  return grads, aux


def keyed(
  config: ml_collections.ConfigDict,
  state: state_lib.State,
  batch: dict[str, Any],
) -> dict[str, Any]:
  """A batch of the pipeline with a random key for each image."""
  images = {name: x for name, x in batch.items() if name != "replacements"}
  key = state_lib.key_of(config.seed, "augment", state.step)
  count = jax.tree.leaves(images)[0].shape[0]
  return images | {"keys_B": jax.random.split(key, count)}


def _whole_gradient(task, state, batch, parts):

  def scaled(params, part, targets):
    loss, aux = task.loss(params, state, part, targets)
    return loss * loss_scale.factor(state.loss_scale), aux

  slope = jax.grad(scaled, has_aux=True)
  if parts == 1:
    grads, aux = slope(state.params, batch, None)
  else:
    grads, aux = _accumulated(task, slope, state, batch, parts)
  scale = loss_scale.factor(state.loss_scale)
  return jax.tree.map(lambda g: g / scale, grads), aux


def _accumulated(task, slope, state, batch, parts):
  """The gradient of a batch that is too large to differentiate at once.

  Where losses of images depend on each other (SwAV's codes are balanced over
  the whole batch), its parts pass the network twice: once for a summary, from
  which all targets follow, and once for gradients. The result differs from that
  of one large batch only by BatchNorm, which uses statistics of each part;
  running statistics move once, by the parts' mean.
  """
  batch = mesh_lib.into_parts(batch, parts)

  def summarize(_, part):
    return None, task.summarize(state.params, state, part)

  summary = mesh_lib.from_parts(jax.lax.scan(summarize, None, batch)[1])
  targets = task.targets(state.params, state, summary)
  targets = mesh_lib.into_parts(targets, parts)

  def add(sums, part):
    means, totals = sums
    images, targets_of_part = part
    grads, aux = slope(state.params, images, targets_of_part)
    one = grads, aux.batch_stats, aux.metrics
    means = jax.tree.map(lambda s, x: s + x / parts, means, one)
    return (means, jax.tree.map(jnp.add, totals, aux.totals)), aux.kept

  means = (
    jax.tree.map(jnp.zeros_like, state.params),
    jax.tree.map(jnp.zeros_like, state.batch_stats),
    {name: jnp.zeros(()) for name in task.METRICS},
  )
  sums = means, _empty_totals(task)
  (means, totals), kept = jax.lax.scan(add, sums, (batch, targets))
  grads, batch_stats, metrics = means
  kept = mesh_lib.from_parts(kept)
  return grads, base.Aux(batch_stats, metrics, totals, kept)


def _grown(window, done, always, good, step, every):
  """The window with one more step; skipped ones count only in `always`."""
  fresh = step % every == 0
  more = {name: jnp.where(good, value, 0) for name, value in done.items()}
  return jax.tree.map(
    lambda total, new: jnp.where(fresh, 0, total) + new, window, more | always
  )


def _empty_window(task):
  names = (*task.METRICS, "grad_norm", "replacements", "steps", "skipped")
  return {name: jnp.zeros(()) for name in names} | _empty_totals(task)


def _empty_totals(task):
  return {name: jnp.zeros(shape) for name, shape in task.totals.items()}
