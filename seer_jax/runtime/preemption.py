"""Signals that ask a program to stop: noted, and obeyed when it is safe."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2).
# SIGHUP: the terminal or connection that the program was started from closed.
_SIGNALS = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP


class Preemption:
  """Notes preemption signals and Ctrl-C while its context lasts.

  A second Ctrl-C raises KeyboardInterrupt.

  Attributes:
    signal: the number of the last signal, 0 before any.
    repeated: whether there was more than one.
  """

  def __init__(self, on_signal: Callable[[], None] = lambda: None):
    """Takes what to call at each signal."""
    self.signal, self.repeated = 0, False
    self._on_signal = on_signal

  def __enter__(self):
    # Only the main thread may set handlers; elsewhere, as in a notebook's
    # worker, signals are not caught.
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      # Under nohup, a closed terminal does not end the program.
      nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
      for number in _SIGNALS:
        if not (nohup and number == signal.SIGHUP):
          self._before[number] = signal.signal(number, self._note)
    return self

  def _note(self, number, frame):
    del frame
    self.signal, self.repeated = number, self.signal > 0
    if number == signal.SIGINT:
      # Not the handler of before: background jobs ignore Ctrl-C.
      signal.signal(number, signal.default_int_handler)
    # Not print, which the signal may have interrupted.
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # A full disk, a closed terminal.
      os.write(2, f"{name}: stopping as soon as it is safe\n".encode())
    self._on_signal()

  def __exit__(self, kind, *exception):
    # Once obeyed, the process is ending: an impatient second signal must not
    # make it look killed. Not SIG_IGN, which child processes inherit.
    obeyed = kind is not None and self.signal
    for number, handler in self._before.items():
      signal.signal(number, (lambda *_: None) if obeyed else handler)


def leave_to_the_parent() -> None:
  """In a worker process: ignores signals sent to the whole process group."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
  """Delays signals, for this process and those that it starts meanwhile.

  A worker that dies of Ctrl-C while it starts would leave its parent waiting
  forever.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_the_parent() -> None:
  """In a worker process: makes it end when the parent is killed."""
  # Only on Linux; elsewhere workers end when their queue breaks.
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
  parent = multiprocessing.parent_process()
  if parent and not parent.is_alive():
    os._exit(1)  # It was killed before the call above.
