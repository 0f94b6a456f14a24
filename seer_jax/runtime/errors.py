"""Errors shown to the user without a traceback."""

import contextlib
import errno
import re
from collections.abc import Iterator

# Errors of a full or failing disk: the same command may succeed later, or on
# another machine.
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


class UserError(Exception):
  """A mistake that the user can correct.

  The message is one line: what is wrong, the value, and what to do. The command
  line prints it without a traceback and exits with `STATUS`.
  """

  STATUS = 2


class Lost(Exception):
  """Something that the run needs is gone: a worker, a disk.

  The message is one line. The same command resumes the run.
  """

  STATUS = 70  # sysexits' EX_SOFTWARE; 1 is left to defects.


# Exit status where the reader of the output left: shells' for SIGPIPE.
UNREAD = 141
# Exit status of a program that Ctrl-C ended at once: shells' for SIGINT.
INTERRUPTED = 130


class Stopped(Exception):
  """A signal asked to stop; all is saved, and the same command resumes."""

  # Schedulers requeue on it (sysexits' EX_TEMPFAIL), not on a signal's status.
  STATUS = 75


def of_disk(error: OSError, message: str) -> UserError | Lost:
  """The error to raise when a disk refuses.

  It is `Lost` if the disk is full or fails: the same command may succeed later,
  or on another machine. It is `UserError` otherwise.
  """
  return (Lost if error.errno in _OF_THE_DISK else UserError)(message)


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
  """Raises a UserError, "cannot read WHAT: REASON", for an OSError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot read {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(what: object, advice: str = "") -> Iterator[None]:
  """Raises `of_disk`, "cannot write WHAT: REASON", for an OSError."""
  try:
    yield
  except OSError as error:
    message = f"cannot write {what}: {error.strerror or error}{advice}"
    raise of_disk(error, message) from error


def one_line(error: BaseException, most: int = 200) -> str:
  """The message of a library's error, on one line."""
  return " ".join(str(error).split())[:most] or type(error).__name__


def shown(it: object, most: int = 80) -> str:
  """A value from a stranger's file, fit for one line of a message.

  Control characters are escaped, and long values cut. Containers are named by
  their type, since their `repr` may not fit into memory.
  """
  if not isinstance(it, (str, int, float, bytes, type(None))):
    return f"a {type(it).__name__}"
  text = str(it)[: most + 1] if isinstance(it, str) else repr(it)[: most + 1]
  plain = "".join(
    each if each.isprintable() else ascii(each)[1:-1] for each in text
  )
  return plain if len(plain) <= most else plain[: most - 3] + "..."


def telling_line(stderr: str) -> str:
  """The line of an error output that most likely says why; "" of none."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  # "E0000 00:00:1795430051.7 ..." are the native libraries' own logs.
  plain = [line for line in lines if not re.match(r"[IWEF]\d{4} ", line)]
  telling = [line for line in plain if re.search(r"Error: |failed", line)]
  return (telling or plain or lines or [""])[-1]


class BadImage(Exception):
  """One image that cannot be used; the message is the reason, in a few words.

  Uncurated collections are full of them, so it is never fatal: the pipeline
  counts the image and replaces it.
  """


class Excluded(BadImage):
  """An image that is opted out; see `sources.opt_out.Excluding`."""
