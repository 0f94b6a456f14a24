"""Data workers: how they start, how their end is reported, their memory.

They hand over batches in shared memory: a batch is in /dev/shm until the run
has read it. Python's resource tracker removes what a run leaves there; but
killing the process group kills the tracker too, and the memory stays taken
until the machine restarts. So segments are named after their run, and the next
run of the same user removes those whose run is gone.
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
  """Batches from some workers; reports their failures in plain words."""

  def __init__(
    self,
    batches: Iterator[dict[str, Any]],
    workers: int,
    close: Callable[[], None],
  ):
    """Wraps grain's iterator; `workers` is 0 for threads of this process."""
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
    # Early: a worker that has died is no longer among the children.
    if len(self._workers) < self._count:
      self._workers |= _named(multiprocessing.active_children())
    self._next += 1
    return batch

  @property
  def awaited(self) -> str:
    """Which worker makes the next batch, such as " from data worker 1, ..."."""
    name = f"{_NAME} {self._next % max(1, self._count)}"
    if name not in self._workers:
      return ""
    return f" from {name}, process {self._workers[name].pid}"

  def _dead(self):
    """Each worker that ended, and how."""
    ends = {name: each.exitcode for name, each in self._workers.items()}
    ended = [
      f"{name} (process {self._workers[name].pid}) was ended {_how(code)}"
      for name, code in sorted(ends.items())
      if code
    ]
    return ", ".join(ended) or "a data worker was ended while it started"

  def close(self) -> None:
    """Ends the workers, and removes the batches not handed over."""
    self._close()
    for each in self._workers.values():
      each.join(_ENDS_IN)
    for path in _FOLDER.glob(f"{_PREFIX}-{owner()}-*"):
      # grain's own thread may do it too; the one that unlinks also unregisters.
      with contextlib.suppress(OSError):
        path.unlink()
        resource_tracker.unregister(f"/{path.name}", "shared_memory")


def begin(run: str, worker: int, workers: int) -> None:
  """Starts a data worker of the run of an `owner`."""
  del workers
  with contextlib.suppress(OSError):  # Only on Linux.
    pathlib.Path("/proc/self/comm").write_text(f"{_NAME} {worker}")
  name_segments_after(run)
  preemption.leave_to_the_parent()
  preemption.end_with_the_parent()
  faulthandler.register(signal.SIGUSR2)  # Sent by the watchdog.


def _named(processes):
  """Workers by the names they gave themselves; all, without such names."""
  named = {
    _name_of(each.pid) or f"{_NAME} {each.pid}": each for each in processes
  }
  return {name: each for name, each in named.items() if name.startswith(_NAME)}


def _name_of(process):
  """The name of a process, or ""."""
  try:
    return pathlib.Path(f"/proc/{process}/comm").read_text().strip()
  except OSError:
    return ""


def _how(code):
  if code == -signal.SIGKILL:
    return "by SIGKILL (the system does that when memory is short)"
  return f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"


def owner() -> str:
  """This process, in the names of its segments."""
  return f"{_machine()}-{os.getpid()}-{host.start_of(os.getpid())}"


def name_segments_after(run: str) -> None:
  """In a data worker: names its segments after the run of an `owner`."""
  if _FOLDER.is_dir():
    _Segment.run = run
    # grain makes segments through this name, and lets Python name them.
    shared_memory.SharedMemory = _Segment


class _Segment(shared_memory.SharedMemory):
  """A segment whose name contains its owner."""

  run = ""

  def __init__(
    self, name: str | None = None, create: bool = False, size: int = 0
  ):
    if create and name is None:
      name = f"{_PREFIX}-{self.run}-{secrets.token_hex(8)}"
    super().__init__(name, create, size)


def remove_orphans() -> int:
  """Removes segments of runs that are gone; returns their number."""
  count = size = 0
  for path in _FOLDER.glob(f"{_PREFIX}-*"):
    if _is_orphan(path.name):
      # Fails if another user owns it, or another run removes it.
      with contextlib.suppress(OSError):
        size += path.stat().st_size
        path.unlink()
        count += 1
  if count:
    _log.info(
      "removed %.1f MiB of shared memory (%d segments) of killed runs",
      size / 2**20,
      count,
    )
  return count


def _is_orphan(name):
  parts = name.split("-")
  if len(parts) != 5 or parts[1] != _machine():
    return False  # Of another machine or container.
  return host.start_of(parts[2]) != parts[3]


def _machine():
  return files.fingerprint(host.this_machine().encode())[:8]
