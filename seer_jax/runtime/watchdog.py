"""Notices when nothing moves: a step, a worker, a collective that is stuck."""

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

# A first step compiles, for up to so many times the limit.
_PATIENT = 4
_WITNESS = 10  # Seconds to write the stacks in.


class Watchdog:
  """Ends the run when the loop stays at one thing for too long.

  The stacks of all threads go to `stuck.txt` in the workdir (`stuck.3.txt` for
  process 3), those of workers to their standard error.
  """

  def __init__(self, workdir: pathlib.Path, limit: float, process: int = 0):
    """Takes the limit in seconds; 0 never barks."""
    name = f"stuck.{process}.txt" if process else "stuck.txt"
    self._path, self._limit = workdir / name, limit
    self._over = threading.Event()
    self.at("starting", patient=True)
    if limit:
      threading.Thread(target=self._watch, daemon=True).start()

  def at(self, what: str, patient: bool = False) -> None:
    """Tells what the loop begins with now; that it moves.

    Args:
      what: "step 12", for example.
      patient: it may take longer than usual, for it compiles.
    """
    limit = self._limit * (_PATIENT if patient else 1)
    self._now = what, time.monotonic(), limit

  def close(self) -> None:
    """Watches no more."""
    self._over.set()

  def _watch(self):
    while not self._over.wait(min(1.0, self._limit / 10)):
      what, since, limit = self._now
      if time.monotonic() - since > limit:
        self._bark(what, limit)

  def _bark(self, what, limit):
    words = f"stuck for {limit:g} s ({what})"
    self._where = f"{self._path} cannot be written (the disk is stuck as well)"
    try:
      # The disk may be the very thing that is stuck.
      witness = threading.Thread(target=self._testify, args=(words,))
      witness.daemon = True
      witness.start()
      for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):
          os.kill(worker.pid, signal.SIGUSR2)
      time.sleep(1)  # Workers write.
      witness.join(_WITNESS)
    finally:
      abort.fail(
        errors.Lost.STATUS,
        f"{words}: {self._where}. The same command resumes; if this was no"
        " fault but slowness, raise config.watchdog",
      )

  def _testify(self, words):
    try:
      with self._path.open("w") as file:
        file.write(f"{words}\n\n")
        file.flush()
        faulthandler.dump_traceback(file)
      self._where = f"the stacks of all threads are in {self._path}"
    except OSError as error:
      self._where = f"{self._path} cannot be written ({error.strerror})"
      faulthandler.dump_traceback(sys.__stderr__)
