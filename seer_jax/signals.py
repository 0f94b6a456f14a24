"""Notices to stop, for the loop to see between two steps."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Signals:
  """Notes preemption notices and Ctrl-C; a second Ctrl-C does as always.

  Of several processes any may be told, and all must stop at the same step.
  JAX's preemption service sees to that: it owns SIGTERM in each process and
  agrees on a step, so the other signals are passed on to it.
  """

  def __init__(self):
    self._caught = ""
    self._together = jax.process_count() > 1

  def __enter__(self):
    # Only the main thread may set handlers; elsewhere (a notebook's worker)
    # nothing is caught.
    self._before = {}
    ours = [signal.SIGUSR1, signal.SIGINT]
    if not self._together:
      ours.append(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
      for number in ours:
        self._before[number] = signal.signal(number, self._note)
    return self

  def stop_at(self, step: int) -> str:
    """The name of a signal that wants the run to stop at this step, or "".

    To be asked at every step, by all processes.
    """
    if not self._together:
      return self._caught
    if multihost_utils.reached_preemption_sync_point(step):
      return self._caught or "SIGTERM"
    return ""

  def _note(self, number, frame):
    del frame
    self._caught = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(number, self._before[number])
    if self._together:
      os.kill(os.getpid(), signal.SIGTERM)

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)


def leave_to_the_parent() -> None:
  """In a worker process: the parent is told too, and ends its workers."""
  for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
