"""Ends a run in which nothing moves: a stuck step, worker or collective."""

import contextlib
import faulthandler
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time

from seer_jax.runtime import abort, errors

_PATIENT = 4  # Limits this many times longer, where something compiles.
_DUMP_SECONDS = 10  # To write the stacks.


class Watchdog:
  """Ends the run when the loop stays in one activity for too long.

  The stacks of all threads go to `stuck.txt` in the workdir (`stuck.3.txt` for
  process 3), those of data workers to their standard error.

  `faulthandler` writes the stacks. Its own timer (`dump_traceback_later`) is
  not
  used: it exits with status 1, and tells neither the other processes nor what
  the loop was waiting for.
  """

  def __init__(self, workdir: pathlib.Path, limit: float, process: int = 0):
    """Takes the limit in seconds; 0 never ends the run."""
    name = f"stuck.{process}.txt" if process else "stuck.txt"
    self._path, self._limit = workdir / name, limit
    self._over = threading.Event()
    self.at("starting", patient=True)
    if limit:
      threading.Thread(target=self._watch, daemon=True).start()

  def at(self, activity: str, patient: bool = False) -> None:
    """Notes that the loop begins something, which proves that it moves.

    Args:
      activity: "computing step 12", for example.
      patient: allows four times the limit, since something compiles.
    """
    limit = self._limit * (_PATIENT if patient else 1)
    self._current = activity, time.monotonic(), limit

  def close(self) -> None:
    """Stops watching."""
    self._over.set()

  def _watch(self):
    while not self._over.wait(min(1.0, self._limit / 10)):
      activity, since, limit = self._current
      if time.monotonic() - since > limit:
        self._on_timeout(f"stuck for {limit:g} s ({activity})")

  def _on_timeout(self, reason):
    self._outcome = f"cannot write {self._path} (the disk is stuck too)"
    try:
      # In a thread: the disk may be the very thing that is stuck.
      dump = threading.Thread(target=self._dump_stacks, args=(reason,))
      dump.daemon = True
      dump.start()
      for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):
          os.kill(worker.pid, signal.SIGUSR2)
      time.sleep(1)  # Workers write theirs.
      dump.join(_DUMP_SECONDS)
    finally:
      abort.fail(
        errors.Lost.STATUS,
        f"{reason}: {self._outcome}. The same command resumes the run; if it"
        " was only slow, raise config.watchdog",
      )

  def _dump_stacks(self, reason):
    try:
      with self._path.open("w") as file:
        file.write(f"{reason}\n\n")
        file.flush()
        faulthandler.dump_traceback(file)
      self._outcome = f"the stacks of all threads are in {self._path}"
    except OSError as error:
      self._outcome = f"cannot write {self._path} ({error.strerror})"
      faulthandler.dump_traceback(sys.__stderr__)
