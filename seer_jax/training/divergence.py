"""A step that diverged, kept and repeated: where did it begin?"""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seer_jax.data import pipeline, sources
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base, state
from seer_jax.training import loss_scale, optim
from seer_jax.training import step as step_lib
from seer_jax.weights import checkpoint

_log = logging.getLogger(__name__)

_SHOWN = 8  # Of many names, the first.
_EXPLODED = 1e3  # No parameter of a network that learns is as large.


def keep(
  now: state.State,
  place: dict[str, Any],
  workdir: pathlib.Path,
  source: sources.Source,
  config: ml_collections.ConfigDict,
  programs: step_lib.Programs,
) -> NoReturn:
  """Ends a run that diverged, leaving all that its last step came from.

  No bad step is applied, so the state before it is the state after it, but for
  what counts. Batches and keys follow from the numbers in `place`.

  Args:
    now: the state after a step that was not finite.
    place: where the run stands (`loop.Loop`).
    workdir: the bundle goes to its folder `divergence`.
    source: of the images.
    config: resolved.
    programs: of the run.

  Raises:
    UserError: always.
  """
  # Steps are counted as the log does: the first is step 1.
  step, streak = int(now.step) - 1, int(now.streak)
  samples = place["samples"] - config.batch_size
  before = now.replace(
    step=now.step - 1,
    streak=now.streak - 1,
    loss_scale=loss_scale.before_overflow(now.loss_scale),
  )
  kept = checkpoint.Checkpoints(workdir / "divergence")
  ids = _ids(source, config, samples)
  kept.save(
    step, before, programs.natural, place | {"samples": samples, "ids": ids}
  )
  kept.wait()
  words = kept.failure()
  last = (
    f"could not be kept ({words})"
    if words
    else f"is in {workdir / 'divergence' / str(step)}: seer-jax replay repeats"
    " it and looks for the cause"
  )
  raise errors.UserError(
    f"training diverged at step {step + 2 - streak}: the loss or a gradient was"
    f" not finite, {streak} times in a row; no such step was applied. The last"
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

  Raises:
    UserError: there is none.
  """
  tx, schedule = optim.make(config.optim, config.steps, config.batch_size, task)
  programs = step_lib.build(task, tx, config, mesh)
  kept = checkpoint.Checkpoints(workdir / "divergence")
  found = kept.restore(programs.abstract, programs.natural)
  if found is None:
    raise errors.UserError(f"there is no step to replay in {workdir}")
  now, place = found
  step = int(now.step)
  bad_images = pipeline.BadImages(source, workdir, 1.0, config.data.max_pixels)
  batches = pipeline.train_batches(
    source, config, mesh, place["samples"], bad_images
  )
  batch = next(batches)
  batches.close()
  ids = _ids(source, config, place["samples"])
  if ids != place["ids"]:
    yield "the images are not those of that step any more: look with care"
  # Before the step, which gives its state up.
  largest = _largest(now)
  yield (
    f"before step {step + 1}: learning rate {float(schedule(step)):g}, loss"
    f" scale {float(loss_scale.factor(now.loss_scale)):g}, largest parameter"
    f" {largest[0]:g} in {largest[1]}"
  )
  rows = _bad_rows(task, config, now, batch)
  gradients = _bad_gradients(task, config, now, batch)
  _, window = programs.step(now, batch)
  bad = int(window["streak"]) > 0
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
  """What to do, where `bad` of `count` images have features not finite."""
  # First: with such parameters every image overflows.
  if largest > _EXPLODED:
    return (
      f"{name} had grown to {largest:g} before: a lower config.optim.lr, or a"
      " longer config.optim.warmup_fraction"
    )
  narrow = precision == "fp16"
  if bad and not (narrow and bad == count):
    return "look at these images, and at how they are read"
  where = "forward" if bad else "backward"
  wider = "config.precision=fp32, or " if narrow else ""
  return (
    f"the parameters are sound: the overflow is in the {where} pass; try"
    f" {wider}a lower config.optim.lr"
  )


def _largest(now):
  return max(
    jax.tree.leaves(
      jax.tree.map_with_path(
        lambda path, leaf: (
          float(jnp.max(jnp.abs(leaf))),
          mesh_lib.path_of(path),
        ),
        now.params,
      ),
      is_leaf=lambda each: isinstance(each, tuple),
    )
  )


def _bad_rows(task, config, now, batch):
  """Rows of the batch for which the network's answers are not all finite.

  Through the running statistics: in those of a batch, one spoils all.
  """

  def fine(now, batch):
    fine_B = True
    for views in task.view(step_lib.keyed(config, now, batch)):
      x_NxHxWx3 = views.reshape(-1, *views.shape[2:])
      for tap in jax.tree.leaves(task.encoder.apply(now.variables, x_NxHxWx3)):
        finite_BxR = jnp.isfinite(tap).reshape(views.shape[0], -1)
        fine_B &= jnp.all(finite_BxR, axis=1)
    return fine_B

  fine_B = mesh_lib.to_host(jax.jit(fine)(now, batch))
  return np.flatnonzero(~fine_B)


def _bad_gradients(task, config, now, batch):
  """Paths of the parameters whose gradients are not all finite."""

  def gradients(now, batch):
    grads, _ = step_lib.gradient(task, config, now, batch)
    return jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), grads)

  flags = jax.jit(gradients)(now, batch)
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
  """Of the images of a batch."""
  return [source.id_of(at) for at in pipeline.indices_of(source, config, first)]
