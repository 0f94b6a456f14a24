"""Notices to stop, for the loop to see between two steps."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2).


# SIGHUP: the terminal or the connection that a run was started from is closed.
_NOTICES = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP


class Signals:
  """Notes preemption notices and Ctrl-C.

  A second Ctrl-C is a KeyboardInterrupt.

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
      for number in heeded():
        self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    self.caught, self.again = number, self.caught > 0
    if number == signal.SIGINT:
      # Not the handler of before: jobs in the background ignore Ctrl-C.
      signal.signal(number, signal.default_int_handler)
    # Not print, which may be in the middle of something else.
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # A full disk, a closed terminal.
      os.write(2, f"{name}: stopping as soon as it is safe\n".encode())

  def __exit__(self, kind, *exception):
    # Obeyed, the process is ending: an impatient second notice must not make
    # it look killed. Not SIG_IGN, which processes that are started inherit.
    obeyed = kind is not None and self.caught
    for number, handler in self._before.items():
      signal.signal(number, (lambda *_: None) if obeyed else handler)


def heeded() -> list[signal.Signals]:
  """The signals that are notices: under nohup, a closed terminal is none."""
  nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  return [each for each in _NOTICES if not (nohup and each == signal.SIGHUP)]


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
