"""Data workers: how they begin, what is said of their end, their memory.

They hand over batches in shared memory. A batch lies in /dev/shm until the run
has read it. Python's resource tracker removes what a run leaves there; but a
kill of the whole process group kills the tracker as well, and the memory stays
taken until the machine restarts. So segments are named after their run, and the
next run of the same user removes those whose run is gone.
"""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import pathlib
import re
import secrets
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory
from typing import Any

from seer_jax.runtime import errors, files, host, preemption

_log = logging.getLogger(__name__)

_FOLDER = pathlib.Path("/dev/shm")  # Where Linux shows segments as files.
_ENDS_IN = 5  # Seconds.
_PREFIX, _NAME = "seer_jax", "data worker"


class Batches:
  """Batches of some workers, with their failures in plain words."""

  def __init__(
    self,
    batches: Iterator[dict[str, Any]],
    workers: int,
    close: Callable[[], None],
  ):
    """Wraps grain's iterator.

    Args:
      workers: how many processes make them in turn; 0 for threads of this one.
    """
    self._batches, self._count, self._close = batches, workers, close
    self._workers: dict[str, multiprocessing.Process] = {}
    self._next = 0

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return self

  def __next__(self) -> dict[str, Any]:
    try:
      batch = next(self._batches)
    except RuntimeError as error:
      if not re.search(r"exit code -?\d+", str(error)):
        raise
      raise errors.Lost(
        f"{self._dead()}. The same command resumes; --config.data.workers=N"
        " sets how many there are"
      ) from error
    # In time: the dead are no longer among the children when they are missed.
    if len(self._workers) < self._count:
      self._workers |= _named(multiprocessing.active_children())
    self._next += 1
    return batch

  @property
  def awaited(self) -> str:
    """Which worker makes the next batch, in words; "" where none does."""
    name = f"{_NAME} {self._next % max(1, self._count)}"
    if name not in self._workers:
      return ""
    return f" from {name}, process {self._workers[name].pid}"

  def _dead(self):
    """Each worker that ended, and how."""
    ends = {name: each.exitcode for name, each in self._workers.items()}
    told = [
      f"{name} (process {self._workers[name].pid}) was ended {_how(code)}"
      for name, code in sorted(ends.items())
      if code
    ]
    return ", ".join(told) or "a data worker was ended as it began"

  def close(self) -> None:
    """Ends the workers, and removes what they had not handed over."""
    self._close()
    for each in self._workers.values():
      each.join(_ENDS_IN)
    for path in _FOLDER.glob(f"{_PREFIX}-{owner()}-*"):
      # grain's own thread may be at it too; whoever unlinks it unregisters it.
      with contextlib.suppress(OSError):
        path.unlink()
        resource_tracker.unregister(f"/{path.name}", "shared_memory")


def begin(run: str, worker: int, workers: int) -> None:
  """For a data worker, first of all.

  Args:
    run: the `owner` that it belongs to.
  """
  del workers
  with contextlib.suppress(OSError):  # Linux alone has it.
    pathlib.Path("/proc/self/comm").write_text(f"{_NAME} {worker}")
  name_segments_after(run)
  preemption.leave_to_the_parent()
  preemption.end_with_the_parent()
  faulthandler.register(signal.SIGUSR2)  # Asked for by the watchdog.


def _named(processes):
  """Those that have given themselves a name, or, where none is kept, all."""
  named = {
    _name_of(each.pid) or f"{_NAME} {each.pid}": each for each in processes
  }
  return {name: each for name, each in named.items() if name.startswith(_NAME)}


def _name_of(process):
  """What a process calls itself; "" where no names are kept."""
  try:
    return pathlib.Path(f"/proc/{process}/comm").read_text().strip()
  except OSError:
    return ""


def _how(code):
  if code == -signal.SIGKILL:
    return "by SIGKILL (the system does that when memory is short)"
  return f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"


def owner() -> str:
  """This process, as its segments are named after it."""
  return f"{_machine()}-{os.getpid()}-{host.start_of(os.getpid())}"


def name_segments_after(run: str) -> None:
  """For a data worker: its segments belong to `run`, an `owner`."""
  if _FOLDER.is_dir():
    _Segment.run = run
    # grain makes segments by this name, and leaves theirs to Python.
    shared_memory.SharedMemory = _Segment


class _Segment(shared_memory.SharedMemory):
  """One whose name says whose it is."""

  run = ""

  def __init__(
    self, name: str | None = None, create: bool = False, size: int = 0
  ):
    if create and name is None:
      name = f"{_PREFIX}-{self.run}-{secrets.token_hex(8)}"
    super().__init__(name, create, size)


def remove_orphans() -> int:
  """Removes segments of runs that are gone; how many there were."""
  count = size = 0
  for path in _FOLDER.glob(f"{_PREFIX}-*"):
    if _is_orphan(path.name):
      with contextlib.suppress(OSError):  # Of another user; or another run is
        size += path.stat().st_size  # at it too.
        path.unlink()
        count += 1
  if count:
    _log.info(
      "removed %.1f MiB of shared memory that runs which were killed left in"
      " %d segments",
      size / 2**20,
      count,
    )
  return count


def _is_orphan(name):
  parts = name.split("-")
  if len(parts) != 5 or parts[1] != _machine():
    return False  # Its processes cannot be seen from here.
  return host.start_of(parts[2]) != parts[3]


def _machine():
  return files.fingerprint(host.this_machine().encode())[:8]
