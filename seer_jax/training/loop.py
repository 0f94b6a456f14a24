"""The training loop. There is one in the package."""

import contextlib
import logging
import pathlib
import time

import jax
import ml_collections

from seer_jax.data import pipeline, sources
from seer_jax.evals import suite
from seer_jax.runtime import distributed, errors, preemption, watchdog
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base
from seer_jax.training import divergence, optim, program, run_log, saving
from seer_jax.training import step as step_lib
from seer_jax.weights import warm_start

_log = logging.getLogger(__name__)


class _Diverged(Exception):
  """Too many steps in a row were not finite."""


class Loop:
  """A run from its newest checkpoint to its end.

  Attributes:
    _state: of the run.
    _step: number of updates done: `_state.step`, without asking the device.
    _progress: how far the run has come, beside its state.
    _window: metrics of the newest step, on the device; None before the first.
    _pending: (step, window) to log while the next step runs, or None.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    source: sources.Source,
    mesh: jax.sharding.Mesh,
    images: suite.Sets,
    task: base.Task,
    preempted: preemption.Preemption,
    stack: contextlib.ExitStack,
  ):
    """Restores the newest checkpoint, or starts.

    The config is resolved and the mesh set (`jax.set_mesh`); `preempted`
    catches signals already; `stack` closes what is opened here.
    """
    self._config, self._source, self._mesh = config, source, mesh
    self._task, self._preempted = task, preempted
    self._over_processes = distributed.MaxOverProcesses(mesh, 3)
    self._watchdog = watchdog.Watchdog(
      workdir, config.watchdog, jax.process_index()
    )
    tx, schedule = optim.make(
      config.optim, config.steps, config.batch_size, task
    )
    programs = step_lib.build(task, tx, config, mesh)
    if config.mesh.fsdp > 1:
      _log.info("%s", mesh_lib.describe(programs.unpadded, mesh))
    self._program = program.Program(
      programs.step, workdir, config.profile, distributed.is_primary()
    )
    self._saver = saving.Saver(
      config,
      workdir,
      source,
      programs,
      begin=lambda: warm_start.begin(programs.init(), task, config, mesh),
    )
    self._take(*self._saver.restore())
    self._evaluation = suite.Evaluation(
      config, images, task.encoder, task.dtype, mesh, self._in_evaluation
    )
    self._bad_images = pipeline.BadImages(
      source, workdir, config.data.max_bad, config.data.max_pixels
    )
    done = self._progress
    self._run_log = run_log.RunLog(config, workdir, task, schedule).open(
      self._step, done.evaluated, done.lines, done.seconds
    )
    for each in (self._run_log, self._saver.checkpoints, self._watchdog):
      stack.enter_context(contextlib.closing(each))

  def _take(self, state, progress):
    self._state, self._progress = state, progress
    self._step = int(state.step)
    self._window = self._pending = None

  def run(self) -> None:
    """Trains to the end, with rollbacks on the way if it diverges."""
    if self._step == 0:
      self._evaluate()
    while self._step < self._config.steps:
      try:
        self._train()
      except _Diverged:
        self._take(
          *self._saver.roll_back(self._step, self._state, self._progress)
        )
        self._run_log.go_back(self._step, self._progress.evaluated)
    if self._progress.evaluated != self._step:
      self._evaluate()
      saving.save_or_fail(
        self._saver.checkpoints, self._save, self._step, self._preempted
      )

  def _train(self):
    """Takes steps to the end.

    Evaluates and saves before it draws the batch, so that a checkpoint and its
    progress agree; reads the metrics of a step only after the next one is under
    way, so that the device never waits for the host.
    """
    config, first = self._config, self._step
    with contextlib.closing(
      pipeline.train_batches(
        self._source,
        config,
        self._mesh,
        self._progress.samples,
        self._bad_images,
      )
    ) as batches:
      while self._step < config.steps:
        self._before_step(first)
        self._take_step(batches)
        if self._step % config.log.every == 0 or self._step == config.steps:
          self._pending = self._step, self._window
      if self._pending:
        self._log()

  def _before_step(self, first):
    """Evaluates, saves or stops, if that is due before this step."""
    step, every = self._step, self._config.eval.every
    stopping, failed, lost = self._over_processes.agree(*self._news())
    if failed:
      self._saver.postpone(step + max(1, self._config.checkpoint.every // 10))
    saves = self._saver.is_due(step, first)
    evaluates = every and step % every == 0 and self._progress.evaluated != step
    if self._pending and (saves or evaluates or stopping):
      self._log()
    if stopping:
      self._stop(stopping)
    if evaluates:
      self._evaluate()
      # The checkpoint that the run came from lacks this evaluation.
      saves = saves or step == first > 0
    if saves and divergence.is_nonfinite(self._window, self._config):
      self._saver.postpone(step + 1)  # Rollbacks go to states from before it.
    elif saves:
      self._save()
    if lost:
      raise self._saver.lost()

  def _news(self):
    """What all processes must know before a step."""
    return self._preempted.signal, *self._saver.news(self._step)

  def _take_step(self, batches):
    """One step; then logs the metrics of an earlier one, if they are due."""
    first = self._window is None
    self._watchdog.at(
      f"waiting for the images of step {self._step}{batches.awaited}", first
    )
    began = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - began
    self._watchdog.at(f"computing step {self._step}", first)
    self._state, self._window = self._program(self._step, self._state, batch)
    self._step += 1
    self._progress = self._progress.replace(
      samples=self._progress.samples + self._config.batch_size
    )
    if divergence.ends_at_once(self._window, self._config):
      raise _Diverged
    self._run_log.step(waited)
    if self._pending:
      self._log()

  def _evaluate(self):
    self._watchdog.at(f"evaluating at step {self._step}", patient=True)
    began = time.perf_counter()
    found = self._evaluation.run(self._task.variables(self._state))
    _check_best(self._config.checkpoint, found)
    self._progress = self._progress.replace(
      evaluated=self._step, evaluation=found
    )
    self._run_log.evaluation(self._step, found, time.perf_counter() - began)

  def _in_evaluation(self):
    """Runs between two batches of an evaluation."""
    self._watchdog.at(f"evaluating at step {self._step}", patient=True)
    stopping, *_ = self._over_processes.agree(self._preempted.signal, 0, 0)
    if stopping:
      self._stop(stopping)

  def _save(self):
    self._watchdog.at(f"saving step {self._step}", patient=True)
    problem = self._run_log.writer.flush()
    progress = self._progress.replace(
      seconds=self._run_log.seconds, lines=self._run_log.writer.count
    )
    self._saver.save(self._step, self._state, progress, problem)
    self._run_log.resume()

  def _stop(self, number):
    # Without a step there is nothing new to save.
    save = self._save if self._window is not None else None
    saving.stop(
      self._saver.checkpoints, save, self._step, number, self._preempted
    )

  def _log(self):
    """Logs the metrics of a step, while the next one runs."""
    step, window = self._pending
    self._pending, window = None, jax.device_get(window)
    self._run_log.metrics(step, window, **self._program.pop_seconds())
    divergence.warn(step, window, self._config)
    if divergence.lasts(window, self._state, self._config):
      raise _Diverged


def _check_best(options, found):
  wanted = options.best_metric
  if options.best and wanted not in found:
    raise errors.UserError(
      f"config.checkpoint.best_metric is {wanted!r}, which is not evaluated:"
      f" name one of {', '.join(found)}, or leave out config.checkpoint.best"
    )
