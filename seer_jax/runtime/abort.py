"""One process fails, and all end at once, saying why.

One that merely exits is missed late: the others wait for it in a collective
until JAX finds its heartbeat gone, a minute or two later, and aborts them
without a reason. So the first to fail leaves word in the store of JAX's
coordinator, where the others look every two seconds.
"""

import atexit
import contextlib
import os
import re
import sys
import threading
import time
import traceback
from typing import NoReturn

from jax._src import distributed as jax_distributed

from seer_jax.runtime import errors

# Where the first process that fails leaves word, and the others that they know.
_WORDS, _HEARD = "seer_jax/failed", "seer_jax/heard"
_LISTEN_EVERY = 2  # Seconds; each time is a request to process 0.
_ANSWERED_IN = 5  # Seconds, if process 0 answers at all.
# What CPU collectives raise when a process at the other end is gone.
_LOSS = r"Gloo .* failed|Connection (reset|closed)"
_joined, _over = threading.Event(), threading.Event()
_ending = threading.Lock()


def listen() -> None:
  """Begins to listen, once this process has joined others."""
  _joined.set()
  threading.Thread(target=_listen, daemon=True).start()
  # Runs before JAX's own, registered earlier, leaves the others.
  atexit.register(_over.set)


def fail(status: int, words: str) -> NoReturn:
  """Ends this process with an error, and all others of the run with it.

  Args:
    status: to exit with.
    words: one line, printed by every process.
  """
  if _joined.is_set():
    _put(_WORDS, f"{status} process {_index()}: {words}")
  end_this(status, words)


def crash(error: BaseException) -> None:
  """Of several processes, ends all after an unexpected exception in this one.

  Where it comes of another process that is gone, says so and no more.
  """
  if not _joined.is_set():
    return
  first_line = next(iter(str(error).splitlines()), "")
  if not re.search(_LOSS, str(error)):
    traceback.print_exception(error)
    fail(1, f"{type(error).__name__}: {first_line}")
  # The other may have left word, and its connection broken before we looked.
  time.sleep(_LISTEN_EVERY)
  status, words = _heard() or (
    errors.Lost.STATUS,
    "another process of this run is gone, its own messages may say why; the"
    f" same command resumes ({first_line})",
  )
  fail(status, words)


def end_this(status: int, words: str) -> NoReturn:
  """Ends this process, without the usual goodbyes.

  They wait for other processes, and for threads that are stuck at a bad disk.
  """
  if not _ending.acquire(blocking=False):
    time.sleep(60)  # Another thread is at it.
  last_words(f"error: {words}")
  if _joined.is_set():
    _wait_until_heard()
  os._exit(status)


def last_words(words: str) -> None:
  """A line on standard error; where none can be written, the end is the same.

  Nor does what waits to be written then change the exit status.
  """
  with contextlib.suppress(OSError, ValueError):
    print(words, file=sys.stderr, flush=True)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _listen():
  """Ends this process soon after another has failed."""
  while not _over.wait(_LISTEN_EVERY):
    heard = _heard()
    if heard:
      end_this(*heard)


def _heard():
  """(status, words) of the first process that failed, if one has."""
  try:
    text = jax_distributed.global_state.client.key_value_try_get(_WORDS)
  except RuntimeError:
    return None  # No words; or no process 0, and JAX ends this one.
  status, words = text.split(" ", 1)
  return int(status), words


def _wait_until_heard():
  """Keeps process 0, which keeps the words, until all others have them."""
  state = jax_distributed.global_state
  _put(f"{_HEARD}/{state.process_id}", "")
  deadline = time.monotonic() + 5 * _LISTEN_EVERY
  while state.process_id == 0 and time.monotonic() < deadline:
    try:
      if len(state.client.key_value_dir_get(_HEARD)) == state.num_processes:
        return
    except RuntimeError:
      return
    time.sleep(0.1)


def _put(key, value):
  """Leaves word, unless process 0 does not answer."""

  def put():
    # Another was first, or process 0 is gone.
    with contextlib.suppress(RuntimeError):
      jax_distributed.global_state.client.key_value_set(key, value)

  # The client waits for a process that is stuck until JAX misses its heartbeat.
  asked = threading.Thread(target=put, daemon=True)
  asked.start()
  asked.join(_ANSWERED_IN)


def _index():
  return jax_distributed.global_state.process_id
