"""The failures that are somebody's news rather than a defect here."""

import errno

# What a disk says that has no room; another time, or elsewhere, it has.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class UserError(Exception):
  """A mistake the user can mend.

  The message is one line: what was wrong, the value, and what to do. The
  command line prints it without a traceback and exits with `STATUS`.
  """

  STATUS = 2


class Lost(Exception):
  """Something that the run stood on is gone: a worker, a disk.

  The message is one line. The same command resumes.
  """

  STATUS = 70  # sysexits' EX_SOFTWARE; 1 is left to defects.


# Of output that nobody reads to its end: what shells report of SIGPIPE.
UNREAD = 141
# Of Ctrl-C that is not waited for: what shells report of SIGINT.
INTERRUPTED = 130


class Stopped(Exception):
  """A signal asked to stop, and all is saved; the same command resumes."""

  # Not a signal's own status: schedulers requeue on it (sysexits' EX_TEMPFAIL).
  STATUS = 75


def of_disk(error: OSError, words: str) -> UserError | Lost:
  """The failure to raise when a disk refuses.

  Args:
    error: of the system.
    words: the message.

  Returns:
    `Lost` where there is no room: the same command may go on later, or on
    another machine. `UserError` for all else.
  """
  return (Lost if error.errno in _NO_ROOM else UserError)(words)


def shown(it: object, most: int = 80) -> str:
  """A name from a file of others, fit for one line of a message.

  What no terminal should print is escaped, and what is long is cut. Containers
  are named by their type: their `repr` may be longer than memory.
  """
  if not isinstance(it, (str, int, float, bytes, type(None))):
    return f"a {type(it).__name__}"
  text = str(it)[: most + 1] if isinstance(it, str) else repr(it)[: most + 1]
  plain = "".join(
    each if each.isprintable() else ascii(each)[1:-1] for each in text
  )
  return plain if len(plain) <= most else plain[: most - 3] + "..."


class BadImage(Exception):
  """One image that cannot be used; the message is the reason, in a few words.

  Uncurated collections are full of them, so it is never fatal: the pipeline
  counts the image and draws another.
  """


class Excluded(BadImage):
  """An image that nobody may use; see `sources.exclusion.Excluding`."""
