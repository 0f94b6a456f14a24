"""Divergence: its detection, and a replay of the step that diverged."""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seer_jax.data import pipeline, sources
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, loss_scale
from seer_jax.tasks import state as state_lib
from seer_jax.training import optim
from seer_jax.training import step as step_lib
from seer_jax.weights import checkpoint

_log = logging.getLogger(__name__)

_SHOWN = 8  # Most names to print.
_EXPLODED = 1e3  # Parameters of a healthy network are smaller.


def is_nonfinite(
  window: Mapping[str, Any] | None, config: ml_collections.ConfigDict
) -> bool:
  """Whether the newest step of a window of metrics was not finite.

  In fp16 the loss scale adapts by occasional overflows; only a scale that keeps
  falling is a divergence.
  """
  if window is None or (
    config.precision == "fp16" and float(window["loss_scale"]) >= 1
  ):
    return False
  return int(window["nonfinite_steps"]) > 0


def ends_at_once(
  window: Mapping[str, Any], config: ml_collections.ConfigDict
) -> bool:
  """With `rollback.after` at 0: whether to stop; waits for each step."""
  return config.rollback.after == 0 and is_nonfinite(window, config)


def lasts(
  window: Mapping[str, Any],
  state: state_lib.State,
  config: ml_collections.ConfigDict,
) -> bool:
  """Whether `rollback.after` steps in a row were not finite, and the next."""
  enough = window["nonfinite_steps"] >= config.rollback.after
  # The state is a step newer than the window, and may be finite again.
  return (
    is_nonfinite(window, config) and enough and int(state.nonfinite_steps) > 0
  )


def warn(
  step: int, window: Mapping[str, Any], config: ml_collections.ConfigDict
) -> None:
  """Logs how many steps of a window were not applied."""
  skipped = window["skipped"] and config.precision != "fp16"
  if skipped or is_nonfinite(window, config):
    _log.warning(
      "%d of the last steps up to %d had a loss or a gradient that is not"
      " finite; they were not applied",
      window["skipped"],
      step,
    )


def keep(
  state: state_lib.State,
  progress: dict[str, Any],
  workdir: pathlib.Path,
  source: sources.Source,
  config: ml_collections.ConfigDict,
  programs: step_lib.Programs,
) -> NoReturn:
  """Ends a run that diverged; saves what `replay` needs in the workdir.

  No such step was applied, so the state before it equals `state`, apart from
  counters. Batches and keys follow from the numbers in `progress`. Always
  raises UserError.
  """
  # Steps are counted as the log does: the first is step 1.
  step, count = int(state.step) - 1, int(state.nonfinite_steps)
  samples = progress["samples"] - config.batch_size
  before = state.replace(
    step=state.step - 1,
    nonfinite_steps=state.nonfinite_steps - 1,
    loss_scale=loss_scale.before_overflow(state.loss_scale),
  )
  kept = checkpoint.Checkpoints(workdir / "divergence")
  ids = _ids(source, config, samples)
  kept.save(
    step, before, programs.unpadded, progress | {"samples": samples, "ids": ids}
  )
  kept.wait()
  failure = kept.failure()
  last = (
    f"could not be saved ({failure})"
    if failure
    else f"is in {workdir / 'divergence' / str(step)}: seer-jax replay repeats"
    " it and looks for the cause"
  )
  raise errors.UserError(
    f"training diverged at step {step + 2 - count}: the loss or a gradient was"
    f" not finite, {count} times in a row; no such step was applied. The last"
    f" {last}. Lower config.optim.lr={config.optim.lr:g} or lengthen"
    " config.optim.warmup_fraction, in a new --workdir"
  )


def replay(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  source: sources.Source,
  mesh: jax.sharding.Mesh,
  task: base.Task,
) -> Iterator[str]:
  """Repeats the newest step in `divergence`; lines of what was found.

  Raises UserError if there is none.
  """
  tx, schedule = optim.make(config.optim, config.steps, config.batch_size, task)
  programs = step_lib.build(task, tx, config, mesh)
  kept = checkpoint.Checkpoints(workdir / "divergence")
  found = kept.restore(programs.abstract, programs.unpadded)
  if found is None:
    raise errors.UserError(
      f"there is no step to replay in {workdir}: it did not diverge"
    )
  state, progress = found
  step = int(state.step)
  bad_images = pipeline.BadImages(source, workdir, 1.0, config.data.max_pixels)
  batches = pipeline.train_batches(
    source, config, mesh, progress["samples"], bad_images
  )
  batch = next(batches)
  batches.close()
  ids = _ids(source, config, progress["samples"])
  if ids != progress["ids"]:
    yield "the images are not those of that step any more: look with care"
  # Before the step, which gives its state up.
  largest = _largest(state)
  yield (
    f"before step {step + 1}: learning rate {float(schedule(step)):g}, loss"
    f" scale {float(loss_scale.factor(state.loss_scale)):g}, largest parameter"
    f" {largest[0]:g} in {largest[1]}"
  )
  rows = _bad_rows(task, config, state, batch)
  gradients = _bad_gradients(task, config, state, batch)
  _, window = programs.step(state, batch)
  bad = int(window["nonfinite_steps"]) > 0
  yield (
    f"step {step + 1} repeated: "
    + ("the same, not finite" if bad else "it is finite here")
  )
  yield (
    f"images whose features are not finite: {len(rows)} of {len(ids)}"
    + _some([ids[row] for row in rows])
  )
  yield f"gradients that are not finite: {len(gradients)}" + _some(gradients)
  if bad:
    yield _verdict(config.precision, len(rows), len(ids), *largest)


def _verdict(precision, bad, count, largest, name):
  """Advice if `bad` of `count` images have features that are not finite."""
  # With such parameters every image overflows.
  if largest > _EXPLODED:
    return (
      f"{name} had grown to {largest:g}; lower config.optim.lr, or lengthen"
      " config.optim.warmup_fraction"
    )
  narrow = precision == "fp16"
  if bad and not (narrow and bad == count):
    return "check these images, and how they are read"
  where = "forward" if bad else "backward"
  wider = "config.precision=fp32, or " if narrow else ""
  return (
    f"the parameters are normal, so the {where} pass overflowed; try {wider}a"
    " lower config.optim.lr"
  )


def _largest(state):
  return max(
    jax.tree.leaves(
      jax.tree.map_with_path(
        lambda path, leaf: (
          float(jnp.max(jnp.abs(leaf))),
          mesh_lib.path_of(path),
        ),
        state.params,
      ),
      is_leaf=lambda each: isinstance(each, tuple),
    )
  )


def _bad_rows(task, config, state, batch):
  """Rows of the batch with features that are not finite.

  With running statistics: in those of a batch one image affects all.
  """

  def fine(state, batch):
    fine_B = True
    for views in task.view(step_lib.keyed(config, state, batch)):
      x_NxHxWx3 = views.reshape(-1, *views.shape[2:])
      for tap in jax.tree.leaves(
        task.encoder.apply(state.variables, x_NxHxWx3)
      ):
        finite_BxR = jnp.isfinite(tap).reshape(views.shape[0], -1)
        fine_B &= jnp.all(finite_BxR, axis=1)
    return fine_B

  fine_B = mesh_lib.to_host(jax.jit(fine)(state, batch))
  return np.flatnonzero(~fine_B)


def _bad_gradients(task, config, state, batch):
  """Paths of parameters with gradients that are not finite."""

  def gradients(state, batch):
    grads, _ = step_lib.gradient(task, config, state, batch)
    return jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), grads)

  flags = jax.jit(gradients)(state, batch)
  return [
    mesh_lib.path_of(path)
    for path, fine in jax.tree.leaves_with_path(flags)
    if not fine
  ]


def _some(names):
  if not names:
    return ""
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return f": {', '.join(names[:_SHOWN])}{more}"


def _ids(source, config, first):
  """Ids of the images of a batch."""
  return [source.id_of(at) for at in pipeline.indices_of(source, config, first)]
