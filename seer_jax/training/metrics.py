"""Metrics of a run on disk: JSON lines, and TensorBoard's event files."""

import contextlib
import json
import logging
import os
import pathlib
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)


# Names in the files of older runs, and what they are today.
_RENAMED = {"stand_ins": "replacements"}


class Writer:
  """Appends to `metrics.jsonl` and to TensorBoard's event files.

  A run that resumes at a step first drops what was written after it, so that
  the file has neither gaps nor repetitions. Lines that cannot be written are
  kept, and tried again with the next one.

  Attributes:
    count: lines of the file, and those that wait to be written.
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
    self._warned = False
    self._board = _Board(workdir / "tensorboard")
    self._file = None
    self.go_back(resumed_at, evaluated)

  def go_back(self, step: int | None, evaluated: int | None = None) -> None:
    """Drops what was written after a step.

    Raises UserError if this user may not read or write the file and Lost if the
    disk does not take it.

    Args:
      step: the last to keep; None keeps none.
      evaluated: step of the last evaluation to keep, if it is another: a run
        that was stopped in one repeats it.
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
      raise errors.of_disk(
        error,
        f"cannot read and write {self._path}: {error.strerror}; fix that,"
        " then run the same command",
      ) from error
    self.count = len(kept)
    self._board.go_back(0 if step is None else step + 1)

  def _begin_with(self, lines):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files.write_text(self._path, text)
    if self._file:
      self._file.close()
    # Unbuffered, so that `_waiting` has all that is not on disk.
    self._file = self._path.open("ab", buffering=0)
    self._waiting = []

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes a line; `step` is the number of updates done."""
    self._waiting.append(json.dumps({"step": step} | metrics) + "\n")
    self.count += 1
    self._write_waiting()
    self._board.write(step, metrics)

  def missing(self, lines: int, every: int, step: int) -> str:
    """A sentence about the lines that the file lacks; "" if it has all.

    Args:
      lines: how many it had, of steps and of evaluations.
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
    """Forces every line to disk; why that failed, or ""."""
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
        self._file.truncate(end)  # Drop a partial last line.
      if not self._warned:
        _log.warning(
          "cannot write %s: %s; its lines are kept, and tried again",
          self._path,
          error.strerror,
        )
      self._warned = True
      return f"{error.strerror} ({self._path})"
    self._waiting, self._warned = [], False
    return ""


class _Board:
  """TensorBoard's files: a convenience, without which training continues.

  They are written in this thread. The thread of tensorboardX's SummaryWriter,
  which has `purge_step` too, dies when the disk is full, and a later call
  blocks forever (tensorboardX 2.6.5 on a full tmpfs: no return within 90 s).
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._events = folder, None

  def go_back(self, step: int) -> None:
    """Opens a file that tells readers to drop this step and later ones."""
    self.close()
    with self._until_the_disk_refuses():
      self._folder.mkdir(exist_ok=True)
      # TensorBoard reads files in the order of their names.
      prefix = self._folder / f"events.{time.time_ns()}"
      self._events = event_file_writer.EventsWriter(str(prefix))
      log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(event_pb2.Event(session_log=log), step)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    with self._until_the_disk_refuses():
      for name, value in metrics.items():
        scalar = summary.scalar(name, value)
        self._add(event_pb2.Event(summary=scalar), step)
      if self._events:
        self._events.flush()

  def close(self) -> None:
    with self._until_the_disk_refuses():
      if self._events:
        self._events.close()

  def _add(self, event, step):
    if self._events:
      event.wall_time, event.step = time.time(), step
      self._events.write_event(event)

  @contextlib.contextmanager
  def _until_the_disk_refuses(self):
    try:
      yield
    except OSError as error:
      self._events = None
      _log.warning(
        "TensorBoard's files end here: %s (%s)", error.strerror, self._folder
      )


def _ranges(path, every, last):
  """Steps that a metrics file lacks, such as "20 to 60, 90"; "" of none."""
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
  """The Writer of processes that are not the primary one: does nothing."""

  count = 0

  def missing(self, *args: int) -> str:
    return ""

  def flush(self) -> str:
    return ""

  def go_back(self, *args: int | None) -> None: ...

  def write(self, step: int, metrics: dict[str, float]) -> None: ...

  def close(self) -> None: ...


def read_lines(path: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a metrics file; [] if it is absent. Skips damaged ones."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text(errors="replace").splitlines():
    try:
      line = json.loads(text)
    except ValueError:
      continue  # Cut off when the run was killed.
    if isinstance(line, dict) and isinstance(line.get("step"), int):
      lines.append({_RENAMED.get(key, key): x for key, x in line.items()})
  return lines
