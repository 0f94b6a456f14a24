"""Metrics on their way out: JSON lines, TensorBoard, the progress bar."""

import json
import os
import pathlib
import sys
import time
from typing import TextIO

import tensorboardX
import tqdm


class Writer:
  """Appends to `metrics.jsonl` and to TensorBoard's event files.

  A run that resumes at a step first drops what was written after it, so that
  the file has no gap and nothing twice.
  """

  def __init__(self, workdir: pathlib.Path, resumed_at: int | None):
    path = workdir / "metrics.jsonl"
    kept = [
      line
      for line in read_lines(path)
      if resumed_at is not None and line["step"] <= resumed_at
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.rename(path)
    self._file = path.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"),
      purge_step=0 if resumed_at is None else resumed_at + 1,
    )

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """One line; `step` is how many updates were done."""
    self._file.write(json.dumps({"step": step} | metrics) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._file.close()
    self._board.close()


class NoWriter:
  """In the place of a Writer, for processes that are not the first."""

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Leaves it to the first process."""

  def close(self) -> None:
    """Nothing to do."""


def read_lines(path: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a metrics file; none when absent, nor a last torn one."""
  if not path.exists():
    return []
  lines = []
  for text in path.read_text().splitlines():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      # Only a kill in the middle of the last write can tear a line.
      break
  return lines


class Clock:
  """Where the time of the loop goes; pauses are not counted."""

  def __init__(self, images_per_step: int):
    self._images = images_per_step
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
    file: TextIO = sys.stderr,
    silent: bool = False,
  ):
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

  def tell(self, step: int, metrics: dict[str, float]) -> None:
    """Shows the newest metrics, those of `step`."""
    text = (
      f"loss {metrics['loss']:.3f} ({metrics['loss_over_lnk']:.2f} ln K),"
      f" {metrics['images_per_second']:.0f} img/s,"
      f" data wait {metrics['data_wait']:.0%}"
    )
    if self._live:
      self._bar.set_postfix_str(text)
    else:
      self.say(f"step {step}/{self._total}, {text}, ETA {self._eta()}")

  def say(self, text: str) -> None:
    """A line that stays, above the bar."""
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
