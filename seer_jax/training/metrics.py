"""Metrics on their way out: JSON lines, TensorBoard, the progress bar."""

import contextlib
import json
import logging
import os
import pathlib
import sys
import time
from typing import TextIO

import tqdm
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from seer_jax.runtime import checksums, errors

_log = logging.getLogger(__name__)


class Writer:
  """Appends to `metrics.jsonl` and to TensorBoard's event files.

  A run that resumes at a step first drops what was written after it, so that
  the file has no gap and nothing twice. What cannot be written is kept and
  tried again with the next line.

  Attributes:
    count: of the lines of the file, and of those that wait to be written.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    resumed_at: int | None,
    evaluated: int | None = None,
  ):
    """See `go_back`."""
    self._path = workdir / "metrics.jsonl"
    self._waiting: list[str] = []
    self._told = False
    self._board = _Board(workdir / "tensorboard")
    self._file = None
    self.go_back(resumed_at, evaluated)

  def go_back(self, step: int | None, evaluated: int | None = None) -> None:
    """Drops what was written after a step.

    Args:
      step: the last to keep; None keeps none.
      evaluated: the last whose evaluation is to be kept, where that is another:
        a run that was stopped in one will do it again.

    Raises:
      UserError: this user may not read or write the file.
      Lost: the disk does not take it.
    """
    last = step if evaluated is None else evaluated
    try:
      kept = [
        line
        for line in read_lines(self._path)
        if step is not None
        and line["step"] <= (last if "eval_seconds" in line else step)
      ]
      self._begin_with(kept)
    except OSError as error:
      forbidden = isinstance(error, PermissionError)
      raise (errors.UserError if forbidden else errors.Lost)(
        f"cannot read and write {self._path}: {error.strerror}; mend that, then"
        " run the same command"
      ) from error
    self.count = len(kept)
    self._board.go_back(0 if step is None else step + 1)

  def _begin_with(self, lines):
    temporary = self._path.with_suffix(".tmp")
    with temporary.open("w") as file:
      file.writelines(json.dumps(line) + "\n" for line in lines)
      file.flush()
      os.fsync(file.fileno())
    temporary.rename(self._path)
    checksums.flush(self._path.parent)
    if self._file:
      self._file.close()
    # Unbuffered: what is not on disk stands in `_waiting` and nowhere else.
    self._file = self._path.open("ab", buffering=0)
    self._waiting = []

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """One line; `step` is how many updates were done."""
    self._waiting.append(json.dumps({"step": step} | metrics) + "\n")
    self.count += 1
    self._write_waiting()
    self._board.write(step, metrics)

  def missing(self, lines: int, every: int, step: int) -> str:
    """Says what the file lacks; "" when nothing.

    Args:
      lines: that it had, of steps and of evaluations.
      every: steps between two of them.
      step: the last of them.
    """
    if self.count >= lines:
      return ""
    steps = _ranges(self._path, every, step)
    which = f", those of steps {steps}" if steps else ""
    return (
      f"{self._path} lacks {lines - self.count} of its {lines} lines up to step"
      f" {step}{which}: it was removed, cut or damaged"
    )

  def flush(self) -> str:
    """Sees that the disk has every line; says why not, else ""."""
    return self._write_waiting(flush=True)

  def close(self) -> None:
    self.flush()
    self._file.close()
    self._board.close()

  def _write_waiting(self, flush=False):
    end = None
    try:
      end = self._file.seek(0, os.SEEK_END)
      data = "".join(self._waiting).encode()
      while data:
        data = data[self._file.write(data) :]
      if flush:
        os.fsync(self._file.fileno())
    except OSError as error:
      with contextlib.suppress(OSError):
        self._file.truncate(end)  # Half a line is none.
      if not self._told:
        _log.warning(
          "cannot write %s: %s; its lines are kept, and tried again",
          self._path,
          error.strerror,
        )
      self._told = True
      return f"{error.strerror} ({self._path})"
    self._waiting, self._told = [], False
    return ""


class _Board:
  """TensorBoard's files: a convenience, without which training goes on.

  Written in this thread: the one of tensorboardX's own writer dies of a full
  disk, and whoever then closes it waits for ever.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._events = folder, None

  def go_back(self, step: int) -> None:
    """Opens a file that says: forget what has this step or a later one."""
    self.close()
    with self._in_good_weather():
      self._folder.mkdir(exist_ok=True)
      # TensorBoard reads files in the order of their names.
      prefix = self._folder / f"events.{time.time_ns()}"
      self._events = event_file_writer.EventsWriter(str(prefix))
      log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(event_pb2.Event(session_log=log), step)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    if self._events:
      with self._in_good_weather():
        for name, value in metrics.items():
          scalar = summary.scalar(name, value)
          self._add(event_pb2.Event(summary=scalar), step)
        self._events.flush()

  def close(self) -> None:
    if self._events:
      with self._in_good_weather():
        self._events.close()

  def _add(self, event, step):
    event.wall_time, event.step = time.time(), step
    self._events.write_event(event)

  @contextlib.contextmanager
  def _in_good_weather(self):
    try:
      yield
    except OSError as error:
      self._events = None
      _log.warning(
        "TensorBoard's files end here: %s (%s)", error.strerror, self._folder
      )


def _ranges(path, every, last):
  """Steps that a metrics file lacks: "20 to 60, 90"; "" if it has them all."""
  there = {
    line["step"] for line in read_lines(path) if "eval_seconds" not in line
  }
  ranges: list[list[int]] = []
  for step in range(every, last + 1, every):
    if step in there:
      continue
    if ranges and step == ranges[-1][1] + every:
      ranges[-1][1] = step
    else:
      ranges.append([step, step])
  shown = [f"{a} to {b}" if a < b else f"{a}" for a, b in ranges[:3]]
  return ", ".join(shown + ["..."] * (len(ranges) > 3))


class NoWriter:
  """In the place of a Writer, for processes that are not the first."""

  count = 0

  def missing(self, lines: int, every: int, step: int) -> str:
    """The first process says it."""
    return ""

  def go_back(self, step: int | None, evaluated: int | None = None) -> None:
    """Nothing was written."""

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Leaves it to the first process."""

  def flush(self) -> str:
    """Nothing waits."""
    return ""

  def close(self) -> None:
    """Nothing to do."""


def read_lines(path: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a metrics file; none when absent, none that is damaged."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(errors="replace").splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue  # Torn by a kill in the middle of a write.
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      lines.append(line)
  return lines


class Clock:
  """Where the time of the loop goes; pauses are not counted."""

  def __init__(self, images_per_step: int, seconds: float = 0):
    """Takes the images of a step, and the seconds that a run has behind it."""
    self._images = images_per_step
    self._earlier, self._began = seconds, time.perf_counter()
    self._start = time.perf_counter()
    self._steps = 0
    self._waited = 0.0

  def tick(self, waited: float) -> None:
    """Counts a step that waited this many seconds for its batch."""
    self._steps += 1
    self._waited += waited

  def read(self) -> dict[str, float]:
    """Images a second and the share of time waiting, since the last reading."""
    now = time.perf_counter()
    seconds = max(now - self._start, 1e-9)
    reading = {
      "images_per_second": self._steps * self._images / seconds,
      "data_wait": self._waited / seconds,
    }
    self._start, self._steps, self._waited = now, 0, 0.0
    return reading

  def total(self) -> float:
    """Seconds of the whole run, pauses and earlier starts included."""
    return self._earlier + time.perf_counter() - self._began

  def restart(self) -> None:
    """Forgets what was counted: after a pause for evaluation or saving."""
    self._start, self._steps, self._waited = time.perf_counter(), 0, 0.0


class Bar:
  """Step, loss, images/s, waiting share and ETA.

  A live bar on a terminal; in a file, a plain line each time it is told
  something; nothing when `silent`, in processes that are not the first.
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
    self._live = file.isatty()
    self._file = file
    self._total = steps
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
    """Counts one step; the first compiles, and tells nothing of the rest."""
    self._done += 1
    self._bar.update()
    if self._began is None:
      self._began, self._from = time.perf_counter(), self._done

  def go_back(self, step: int) -> None:
    """Counts on from an earlier step."""
    self._done = self._from = self._bar.n = step
    self._began = None

  def tell(self, step: int, metrics: dict[str, float]) -> None:
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
    """A line that stays, above the bar."""
    # Where output goes to a file on a full disk, training matters more.
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
