"""One run in a workdir at a time.

The lock is a file that names its owner, and whose time of change is the owner's
last sign of life. An owner on this machine is looked for among its processes.
One elsewhere is watched: while it lives, the file changes every few seconds; so
no clocks are compared, and a run whose machine is lost is soon followed by the
next.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid

from seer_jax.runtime import abort, errors, host

_log = logging.getLogger(__name__)

SIGN_EVERY = 5  # Seconds.
# An owner that gives no sign for so long is gone; shared file systems show
# changes late, NFS up to a minute.
SILENCE = 90


class Lock:
  """Holds `lock.json` in a workdir from entering to leaving.

  Raises UserError if another run holds it; says which, where, and since when.
  """

  def __init__(self, workdir: pathlib.Path, silence: float = SILENCE):
    self._path = workdir / "lock.json"
    self._silence = silence
    self._over = threading.Event()

  def __enter__(self):
    while not self._take():
      self._wait_until_gone()
    self._signs = threading.Thread(target=self._give_signs, daemon=True)
    self._signs.start()
    return self

  def __exit__(self, *exception):
    self._over.set()
    self._signs.join()
    with contextlib.suppress(OSError):
      if _read(self._path) == self._ours:
        self._path.unlink()

  def _take(self):
    """Whether the lock was free. The file appears with its content."""
    self._ours = _myself()
    mine = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
    mine.write_text(json.dumps(self._ours) + "\n")
    try:
      os.link(mine, self._path)
    except FileExistsError:
      # NFS may say so of a link that it made, when its answer was lost.
      return mine.stat().st_nlink == 2
    except OSError:
      return self._take_without_links()
    finally:
      mine.unlink()
    return True

  def _take_without_links(self):
    """For file systems that have none: the content comes a moment later."""
    try:
      with self._path.open("x") as file:
        file.write(json.dumps(self._ours) + "\n")
    except FileExistsError:
      return False
    return True

  def _wait_until_gone(self):
    """Returns when the owner is, and its lock with it."""
    owner, changed = _read(self._path), _changed(self._path)
    began = told = time.monotonic()
    while _alive(owner) is None and time.monotonic() - began < self._silence:
      if _changed(self._path) != changed:
        if _read(self._path) == owner:
          self._refuse(owner)
        return  # Another took it, or it is free: look again.
      if time.monotonic() - told > 10 or told == began:
        told = time.monotonic()
        _log.warning(
          "%s has been locked by %s; waiting up to %g s for a sign of life",
          self._path.parent,
          _named(owner),
          self._silence,
        )
      time.sleep(0.2)
    if _alive(owner):
      self._refuse(owner)
    _log.warning(
      "took over %s from %s, which is gone", self._path.parent, _named(owner)
    )
    # Of several that see this at once, one renames it.
    aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
      if _read(self._path) == owner:
        self._path.rename(aside)
        if _read(aside) != owner:
          # Another was quicker by a hair: this is its lock.
          with contextlib.suppress(OSError):
            os.link(aside, self._path)
        aside.unlink()

  def _refuse(self, owner):
    silent = time.time() - (_changed(self._path) or time.time())
    raise errors.UserError(
      f"{self._path.parent} is in use by {_named(owner)}, whose last sign of"
      f" life was {max(silent, 0):.0f} s ago: stop that run, or give another"
      " --workdir"
    )

  def _give_signs(self):
    told = False
    while not self._over.wait(SIGN_EVERY):
      owner = _read(self._path)
      if owner and owner != self._ours:
        # This machine slept, or was cut off, until it was given up.
        abort.fail(
          errors.Lost.STATUS,
          f"{self._path.parent} was taken over by {_named(owner)} while this"
          " run gave no sign of life; it ends here",
        )
      try:
        os.utime(self._path)
      except OSError as error:
        if not told:
          _log.warning("cannot renew %s: %s", self._path, error.strerror)
        told = True


def _myself():
  return {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "began": host.start_of(os.getpid()),
    "machine": host.this_machine(),
    "job": os.environ.get("SLURM_JOB_ID", ""),
    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
  }


def _alive(owner):
  """Whether the owner runs; None where that cannot be seen from here."""
  if not owner or owner.get("machine") != host.this_machine():
    return None
  began = host.start_of(owner.get("process"))
  return began is not None and began == owner.get("began")


def _read(path):
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _changed(path):
  try:
    return path.stat().st_mtime
  except OSError:
    return None


def _named(owner):
  if not owner:
    return "a process that did not write its name"
  job = f" (job {owner['job']})" if owner.get("job") else ""
  return (
    f"process {owner.get('process')} on {owner.get('host')}{job} since"
    f" {owner.get('since')}"
  )
