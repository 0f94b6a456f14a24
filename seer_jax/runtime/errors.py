"""The failures that are somebody's news rather than a defect here."""


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


class Stopped(Exception):
  """A signal asked to stop, and all is saved; the same command resumes."""

  # Not a signal's own status: schedulers requeue on it (sysexits' EX_TEMPFAIL).
  STATUS = 75


class BadImage(Exception):
  """One image that cannot be used; the message is the reason, in a few words.

  Uncurated collections are full of them, so it is never fatal: the pipeline
  counts the image and draws another.
  """


class Excluded(BadImage):
  """An image that nobody may use; see `sources.exclusion.Excluding`."""
