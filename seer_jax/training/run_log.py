"""What a run logs while it trains: metrics, progress bar, advice."""

import contextlib
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import ml_collections
import tqdm

from seer_jax.evals.groups import rates
from seer_jax.runtime import distributed, host
from seer_jax.tasks import base
from seer_jax.training import metrics, monitors

_log = logging.getLogger(__name__)


class RunLog:
  """Writes metrics, shows progress, and warns of a collapse or slow input.

  Attributes:
    writer: of `metrics.jsonl`.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    task: base.Task,
    schedule: Callable[[int], Any],
  ):
    """Takes the config, resolved, and the schedule of the learning rate."""
    self._config, self._workdir = config, workdir
    self._task, self._schedule = task, schedule

  def open(
    self, step: int, evaluated: int, lines: int, seconds: float
  ) -> "RunLog":
    """Resumes the log of a run.

    Args:
      step: number of updates done, 0 at the start.
      evaluated: step of the last evaluation, -1 before the first.
      lines: that `metrics.jsonl` should have.
      seconds: of training so far.
    """
    config, primary = self._config, distributed.is_primary()
    resumed_at = step if step > 0 else None
    if primary and (self._workdir / "divergence").exists():
      _log.warning(
        "an earlier start of this run diverged and stopped; seer-jax replay"
        " looks for the cause"
      )
    if resumed_at:
      _log.info("resumed at step %d of %d", step, config.steps)
    self.writer = (
      metrics.Writer(self._workdir, resumed_at, evaluated)
      if primary
      else metrics.NoWriter()
    )
    # A checkpoint is saved once all lines up to it are on disk.
    missing = self.writer.missing(lines, config.log.every, step)
    if resumed_at and missing:
      _log.warning("%s. The run continues; its curves have a gap", missing)
    self._bar = Bar(config.steps, step, silent=not primary)
    self._clock = Clock(config.batch_size, seconds)
    self._collapse = monitors.CollapseMonitor(config)
    self._stall = monitors.InputStallMonitor(config.data.workers, host.cores())
    return self

  @property
  def seconds(self) -> float:
    """Of the whole run, pauses and earlier starts included."""
    return self._clock.total()

  def step(self, waited: float) -> None:
    """Counts a step that waited this many seconds for its batch."""
    self._clock.tick(waited)
    self._bar.step()

  def metrics(
    self, step: int, window: Mapping[str, Any], **more: float
  ) -> None:
    """Logs a window of metrics (`step.train_step`) that ends with a step."""
    found = _summary(self._task, window) | self._clock.read() | more
    found["lr"] = float(self._schedule(step - 1))
    found["images_seen"] = step * self._config.batch_size
    found["seconds"] = self.seconds
    self.writer.write(step, found)
    self._bar.tell(step, found)
    for advice in (
      self._collapse.advice(step, found),
      self._stall.advice(step, found["data_wait"]),
    ):
      if advice:
        self._bar.say(advice)

  def evaluation(
    self, step: int, found: Mapping[str, float], seconds: float
  ) -> None:
    """Logs an evaluation that took so long."""
    self.writer.write(step, dict(found) | {"eval_seconds": seconds})
    # Of a probe's many heads the chosen one is enough; the rest is in the file.
    # The same for groups of images.
    shown = [f"{k} {found[k]:.3f}" for k in rates.whole(found) if "@" not in k]
    self._bar.say(
      f"step {step}: {', '.join(shown)}, eval_seconds {seconds:.3f}"
    )
    self.resume()

  def resume(self) -> None:
    """After a pause, which the images per second do not count."""
    self._clock.restart()

  def go_back(self, step: int, evaluated: int) -> None:
    """Drops what was written after a step that a run goes back to."""
    self.writer.go_back(step, evaluated)
    self._bar.go_back(step)
    self.resume()

  def close(self) -> None:
    self._bar.close()
    self.writer.close()


def _summary(task, window):
  """Window sums to what the log shows; no means if no step was applied."""
  found = {
    name: float(window[name])
    for name in ("replacements", "skipped", "loss_scale")
  }
  steps = float(window["steps"])
  if not steps:
    return found
  names = (*task.METRICS, "grad_norm")
  means = {name: float(window[name]) / steps for name in names}
  totals = {name: window[name] for name in task.totals}
  return means | found | task.report(totals)


class Clock:
  """Images per second and waiting, without the pauses between steps."""

  def __init__(self, images_per_step: int, seconds: float = 0):
    """Takes the images of a step, and the seconds of earlier starts."""
    self._images = images_per_step
    self._earlier, self._began = seconds, time.perf_counter()
    self.restart()

  def tick(self, waited: float) -> None:
    """Counts a step that waited this many seconds for its batch."""
    self._steps += 1
    self._waited += waited

  def read(self) -> dict[str, float]:
    """Images a second and the share of time waiting, since the last reading."""
    seconds = max(time.perf_counter() - self._start, 1e-9)
    reading = {
      "images_per_second": self._steps * self._images / seconds,
      "data_wait": self._waited / seconds,
    }
    self.restart()
    return reading

  def total(self) -> float:
    """Seconds of the whole run, pauses and earlier starts included."""
    return self._earlier + time.perf_counter() - self._began

  def restart(self) -> None:
    """Forgets what was counted: after a pause for evaluation or saving."""
    self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0


class Bar:
  """Step, loss, images a second, share of waiting, and the time left.

  A live bar on a terminal; in a file, a plain line for each reading; nothing
  when `silent`, in processes that are not the primary one.
  """

  def __init__(
    self,
    steps: int,
    done: int,
    file: TextIO | None = None,
    silent: bool = False,
  ):
    file = file or sys.stderr
    file = open(os.devnull, "w") if silent else file  # noqa: SIM115
    self._live, self._file, self._total = file.isatty(), file, steps
    self._bar = tqdm.tqdm(
      total=steps,
      initial=done,
      file=file,
      disable=not self._live,
      dynamic_ncols=True,
      unit="step",
    )
    self._began, self._from, self._done = None, done, done

  def step(self) -> None:
    """Counts a step; the time left ignores the first, which compiles."""
    self._done += 1
    self._bar.update()
    if self._began is None:
      self._began, self._from = time.perf_counter(), self._done

  def go_back(self, step: int) -> None:
    """Counts on from an earlier step."""
    self._done = self._from = self._bar.n = step
    self._began = None

  def tell(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the newest metrics, those of `step`."""
    text = "no step was finite"
    if "loss" in metrics:
      text = f"loss {metrics['loss']:.3f}"
    if "loss_over_lnk" in metrics:
      text += f" ({metrics['loss_over_lnk']:.2f} ln K)"
    text += (
      f", {metrics['images_per_second']:.0f} img/s,"
      f" data wait {metrics['data_wait']:.0%}"
    )
    if self._live:
      self._bar.set_postfix_str(text)
    else:
      self.say(f"step {step}/{self._total}, {text}, ETA {self._eta()}")

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    # If standard error is a file on a full disk, training continues.
    with contextlib.suppress(OSError):
      self._bar.write(text, file=self._file)
      self._file.flush()

  def close(self) -> None:
    self._bar.close()

  def _eta(self):
    spent = time.perf_counter() - self._began
    left = self._total - self._done
    return self._bar.format_interval(
      spent / max(self._done - self._from, 1) * left
    )
