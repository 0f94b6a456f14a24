"""The loop. There is one in the package."""

import contextlib
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import seer_jax
from seer_jax import (
  checkpoint,
  checks,
  distributed,
  errors,
  features,
  health,
  metrics,
  model,
  optim,
  pipeline,
  recipe,
  signals,
  sources,
  tasks,
)
from seer_jax import config as config_lib
from seer_jax import mesh as mesh_lib
from seer_jax import step as step_lib
from seer_jax.evals import knn, spread

_log = logging.getLogger(__name__)


class Stopped(Exception):
  """A signal asked to stop, and everything is saved."""


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Pre-trains to the end of the config, from wherever the workdir stands.

  Raises:
    UserError: something the user can mend.
    Stopped: a signal came; run the same command again.
  """
  checks.check_each(config)
  mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp)
  config_lib.recall(workdir, config)
  source = _open(config.data.train)
  resolve(config, source, mesh)
  # All that can be refused is, before anything is written.
  sets = _evaluation_sets(config, source)
  distributed.agree(_facts(config, source))
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.claim(workdir, config, write=distributed.is_lead())
  except OSError as error:
    raise errors.UserError(
      f"cannot write to --workdir={workdir}: {error.strerror}"
    ) from error
  with jax.set_mesh(mesh), contextlib.ExitStack() as closing:
    _run(config, workdir, source, sets, mesh, closing)
  if distributed.is_lead():
    for line in closing_lines(workdir):
      print(line)


def _facts(config, source):
  """What all processes of a run must have in common."""
  return {
    "the version": f"seer_jax {seer_jax.__version__}, jax {jax.__version__}",
    "the config": str(list(config_lib.flatten(config))),
    "the data": source.fingerprint,
    "the number of devices": str(jax.local_device_count()),
  }


def resolve(
  config: ml_collections.ConfigDict,
  source: sources.Source,
  mesh: jax.sharding.Mesh,
) -> None:
  """Chooses what the config left open, says why, and checks the whole."""
  here = recipe.Situation(
    images=len(source),
    side=recipe.median_side(source, config.data.max_pixels),
    devices=mesh.size,
    platform=jax.default_backend(),
    precision=mesh_lib.precision_here(),
    cores=os.cpu_count() or 1,
  )
  for key, value, reason in recipe.complete(config, here):
    _log.info("chose %s = %s (%s)", key, value, reason)
  checks.check_together(config)
  model.architecture(config.model)


def task_of(config: ml_collections.ConfigDict) -> tasks.SwAV:
  """The task of a resolved config, in its precision."""
  dtype = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "fp32": jnp.float32}
  return tasks.SwAV(config, jnp.dtype(dtype[config.precision]))


def _run(config, workdir, source, sets, mesh, closing):
  def closed_at_the_end(thing):
    return closing.enter_context(contextlib.closing(thing))

  notices = closing.enter_context(signals.Signals())
  task = task_of(config)
  tx, schedule = optim.make(config.optim, config.steps, config.batch_size)

  # Priority: a checkpoint of this workdir, else fresh. Arrays are born where
  # they belong.
  programs = step_lib.build(task, tx, config, mesh)
  if config.mesh.fsdp > 1:
    _log.info("%s", mesh_lib.describe(programs.natural, mesh))
  checkpoints = closed_at_the_end(
    checkpoint.Checkpoints(workdir, config.checkpoint.keep)
  )
  restored = checkpoints.restore(programs.abstract, programs.natural)
  if restored is None:
    now, first = programs.init(), 0
  else:
    now, position = restored
    first = int(now.step)
    _check_position(position, first, config, source)
    _log.info("resumed at step %d of %d", first, config.steps)

  evaluators = list(_evaluators(config, sets, task, mesh))
  bad_images = pipeline.BadImages(
    source, workdir, config.data.max_bad, config.data.max_pixels
  )
  batches = closed_at_the_end(
    pipeline.train_batches(source, config, mesh, first, bad_images)
  )
  lead = distributed.is_lead()
  writer = closed_at_the_end(
    metrics.Writer(workdir, first if restored else None)
    if lead
    else metrics.NoWriter()
  )
  sentinel = health.Sentinel(
    # 100 steps pass at ln K on the easiest data; more on longer runs.
    patience=max(300, config.steps // 5),
    epsilon=config.swav.epsilon,
    freeze_steps=config.swav.freeze_steps,
  )
  bar = closed_at_the_end(metrics.Bar(config.steps, first, silent=not lead))
  clock = metrics.Clock(config.batch_size)
  position = {"images": len(source), "fingerprint": source.fingerprint}

  def evaluate(step):
    began = time.perf_counter()
    found = {
      name: value for each in evaluators for name, value in each.run(now)
    }
    found["eval_seconds"] = time.perf_counter() - began
    writer.write(step, found)
    bar.say(f"step {step}: " + _line(found))
    clock.restart()

  def save(step, window):
    _refuse_nan(step, window, config)
    samples = step * config.batch_size
    at = position | {"samples": samples}
    checkpoints.save(step, now, programs.natural, at)

  def log(step, window):
    found = _summary(jax.device_get(window)) | clock.read()
    found["lr"] = float(schedule(step - 1))
    found["images_seen"] = step * config.batch_size
    writer.write(step, found)
    bar.tell(step, found)
    _refuse_nan(step, window, config)
    words = sentinel.verdict(step, found)
    if words:
      bar.say(words)

  # The order matters. Evaluate and save before drawing the batch, so that a
  # checkpoint and its input position agree; read metrics of a step only after
  # the next one is under way, so that the device never waits for the host.
  if first == 0:
    evaluate(0)
  window = pending = None
  for step in range(first, config.steps):
    stopping = notices.stop_at(step)
    due = step > first and step % config.checkpoint.every == 0
    evaluation = config.eval.every and step % config.eval.every == 0
    if pending and (due or evaluation or stopping):
      log(*pending)
      pending = None
    if evaluation and step > first:
      evaluate(step)
    if window and (due or stopping):
      save(step, window)
    if stopping:
      raise Stopped(f"stopped by {stopping} at step {step}, all saved")

    began = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - began
    now, window = programs.step(now, batch)
    clock.tick(waited)
    bar.step()
    if pending:
      log(*pending)
      pending = None
    if (step + 1) % config.log.every == 0 or step + 1 == config.steps:
      pending = step + 1, window
  if pending:
    log(*pending)
    evaluate(config.steps)
    save(config.steps, window)


def _refuse_nan(step, window, config):
  """Ends a run that diverged. No such step was applied, nor will be saved.

  In fp16 an overflow now and then is how the loss scale finds its size; only a
  scale that keeps falling is divergence.
  """
  skipped, scale = int(window["skipped"]), float(window["loss_scale"])
  if skipped and (config.precision != "fp16" or scale < 1):
    raise errors.UserError(
      f"training diverged: {skipped} of the last steps before step {step} had"
      " a loss or a gradient that is not finite; they were not applied. Lower"
      f" config.optim.lr={config.optim.lr:g} or lengthen"
      " config.optim.warmup_fraction, in a new --workdir"
    )


def closing_lines(workdir: pathlib.Path) -> Iterator[str]:
  """What a finished run has to show, from its metrics file."""
  lines = metrics.read_lines(workdir / "metrics.jsonl")
  evaluations = [line for line in lines if "features/rank" in line]
  logged = [line for line in lines if "loss_over_lnk" in line]
  if not evaluations or not logged:
    return  # Somebody took the file away.
  before, after = evaluations[0], evaluations[-1]
  for name in after:
    if name.startswith("knn/"):
      yield (
        f"{name} top-1: untrained {before[name]:.3f}, trained {after[name]:.3f}"
      )
  yield (
    f"effective rank of features: untrained {before['features/rank']:.1f},"
    f" trained {after['features/rank']:.1f}"
  )
  yield (
    f"loss / ln K: first {logged[0]['loss_over_lnk']:.3f},"
    f" last {logged[-1]['loss_over_lnk']:.3f}"
  )


def _open(where):
  return sources.open_source(where.kind, where.path, where.split, where.name)


def _check_position(position, step, config, source):
  """The data must be what the checkpoint's run read."""
  assert position["samples"] == step * config.batch_size, position
  if position["images"] != len(source):
    raise errors.UserError(
      f"the run was started on {position['images']} images, now there are"
      f" {len(source)}: put the data back as it was, or give another --workdir"
    )
  if position["fingerprint"] != source.fingerprint:
    raise errors.UserError(
      "the run was started on images of other names: put the data back as it"
      " was, or give another --workdir"
    )


def _evaluation_sets(config, source):
  """(bank, queries): the training images, and those of the test set or some
  held out of the bank.
  """
  rng = np.random.default_rng(config.seed)
  order, most = rng.permutation(len(source)), config.eval.max_images
  if config.data.test.kind:
    test = _open(config.data.test)
    _check_labels(source, test)
    query = features.ImageSet(test, _some(rng.permutation(len(test)), most))
  else:
    held_out = max(1, int(len(source) * config.eval.held_out))
    query = features.ImageSet(source, _some(order[:held_out], most))
    order = order[held_out:]
  return features.ImageSet(source, _some(order, most)), query


def _evaluators(config, sets, task, mesh) -> Iterator[Any]:
  """Spread of clean features always; kNN where there are labels."""
  bank, query = sets
  extract = features.Extractor(task, config, mesh)
  yield spread.Spread(extract, bank)
  labels = [
    {images.source.label_of(i) for i in images.indices} - {sources.UNLABELLED}
    for images in sets
  ]
  if not all(labels):
    _log.info("no kNN check: there are no sub-folders to take labels from")
  elif len(labels[0]) > len(bank.indices) // 2:
    _log.info(
      "no kNN check: %d labels for %d images say nothing",
      len(labels[0]),
      len(bank.indices),
    )
  else:
    yield knn.Knn(
      extract, bank, query, config.eval.knn_k, config.eval.knn_temperature
    )


def _check_labels(source, test):
  """Labels are numbers: both sets must count the same names."""
  ours, theirs = source.label_names, test.label_names
  if ours and theirs and ours != theirs:
    alone = sorted(set(ours) ^ set(theirs))
    what = f"{', '.join(alone)} stand in one of them only"
    raise errors.UserError(
      "config.data.train and config.data.test have different labels: "
      + (what if alone else "the same names in another order")
    )


def _some(indices: np.ndarray, most: int) -> Sequence[int]:
  return np.sort(indices[:most]).tolist()


def _summary(window):
  """Window sums to what the log shows."""
  steps = max(1.0, float(window["steps"]))
  means = {
    name: float(window[name]) / steps
    for name in ("loss", "loss_over_lnk", "grad_norm")
  }
  for name in ("stand_ins", "skipped", "loss_scale"):
    means[name] = float(window[name])
  return means | health.prototype_use(window["usage_K"])


def _line(found):
  return ", ".join(f"{name} {value:.3f}" for name, value in found.items())
