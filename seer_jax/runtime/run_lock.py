"""A lock by which one run at a time uses a workdir.

The lock is a file that names its owner, who touches it every few seconds. An
owner on this machine is looked up among its processes. One elsewhere is alive
if the file changes while it is watched, so clocks are not compared. filelock
4.3 did not take over a lock of another machine, two hours old, within 20 s.
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

HEARTBEAT = 5  # Seconds.
# Seconds without a heartbeat after which an owner counts as dead: shared file
# systems show changes late, NFS up to a minute.
TIMEOUT = 90


class Lock:
  """Holds `lock.json` in a workdir from entering to leaving.

  Raises UserError if another run holds it; says which, where, and since when.
  """

  def __init__(self, workdir: pathlib.Path, timeout: float = TIMEOUT):
    self._path = workdir / "lock.json"
    self._timeout = timeout
    self._over = threading.Event()

  def __enter__(self):
    while not self._take():
      self._wait_for_owner()
    self._heartbeat = threading.Thread(target=self._beat, daemon=True)
    self._heartbeat.start()
    return self

  def __exit__(self, *exception):
    self._over.set()
    self._heartbeat.join()
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
      # NFS may report this for its own link, if a reply was lost.
      return mine.stat().st_nlink == 2
    except OSError:
      return self._take_without_links()
    finally:
      mine.unlink()
    return True

  def _take_without_links(self):
    """For file systems without links: the content comes a moment later."""
    try:
      with self._path.open("x") as file:
        file.write(json.dumps(self._ours) + "\n")
    except FileExistsError:
      return False
    return True

  def _wait_for_owner(self):
    """Returns when the owner is dead and its lock removed."""
    owner, changed = _read(self._path), _changed(self._path)
    began, next_warning = time.monotonic(), 0.0
    while _alive(owner) is None and time.monotonic() - began < self._timeout:
      if _changed(self._path) != changed:
        if _read(self._path) == owner:
          self._refuse(owner)
        return  # Free, or taken by another: try again.
      if time.monotonic() > next_warning:
        next_warning = time.monotonic() + 10
        _log.warning(
          "%s is locked by %s; waiting up to %g s for its heartbeat",
          self._path.parent,
          _named(owner),
          self._timeout,
        )
      time.sleep(0.2)
    if _alive(owner):
      self._refuse(owner)
    _log.warning(
      "took over %s from %s, which has ended", self._path.parent, _named(owner)
    )
    # If several runs do this at once, one renames it.
    aside = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
      if _read(self._path) == owner:
        self._path.rename(aside)
        if _read(aside) != owner:
          # Another run took the lock in between: this is its file.
          with contextlib.suppress(OSError):
            os.link(aside, self._path)
        aside.unlink()

  def _refuse(self, owner):
    silent = time.time() - (_changed(self._path) or time.time())
    raise errors.UserError(
      f"{self._path.parent} is in use by {_named(owner)}, whose last heartbeat"
      f" was {max(silent, 0):.0f} s ago: stop that run, or give another"
      " --workdir"
    )

  def _beat(self):
    warned = False
    while not self._over.wait(HEARTBEAT):
      owner = _read(self._path)
      if owner and owner != self._ours:
        # This machine was suspended or disconnected for too long.
        abort.fail(
          errors.Lost.STATUS,
          f"{self._path.parent} was taken over by {_named(owner)} while this"
          " run had no heartbeat; it ends here",
        )
      try:
        os.utime(self._path)
      except OSError as error:
        if not warned:
          _log.warning("cannot renew %s: %s", self._path, error.strerror)
        warned = True


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
  """Whether the owner runs; None if it is on another machine."""
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
