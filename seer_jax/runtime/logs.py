"""What a long program tells on standard error."""

import contextlib
import faulthandler
import logging

from absl import logging as absl_logging

_OURS = logging.getLogger("seer_jax")


def show() -> None:
  """Our own messages, plainly; absl's, which orbax floods, stay at warnings.

  If a library crashes, the stacks of all threads are shown as well.
  """
  with contextlib.suppress(OSError, ValueError, RuntimeError):
    faulthandler.enable()  # Where standard error is a file.
  absl_logging.use_absl_handler()
  absl_logging.set_verbosity(absl_logging.WARNING)
  _OURS.setLevel(logging.INFO)
  _OURS.propagate = False
  _OURS.addHandler(logging.StreamHandler())


def show_less(process: int) -> None:
  """What is worth knowing of a process that is not the first, marked as its."""
  _OURS.setLevel(logging.WARNING)
  for handler in _OURS.handlers:
    handler.setFormatter(logging.Formatter(f"process {process}: %(message)s"))
