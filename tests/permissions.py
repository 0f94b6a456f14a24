"""File permissions hold for root as well, whom tests may run as."""

import contextlib
import ctypes
import os

# capset(2), version 3: two words each of effective, permitted and inheritable.
_VERSION, _WORDS = 0x20080522, ctypes.c_uint32 * 6
_IGNORES_PERMISSIONS = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_libc = ctypes.CDLL(None, use_errno=True)
# For `runs.start(code=...)`.
CODE = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import permissions
permissions.obey()
"""


def obey() -> int:
  """From here on; returns what `restore` takes."""
  if os.geteuid():
    return 0
  header = (ctypes.c_uint32 * 2)(_VERSION, 0)
  sets = _WORDS()
  assert _libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
  before = sets[0]
  sets[0] &= ~_IGNORES_PERMISSIONS
  assert _libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
  return before


def restore(before: int) -> None:
  """Undoes `obey`."""
  if os.geteuid():
    return
  header = (ctypes.c_uint32 * 2)(_VERSION, 0)
  sets = _WORDS()
  assert _libc.capget(header, sets) == 0
  sets[0] = before
  assert _libc.capset(header, sets) == 0


@contextlib.contextmanager
def obeyed():
  """In this thread, and those that it starts, while the block lasts."""
  before = obey()
  try:
    yield
  finally:
    restore(before)
