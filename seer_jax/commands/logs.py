"""What a long program prints on standard error."""

import contextlib
import faulthandler
import logging

_OURS = logging.getLogger("seer_jax")


def show() -> None:
  """Shows our own messages as plain text, and of absl's only warnings.

  If a library crashes, the stacks of all threads are printed as well.
  """
  # Imported here: `--help` answers on a machine that lacks it.
  from absl import logging as absl_logging

  with contextlib.suppress(OSError, ValueError, RuntimeError):
    faulthandler.enable()  # Fails where standard error is not a file.
  absl_logging.use_absl_handler()
  absl_logging.set_verbosity(absl_logging.WARNING)
  _OURS.setLevel(logging.INFO)
  _OURS.propagate = False
  _OURS.addHandler(logging.StreamHandler())


def show_less(process: int) -> None:
  """Shows only warnings of a process that is not the first, with its index."""
  _OURS.setLevel(logging.WARNING)
  for handler in _OURS.handlers:
    handler.setFormatter(logging.Formatter(f"process {process}: %(message)s"))
