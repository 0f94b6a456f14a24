"""The shared memory in which data workers hand over their batches.

A batch lies in /dev/shm until the run has read it. Python's resource tracker
removes what a run leaves there; but a kill of the whole process group kills the
tracker as well, and the memory stays taken until the machine restarts. So
segments are named after their run, and the next run of the same user removes
those whose run is gone.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import secrets
from multiprocessing import shared_memory

from seer_jax.runtime import host

_log = logging.getLogger(__name__)

_FOLDER = pathlib.Path("/dev/shm")  # Where Linux shows segments as files.
_PREFIX = "seer_jax"


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
  return hashlib.sha256(host.this_machine().encode()).hexdigest()[:8]
