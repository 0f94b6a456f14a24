"""The loop. There is one in the package."""

import contextlib
import logging
import pathlib
import signal
import time

import jax
import ml_collections

from seer_jax.data import pipeline, sources
from seer_jax.evals import suite
from seer_jax.runtime import distributed, errors, host, preemption, watchdog
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base
from seer_jax.training import (
  divergence,
  metrics,
  monitors,
  optim,
  program,
  warm_start,
)
from seer_jax.training import step as step_lib
from seer_jax.weights import checkpoint

_log = logging.getLogger(__name__)

# At the end, or when a signal asks to stop, a save that fails is tried again:
# somebody may make room. Seconds.
_AGAIN_AFTER, _AGAIN_FOR = 10, 1800


class _Interrupted(Exception):
  """A signal came in the middle of an evaluation."""


class _Diverged(Exception):
  """Too many steps in a row were not finite."""


class Loop:
  """A run from its newest checkpoint to its end.

  Attributes:
    _now: the state.
    _step: how many updates were done; `_now.step`, without asking the device.
    _place: where the run stands, beside its state; saved with it:
      samples: number of the next sample.
      images, fingerprint: of the source, which must stay what it was.
      evaluated: step of the last evaluation, -1 before the first.
      evaluation: its values, if the checkpoint is of that step.
      lines: in `metrics.jsonl` up to here.
      jumps: of each rollback, where it began and how far the run had come.
      seconds: spent in training so far, over all starts.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    source: sources.Source,
    mesh: jax.sharding.Mesh,
    images: suite.Sets,
    task: base.Task,
    notices: preemption.Signals,
    closing: contextlib.ExitStack,
  ):
    """Restores, or begins.

    Args:
      config: resolved, of this workdir.
      workdir: of this run alone.
      source: the images to train on.
      mesh: set (`jax.set_mesh`).
      images: to evaluate on.
      task: what is learned.
      notices: of signals, caught already.
      closing: what is opened here is closed by it.
    """

    def closed_at_the_end(thing):
      return closing.enter_context(contextlib.closing(thing))

    self._config, self._workdir, self._source = config, workdir, source
    self._mesh, self._task, self._notices = mesh, task, notices
    self._votes = distributed.Votes(mesh, 3)
    self._dog = closed_at_the_end(
      watchdog.Watchdog(workdir, config.watchdog, jax.process_index())
    )
    tx, self._schedule = optim.make(
      config.optim, config.steps, config.batch_size, task
    )
    self._programs = step_lib.build(task, tx, config, mesh)
    lead = distributed.is_lead()
    self._program = program.Program(
      self._programs.step, workdir, config.profile, lead
    )
    if config.mesh.fsdp > 1:
      _log.info("%s", mesh_lib.describe(self._programs.natural, mesh))
    self._checkpoints = closed_at_the_end(
      checkpoint.Checkpoints(workdir / "checkpoints", config.checkpoint)
    )
    self._checkpoints.tidy()
    if (workdir / "divergence").exists() and distributed.is_lead():
      _log.warning(
        "this run gave up once, diverged; seer-jax replay looks for the cause"
      )
    resumed = self._restore()
    if resumed:
      _log.info("resumed at step %d of %d", self._step, config.steps)
    self._evaluation = suite.Evaluation(
      config, images, task.encoder, task.dtype, mesh, self._in_evaluation
    )
    self._bad_images = pipeline.BadImages(
      source, workdir, config.data.max_bad, config.data.max_pixels
    )
    self._writer = closed_at_the_end(
      metrics.Writer(
        workdir, self._step if resumed else None, self._place["evaluated"]
      )
      if lead
      else metrics.NoWriter()
    )
    if resumed and (words := self._missing_lines()):
      _log.warning("%s. The run goes on; its curves have a gap", words)
    self._sentinel = monitors.Sentinel(config)
    self._supply = monitors.Supply(config.data.workers, host.cores())
    self._bar = closed_at_the_end(
      metrics.Bar(config.steps, self._step, silent=not lead)
    )
    self._clock = metrics.Clock(config.batch_size, self._place["seconds"])
    # A save that failed is due again at this step; and what was the newest
    # checkpoint then.
    self._save_at, self._failing = 0, None

  def _missing_lines(self):
    """A checkpoint is saved when all lines up to it are on the disk."""
    lines = self._place.get("lines", 0)  # Older checkpoints do not say.
    return self._writer.missing(lines, self._config.log.every, self._step)

  def _restore(self):
    """Takes the newest checkpoint, else the start; whether there was one."""
    found = self._found()
    self._take(found)
    return found is not None

  def _restore_before(self, step):
    """Takes the checkpoint that a run which nothing stopped would go back to.

    That is one of `checkpoint.every`, from before the trouble; or the start.
    """
    every = self._config.checkpoint.every
    found = None
    if step >= every:
      found = (
        self._found(lambda saved: saved <= step and saved % every == 0)
        # The interval was another, or a save failed.
        or self._found(lambda saved: saved <= step)
        # In fp16 steps that overflow are no trouble, until they are too many.
        or self._found()
      )
    self._take(found)

  def _found(self, wanted=lambda step: True):
    programs = self._programs
    return self._checkpoints.restore(
      programs.abstract, programs.natural, wanted
    )

  def _take(self, found):
    if found is None:
      # Arrays are born where they belong.
      self._now = warm_start.begin(
        self._programs.init(), self._task, self._config, self._mesh
      )
      self._place = self._first_place()
    else:
      self._now, self._place = found
      _check_data(self._place, self._source)
    self._step = int(self._now.step)
    self._window = self._pending = None

  def _first_place(self):
    return {
      "samples": 0,
      "images": len(self._source),
      "fingerprint": self._source.fingerprint,
      "evaluated": -1,
      "evaluation": {},
      "lines": 0,
      "jumps": [],
      "seconds": 0.0,
    }

  def run(self) -> None:
    """To the end, with rollbacks on the way where there must be any."""
    if self._step == 0:
      self._evaluate()
    while True:
      try:
        self._train()
        break
      except _Diverged:
        self._roll_back()
    if self._place["evaluated"] != self._step:
      self._evaluate()
      self._save_surely()

  def _train(self):
    """The order of things matters.

    Evaluate and save before drawing the batch, so that a checkpoint and its
    place agree; read metrics of a step only after the next one is under way, so
    that the device never waits for the host.
    """
    config, every = self._config, self._config.checkpoint.every
    first = self._step
    with contextlib.closing(self._batches()) as batches:
      while self._step < config.steps:
        step = self._step
        stopping, failed, lost = self._votes.cast(*self._news())
        if failed:
          self._save_at = step + max(1, every // 10)
        due = (step > first and step % every == 0) or step == self._save_at > 0
        evaluation_due = (
          config.eval.every
          and step % config.eval.every == 0
          and self._place["evaluated"] != step
        )
        if self._pending and (due or evaluation_due or stopping):
          self._log()
        if evaluation_due and not stopping:
          self._evaluate()
          # The checkpoint that the run came from knows nothing of it yet.
          due = due or step == first > 0
        if due and not stopping:
          self._save()
        if stopping:
          self._stop(stopping)
        if lost:
          raise errors.Lost(
            f"nothing could be saved since step {self._checkpoints.newest},"
            f" and config.checkpoint.risk={config.checkpoint.risk:g} allows no"
            " more; mend the disk of the workdir, then run the same command"
          )
        self._advance(batches)
        if (step + 1) % config.log.every == 0 or step + 1 == config.steps:
          self._pending = step + 1, self._window
      if self._pending:
        self._log()

  def _advance(self, batches):
    """One step; then the metrics of one before, if they are to be logged."""
    first_ever = self._window is None
    self._dog.at(
      f"waiting for the images of step {self._step}{batches.awaited}",
      first_ever,
    )
    began = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - began
    self._dog.at(f"computing step {self._step}", first_ever)
    self._now, self._window = self._program(self._step, self._now, batch)
    self._step += 1
    self._place["samples"] += self._config.batch_size
    if self._config.rollback.after == 0 and self._in_trouble(self._window):
      raise _Diverged  # The first step counts: each is waited for.
    self._clock.tick(waited)
    self._bar.step()
    if self._pending:
      self._log()

  def _batches(self):
    return pipeline.train_batches(
      self._source,
      self._config,
      self._mesh,
      self._place["samples"],
      self._bad_images,
    )

  def _news(self):
    """What this process has to tell the others before a step."""
    words = self._checkpoints.failure()
    risk = self._step - self._checkpoints.newest
    if words:
      _log.warning(
        "could not save: %s; %d steps are at risk, the checkpoint of step %d"
        " is whole. Training goes on",
        words,
        risk,
        self._checkpoints.newest,
      )
      self._failing = self._checkpoints.newest
    most = self._config.checkpoint.risk * self._config.checkpoint.every
    failing = self._failing == self._checkpoints.newest
    return self._notices.caught, bool(words), failing and risk > most

  def _evaluate(self):
    self._dog.at(f"evaluating at step {self._step}", patient=True)
    began = time.perf_counter()
    try:
      found = self._evaluation.run(self._task.variables(self._now))
    except _Interrupted as error:
      self._stop(error.args[0])
    self._check_best(found)
    self._place["evaluated"], self._place["evaluation"] = self._step, found
    found = found | {"eval_seconds": time.perf_counter() - began}
    self._writer.write(self._step, found)
    self._bar.say(f"step {self._step}: " + _line(found))
    self._clock.restart()

  def _check_best(self, found):
    wanted = self._config.checkpoint.best_metric
    if self._config.checkpoint.best and wanted not in found:
      raise errors.UserError(
        f"config.checkpoint.best_metric={wanted!r} is not among what is"
        f" evaluated: {', '.join(found)}. Name one of these, or leave out"
        " config.checkpoint.best"
      )

  def _in_evaluation(self):
    """Between two batches of an evaluation."""
    self._dog.at(f"evaluating at step {self._step}", patient=True)
    stopping, _, _ = self._votes.cast(self._notices.caught, 0, 0)
    if stopping:
      raise _Interrupted(stopping)

  def _save(self, even_in_trouble=False):
    trouble = self._window is not None and self._in_trouble(self._window)
    if trouble and not even_in_trouble:
      # Rollbacks go to states from before the trouble.
      self._save_at = self._step + 1
      return
    self._dog.at(f"saving step {self._step}", patient=True)
    words = self._writer.flush()
    if distributed.any_of(bool(words)):
      # A checkpoint vouches for every line before it.
      self._checkpoints.fail(words)
      return
    place = self._place | {
      "seconds": self._clock.total(),
      "lines": self._writer.count,
    }
    if place["evaluated"] != self._step:
      place["evaluation"] = {}
    self._checkpoints.save(self._step, self._now, self._programs.natural, place)
    self._clock.restart()

  def _save_surely(self):
    """Saves and waits; tries again for a while where that fails."""
    began = time.monotonic()
    self._checkpoints.wait()
    self._checkpoints.failure()  # Of a save that this one replaces.
    while True:
      self._save(even_in_trouble=True)
      self._checkpoints.wait()
      words = self._checkpoints.failure()
      if not distributed.any_of(bool(words)):
        return
      enough = time.monotonic() - began > _AGAIN_FOR or self._notices.again
      if distributed.any_of(enough):
        raise errors.Lost(
          f"step {self._step} could not be saved: {words or 'elsewhere'};"
          f" the checkpoint of step {self._checkpoints.newest} is whole. Mend"
          " that, then run the same command"
        )
      _log.warning(
        "could not save step %d: %s; trying again in %d s",
        self._step,
        words,
        _AGAIN_AFTER,
      )
      time.sleep(_AGAIN_AFTER)

  def _stop(self, number):
    name = signal.Signals(number).name
    if self._window is None:
      # Nothing was done since the newest checkpoint, if there is one.
      self._checkpoints.wait()
      raise errors.Stopped(
        f"stopped by {name} at step {self._step}, nothing is lost"
      )
    self._save_surely()
    saved = self._checkpoints.newest
    what = "all saved" if saved == self._step else f"saved up to step {saved}"
    raise errors.Stopped(f"stopped by {name} at step {self._step}, {what}")

  def _log(self):
    """The metrics of a step, while the next one runs."""
    step, window = self._pending
    self._pending = None
    window = jax.device_get(window)
    found = _summary(self._task, window) | self._clock.read()
    found["lr"] = float(self._schedule(step - 1))
    found["images_seen"] = step * self._config.batch_size
    found["seconds"] = self._clock.total()
    if self._program.seconds:
      found["compile_seconds"], self._program.seconds = self._program.seconds, 0
    self._writer.write(step, found)
    self._bar.tell(step, found)
    trouble = self._in_trouble(window)
    if trouble or (window["skipped"] and self._config.precision != "fp16"):
      _log.warning(
        "%d of the last steps up to %d had a loss or a gradient that is not"
        " finite; they were not applied",
        window["skipped"],
        step,
      )
    # The next step is done as well, and may have been a good one.
    enough = window["streak"] >= self._config.rollback.after
    if trouble and enough and int(self._now.streak):
      raise _Diverged
    for words in (
      self._sentinel.verdict(step, found),
      self._supply.verdict(step, found["data_wait"]),
    ):
      if words:
        self._bar.say(words)

  def _in_trouble(self, window):
    """Whether the newest step was not finite.

    In fp16 an overflow now and then is how the loss scale finds its size; only
    a scale that keeps falling is trouble.
    """
    if self._config.precision == "fp16" and float(window["loss_scale"]) >= 1:
      return False
    return int(window["streak"]) > 0

  def _roll_back(self):
    """To the last checkpoint, past the images since then; once."""
    came_to, began = self._step, self._step - int(self._now.streak)
    samples, jumps = self._place["samples"], self._place["jumps"]
    fault = self._now, self._place
    self._checkpoints.wait()
    self._restore_before(began)
    if self._config.rollback.after == 0 or (
      jumps and self._step <= jumps[-1]["to"]
    ):
      divergence.keep(
        *fault, self._workdir, self._source, self._config, self._programs
      )
    _log.warning(
      "diverged: steps %d to %d were not finite. Back to step %d, leaving out"
      " the %d images that were seen since",
      began + 1,
      came_to,
      self._step,
      samples - self._place["samples"],
    )
    self._place["samples"] = samples
    # The beginning was evaluated before anything else.
    self._place["evaluated"] = max(self._place["evaluated"], 0)
    self._place["jumps"] = [*jumps, {"from": self._step, "to": came_to}]
    self._checkpoints.drop_after(self._step)
    self._writer.go_back(self._step, self._place["evaluated"])
    self._bar.go_back(self._step)
    self._clock.restart()


def _check_data(place, source):
  """The data must be what the checkpoint's run read."""
  if place["images"] != len(source):
    raise errors.UserError(
      f"the run was started on {place['images']} images, now there are"
      f" {len(source)}: put the data back as it was, or give another --workdir"
    )
  if place["fingerprint"] != source.fingerprint:
    raise errors.UserError(
      "the run was started on images of other names: put the data back as it"
      " was, or give another --workdir"
    )


def _summary(task, window):
  """Window sums to what the log shows: no means where no step was applied."""
  found = {
    name: float(window[name]) for name in ("stand_ins", "skipped", "loss_scale")
  }
  steps = float(window["steps"])
  if not steps:
    return found
  names = (*task.METRICS, "grad_norm")
  means = {name: float(window[name]) / steps for name in names}
  totals = {name: window[name] for name in task.totals}
  return means | found | task.report(totals)


def _line(found):
  # Of a probe's many heads the chosen one is enough; the rest is in the file.
  return ", ".join(
    f"{name} {value:.3f}" for name, value in found.items() if "@" not in name
  )
