"""Tells an unreadable image from a file system that is unavailable.

A damaged file is skipped and listed; while a file server restarts, no image is
damaged, and the run waits.
"""

import errno
import logging
import time
from typing import Protocol

from seer_jax.data.storage.example import Example
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

# Errors that may be either. Sources raise EREMOTEIO for all other failures at a
# URL.
_PERHAPS_AWAY = frozenset(
  getattr(errno, name)
  for name in (
    *("EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN"),
    *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
    *("ECONNREFUSED", "ECONNRESET", "ECONNABORTED"),
  )
  if hasattr(errno, name)
)
# Seconds of retrying before other images are tried, and before the run ends.
_A_WHILE, _TOO_LONG = 2, 300
_PAUSE = 0.1, 10.0  # Between attempts, doubled from the first to the second.
_OTHERS = 3


class Readable(Protocol):
  """The part of a source that is needed to read it."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def id_of(self, i: int) -> str: ...


def read(source: Readable, i: int) -> Example:
  """Reads an image; waits while the file system is unavailable.

  That is the case if the error may come from it, and other images fail too.
  Raises OSError if this image cannot be read but others can, and Lost if the
  file system was unavailable for five minutes.
  """
  began, pause = time.monotonic(), _PAUSE[0]
  while True:
    try:
      return source[i]
    except OSError as error:
      waited = time.monotonic() - began
      if error.errno not in _PERHAPS_AWAY:
        raise
      if waited >= _A_WHILE and _another_answers(source, i):
        raise
      if waited >= _TOO_LONG:
        raise errors.Lost(
          f"no image could be read for {waited:.0f} s, the last"
          f" {source.id_of(i)!r} ({error.strerror}): the file system of the"
          " images is unavailable; once it is back, the same command resumes"
        ) from error
      if pause == _PAUSE[1]:
        _log.warning("waiting for the images: %s", error)
    time.sleep(pause)
    pause = min(2 * pause, _PAUSE[1])


def _another_answers(source, i):
  """Whether other images can be read, or fail for reasons of their own."""
  count = len(source)
  others = {
    (i + count * n // (_OTHERS + 1)) % count for n in range(_OTHERS + 1)
  }
  for other in sorted(others - {i}):
    try:
      _ = source[other]
    except OSError as error:
      if error.errno in _PERHAPS_AWAY:
        continue
    except errors.Excluded:  # By its name, without reading.
      continue
    return True
  return count == 1
