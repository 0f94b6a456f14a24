"""Notices to stop, for the loop to see between two steps."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2).


_NOTICES = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


class Signals:
  """Notes preemption notices and Ctrl-C; a second Ctrl-C does as always.

  Attributes:
    caught: the number of the last signal, 0 without.
    again: whether there was more than one.
  """

  def __init__(self):
    self.caught, self.again = 0, False

  def __enter__(self):
    # Only the main thread may set handlers; elsewhere (a notebook's worker)
    # nothing is caught.
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      for number in _NOTICES:
        self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    self.caught, self.again = number, self.caught > 0
    # Not print, which may be in the middle of something else.
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # A full disk, a closed terminal.
      os.write(2, f"{name}: stopping as soon as it is safe\n".encode())
    if number == signal.SIGINT:
      signal.signal(number, self._before[number])

  def __exit__(self, kind, *exception):
    # Obeyed, the process is ending: an impatient second notice must not make
    # it look killed.
    obeyed = kind is not None and self.caught
    for number, handler in self._before.items():
      signal.signal(number, signal.SIG_IGN if obeyed else handler)


def leave_to_the_parent() -> None:
  """For a worker process: signals sent to the whole group are not for it."""
  for number in _NOTICES:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTICES)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """Notices wait, also for processes that are started meanwhile.

  One that dies of Ctrl-C while it starts leaves its parent waiting for ever.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_the_parent() -> None:
  """For a worker process: it does not outlive a parent that is killed."""
  # Linux alone can; elsewhere workers end when their queue breaks.
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
  parent = multiprocessing.parent_process()
  if parent and not parent.is_alive():
    os._exit(1)  # It was killed before we asked.
