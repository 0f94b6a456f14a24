"""Files of this machine: written whole, kept in a cache, fingerprinted.

Everything in the package that writes a file atomically, finds the cache or
hashes a description does it here.
"""

import contextlib
import functools
import glob
import hashlib
import logging
import os
import pathlib
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

# The suffix of what is being written; a kill may leave one behind.
PART = ".part"


def fingerprint(about: object) -> str:
  """SHA-256, in hex, of bytes, or of the `repr` of anything else."""
  data = about if isinstance(about, bytes) else repr(about).encode()
  return hashlib.sha256(data).hexdigest()


def key(*about: object) -> str:
  """A short fingerprint of several facts, fit for the name of a file."""
  return fingerprint(about)[:24]


def user_path(path: str) -> pathlib.Path:
  """Expands `~` in a path that the user gave.

  Raises UserError if the path is empty, or the home folder is unknown.
  """
  if not path:
    raise errors.UserError("a path is empty; give a file or a folder")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise errors.UserError(
      f"cannot expand {path}: the home folder is unknown (HOME is not set, and"
      " /etc/passwd has no entry for this user); give the path without ~"
    ) from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Opens a file for writing that appears under its name only when complete.

  Raises UserError if it cannot be written and Lost if the disk is full.
  """
  with whole(path) as part, part.open("wb") as file:
    yield file


@contextlib.contextmanager
def whole(path: pathlib.Path, advice: str = "") -> Iterator[pathlib.Path]:
  """Yields a path to write to; the result takes its own name when complete.

  A file replaces an older one. A folder does not: of several processes that
  make the same one, the first wins. Raises UserError if it cannot be written
  and Lost if the disk is full.

  Args:
    path: the final name, of a file or a folder.
    advice: what to do when the disk refuses.
  """
  # Hidden: programs that read a folder of Parquet files skip such names.
  part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PART}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield part
    if part.is_file():
      flush(part)
    if not path.is_dir():
      part.replace(path)
    flush(path.parent)
  except OSError as error:
    words = f"cannot write {path}: {error.strerror or error}{advice}"
    raise errors.of_disk(error, words) from error
  finally:
    _remove(part)


def remove_parts(folder: pathlib.Path, name: str = "") -> None:
  """Removes what killed writers left in a folder; none may be running."""
  own = f".{glob.escape(name)}" if name else ""
  for part in folder.glob(f"{own}.*{PART}"):
    _remove(part)


def _remove(path):
  with contextlib.suppress(OSError):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, as `whole_file` does."""
  with whole_file(path) as file:
    # File names in it need not be valid UTF-8.
    file.write(text.encode(errors="surrogateescape"))


def flush(path: pathlib.Path) -> None:
  """Forces a file, or the names in a folder, to disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def cached(name: str, *about: object) -> pathlib.Path:
  """The path in the user's cache for something derived from other files.

  Args:
    name: the kind of thing, which becomes a folder.
    about: everything it depends on.
  """
  return cache_folder(name) / key(*about)


def cache_folder(name: str = "xla") -> pathlib.Path:
  """A folder of the user's cache: `$XDG_CACHE_HOME/seer_jax/NAME`.

  Containers often have no home folder, or one that is read-only. Then it is a
  private folder among the system's temporary files, with a warning.
  """
  folder = wanted_cache(name)
  if is_usable(folder):
    return folder
  return _temporary_cache(folder.parent) / name


def wanted_cache(name: str) -> pathlib.Path:
  """What `cache_folder` gives where that can be written to."""
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  with contextlib.suppress(RuntimeError):  # Without a home folder, `~` stays.
    return pathlib.Path(cache).expanduser() / "seer_jax" / name
  return pathlib.Path(cache) / "seer_jax" / name


def is_usable(folder: pathlib.Path) -> bool:
  """Whether a folder can be written to, or made."""
  known = folder.parts[0] != "~"
  effective = os.access in os.supports_effective_ids
  wanted = os.R_OK | os.W_OK | os.X_OK
  return known and os.access(
    nearest_existing(folder), wanted, effective_ids=effective
  )


def nearest_existing(folder: pathlib.Path) -> pathlib.Path:
  """The folder, or the closest of its parents that exists."""
  # pathlib's `exists` raises where a parent folder is not readable.
  return next(
    each for each in (folder, *folder.parents) if os.path.exists(each)
  )


@functools.cache
def _temporary_cache(instead_of):
  folder = pathlib.Path(tempfile.gettempdir(), f"seer_jax-{os.getuid()}")
  with contextlib.suppress(FileExistsError):
    folder.mkdir(mode=0o700)
  about = folder.lstat()
  private = about.st_uid == os.getuid() and not about.st_mode & 0o077
  if not (private and stat.S_ISDIR(about.st_mode)):
    # Compiled programs that another user put there would run as ours.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="seer_jax-"))
  _log.warning(
    "the cache %s cannot be used; compiled programs and indexes are kept in %s."
    " Set XDG_CACHE_HOME to a folder that lasts",
    instead_of,
    folder,
  )
  return folder
