"""Saving a run and going back: checkpoints, rollbacks, failing disks."""

import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import ml_collections

from seer_jax.data import sources
from seer_jax.runtime import distributed, errors, preemption
from seer_jax.tasks import state as state_lib
from seer_jax.training import divergence
from seer_jax.training import step as step_lib
from seer_jax.weights import checkpoint

_log = logging.getLogger(__name__)

# At the end, or when a signal asks to stop, a failed save is tried again:
# room may be made. Seconds.
_RETRY_EVERY, _RETRY_FOR = 10, 1800


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a run has come, beside its state; saved with each checkpoint."""

  samples: int  # Number of the next sample.
  images: int  # Of the source, which must not change.
  fingerprint: str
  evaluated: int = -1  # Step of the last evaluation, -1 before the first.
  # Its values, if the checkpoint is of that step.
  evaluation: Mapping[str, float] = dataclasses.field(default_factory=dict)
  lines: int = 0  # Of `metrics.jsonl` up to here.
  # Of each rollback, the steps that it led to and came from.
  jumps: tuple[Mapping[str, int], ...] = ()
  seconds: float = 0.0  # Of training so far, over all starts.

  @classmethod
  def of_checkpoint(cls, saved: Mapping[str, Any]) -> "Progress":
    """From JSON; older checkpoints lack `lines`."""
    return cls(**saved | {"jumps": tuple(saved["jumps"])})

  def replace(self, **changes: Any) -> "Progress":
    return dataclasses.replace(self, **changes)

  def check(self, source: sources.Source) -> None:
    """Raises UserError if the run was started on other images."""
    if self.images != len(source):
      raise errors.UserError(
        f"the run was started on {self.images} images, but there are now"
        f" {len(source)}; restore the data, or give another --workdir"
      )
    if self.fingerprint != source.fingerprint:
      raise errors.UserError(
        "the run was started on images with other names; restore the data, or"
        " give another --workdir"
      )


class Saver:
  """Writes and restores the checkpoints of a run.

  Attributes:
    checkpoints: of the workdir.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    source: sources.Source,
    programs: step_lib.Programs,
    begin: Callable[[], state_lib.State],
  ):
    """Opens the folder of checkpoints.

    Args:
      begin: makes the state before the first step.
    """
    self._config, self._workdir, self._source = config, workdir, source
    self._programs, self._begin = programs, begin
    self.checkpoints = checkpoint.Checkpoints(
      workdir / "checkpoints", config.checkpoint
    )
    self.checkpoints.folder.clean_up()
    # The step at which a failed save is due again, and the newest checkpoint
    # when one last failed.
    self._retry_at, self._failed_after = 0, None

  def restore(self) -> tuple[state_lib.State, Progress]:
    """State and progress of the newest checkpoint, or of the start."""
    return self._checked(self._found())

  def _found(self, wanted=lambda step: True):
    programs = self._programs
    return self.checkpoints.restore(
      programs.abstract, programs.unpadded, wanted
    )

  def _checked(self, found):
    source = self._source
    if found is None:
      return self._begin(), Progress(0, len(source), source.fingerprint)
    state, progress = found[0], Progress.of_checkpoint(found[1])
    progress.check(source)
    return state, progress

  def save(
    self, step: int, state: state_lib.State, progress: Progress, problem: str
  ) -> None:
    """Starts writing a checkpoint.

    Args:
      step: number of updates done.
      problem: why the metrics up to here could not be written, or "": a
        checkpoint vouches for every line before it.
    """
    if distributed.any_of(bool(problem)):
      self.checkpoints.fail(problem)
      return
    if progress.evaluated != step:
      progress = progress.replace(evaluation={})
    self.checkpoints.save(
      step, state, self._programs.unpadded, dataclasses.asdict(progress)
    )

  def is_due(self, step: int, first: int) -> bool:
    """Whether to save before a step of a run that resumed at the first."""
    regular = step > first and step % self._config.checkpoint.every == 0
    return regular or step == self._retry_at > 0

  def postpone(self, step: int) -> None:
    """Makes a save due at a later step."""
    self._retry_at = step

  def news(self, step: int) -> tuple[bool, bool]:
    """Whether the last save failed, and whether too many steps are at risk."""
    newest, options = self.checkpoints.newest, self._config.checkpoint
    risk, failure = step - newest, self.checkpoints.failure()
    if failure:
      _log.warning(
        "could not save: %s; %d steps are at risk, the checkpoint of step %d is"
        " complete. Training continues",
        failure,
        risk,
        newest,
      )
      self._failed_after = newest
    still_failing = self._failed_after == newest
    return bool(failure), still_failing and risk > options.risk * options.every

  def lost(self) -> errors.Lost:
    """The error for too many steps at risk."""
    return errors.Lost(
      f"nothing could be saved since step {self.checkpoints.newest}, and"
      f" config.checkpoint.risk={self._config.checkpoint.risk:g} allows no"
      " more; repair the disk of the workdir, then run the same command"
    )

  def roll_back(
    self, step: int, state: state_lib.State, progress: Progress
  ) -> tuple[state_lib.State, Progress]:
    """Goes back to a checkpoint, and past the images seen since then.

    Raises UserError if it diverges a second time, or `rollback.after` is 0.
    """
    began = step - int(state.nonfinite_steps)
    self.checkpoints.wait()
    before, then = self._restore_before(began)
    at, jumps = int(before.step), progress.jumps
    if self._config.rollback.after == 0 or (jumps and at <= jumps[-1]["to"]):
      divergence.keep(
        state,
        dataclasses.asdict(progress),
        self._workdir,
        self._source,
        self._config,
        self._programs,
      )
    _log.warning(
      "diverged: steps %d to %d were not finite. Going back to step %d, and"
      " leaving out the %d images seen since then",
      began + 1,
      step,
      at,
      progress.samples - then.samples,
    )
    self.checkpoints.folder.drop_after(at)
    return before, then.replace(
      samples=progress.samples,
      # The start was evaluated before anything else.
      evaluated=max(then.evaluated, 0),
      jumps=(*jumps, {"from": at, "to": step}),
    )

  def _restore_before(self, step):
    """The checkpoint that an undisturbed run would go back to.

    That is one of `checkpoint.every`, from before the divergence; or the start.
    """
    every = self._config.checkpoint.every
    found = None
    if step >= every:
      found = (
        self._found(lambda saved: saved <= step and saved % every == 0)
        # The interval was another, or a save failed.
        or self._found(lambda saved: saved <= step)
        # In fp16, steps that overflow are harmless until there are too many.
        or self._found()
      )
    return self._checked(found)


def stop(
  checkpoints: checkpoint.Checkpoints,
  save: Callable[[], None] | None,
  step: int,
  number: int,
  preempted: preemption.Preemption,
) -> NoReturn:
  """Saves, unless there is nothing new (`save` is None), and stops.

  Raises:
    Stopped: always, naming the signal of that number.
  """
  if save is None:
    checkpoints.wait()
    outcome = "nothing is lost"
  else:
    save_or_fail(checkpoints, save, step, preempted)
    saved = checkpoints.newest
    outcome = "all saved" if saved == step else f"saved up to step {saved}"
  name = signal.Signals(number).name
  raise errors.Stopped(f"stopped by {name} at step {step}, {outcome}")


def save_or_fail(
  checkpoints: checkpoint.Checkpoints,
  save: Callable[[], None],
  step: int,
  preempted: preemption.Preemption,
) -> None:
  """Saves and waits; if it fails, tries again until a second signal comes.

  Raises Lost if the disk does not take it.
  """
  began = time.monotonic()
  checkpoints.wait()
  checkpoints.failure()  # Of a save that this one replaces.
  while True:
    save()
    checkpoints.wait()
    failure = checkpoints.failure()
    if not distributed.any_of(bool(failure)):
      return
    tired = time.monotonic() - began > _RETRY_FOR or preempted.repeated
    if distributed.any_of(tired):
      raise errors.Lost(
        f"step {step} could not be saved: {failure or 'in another process'};"
        f" the checkpoint of step {checkpoints.newest} is complete. Repair"
        " the disk, then run the same command"
      )
    _log.warning(
      "could not save step %d: %s; trying again in %d s",
      step,
      failure,
      _RETRY_EVERY,
    )
    time.sleep(_RETRY_EVERY)
