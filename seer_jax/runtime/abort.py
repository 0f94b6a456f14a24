"""When one process fails, all of them end at once, and say why.

A process that merely exits is missed late: the others wait for it in a
collective until JAX misses its heartbeat, a minute or two later, and aborts
them without a reason. So the first to fail leaves a message in the key-value
store of JAX's coordinator, where the others look every two seconds.
"""

import atexit
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from seer_jax.runtime import errors

# Keys of the first failure's message, and of those that have read it.
_MESSAGE, _READ = "seer_jax/failed", "seer_jax/heard"
_LISTEN_EVERY = 2  # Seconds; each time is a request to process 0.
_ANSWERED_IN = 5  # Seconds, if process 0 answers at all.
# What CPU collectives raise when the process at the other end is gone.
_LOSS = r"Gloo .* failed|Connection (reset|closed)"
_over = threading.Event()
_ending = threading.Lock()
# Once joined: JAX's client, the index of this process and their number.
_joined: tuple[Any, int, int] | None = None


def listen(process: int, processes: int) -> None:
  """Starts listening, once this process has joined the others."""
  # JAX has no public name for its client; Orbax exports one.
  from orbax.checkpoint import multihost

  global _joined
  _joined = multihost.get_jax_distributed_client(), process, processes
  threading.Thread(target=_listen, daemon=True).start()
  # Runs before JAX's own handler, registered earlier, leaves the others.
  atexit.register(_over.set)


def fail(status: int, message: str) -> NoReturn:
  """Ends this process with an error, and all others of the run with it.

  Args:
    message: one line, printed by every process.
  """
  if _joined:
    _put(_MESSAGE, f"{status} process {_joined[1]}: {message}")
  end_this(status, message)


def crash(error: BaseException) -> None:
  """After an unexpected exception in one of several processes, ends all.

  If another process that is gone caused it, prints that and no traceback.
  """
  if not _joined:
    return
  first_line = next(iter(str(error).splitlines()), "")
  if not re.search(_LOSS, str(error)):
    traceback.print_exception(error)
    fail(1, f"{type(error).__name__}: {first_line}")
  # The other may have left its message before its connection broke.
  time.sleep(_LISTEN_EVERY)
  status, message = _received() or (
    errors.Lost.STATUS,
    "another process of this run is gone; its own output may say why. The same"
    f" command resumes the run ({first_line})",
  )
  fail(status, message)


def end_this(status: int, message: str) -> NoReturn:
  """Ends this process at once.

  Python's usual exit waits for other processes, and for threads that a bad disk
  holds up.
  """
  if not _ending.acquire(blocking=False):
    time.sleep(60)  # Another thread is ending the process.
  print_exit_message(f"error: {message}")
  if _joined:
    _wait_until_read(*_joined)
  os._exit(status)


def print_exit_message(message: str) -> None:
  """Prints a line on standard error, if anything can be printed there.

  If not, buffered output does not change the exit status either.
  """
  with contextlib.suppress(OSError, ValueError):
    print(message, file=sys.stderr, flush=True)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _listen():
  """Ends this process soon after another has failed."""
  while not _over.wait(_LISTEN_EVERY):
    received = _received()
    if received:
      end_this(*received)


def _received():
  """(status, message) of the first process that failed, if one has."""
  try:
    text = _joined[0].key_value_try_get(_MESSAGE)
  except RuntimeError:
    return None  # No message; or process 0 is gone, and JAX ends this one.
  status, message = text.split(" ", 1)
  return int(status), message


def _wait_until_read(client, process, processes):
  """Keeps process 0, which holds the message, until all others have it."""
  _put(f"{_READ}/{process}", "")
  deadline = time.monotonic() + 5 * _LISTEN_EVERY
  while process == 0 and time.monotonic() < deadline:
    try:
      if len(client.key_value_dir_get(_READ)) == processes:
        return
    except RuntimeError:
      return
    time.sleep(0.1)


def _put(key, value):
  """Writes to the store, unless process 0 does not answer."""

  def put():
    # Another was first, or process 0 is gone.
    with contextlib.suppress(RuntimeError):
      _joined[0].key_value_set(key, value)

  # The client waits for a stuck process until JAX misses its heartbeat.
  asked = threading.Thread(target=put, daemon=True)
  asked.start()
  asked.join(_ANSWERED_IN)
