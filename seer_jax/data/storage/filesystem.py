"""One interface to files on this machine and at URLs."""

import contextlib
import errno
import hashlib
import mmap
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from seer_jax.runtime import errors

# Files up to this size are hashed as a whole; of larger ones, so many blocks,
# evenly spread, without reading gigabytes.
_WHOLE, _BLOCK, _BLOCKS = 16 * 2**20, 64 * 2**10, 256
# Bytes at either end of a shard that must be readable.
_PROBED = 2**20
# Limits of the process, which say nothing about an image.
_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE})
# Libraries for the URLs that fsspec does not read by itself.
_LIBRARIES = {
  **dict.fromkeys(("gs", "gcs"), "gcsfs"),
  **dict.fromkeys(("http", "https"), "aiohttp"),
  "s3": "s3fs",
  "hf": "huggingface_hub",
}
# WebDataset's {000..009}, and {train,val}.
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}")
_MOST_SHARDS = 10**6


def is_url(path: str) -> bool:
  """Whether it is a URL rather than a path on this machine."""
  return "://" in path


def absolute(path: str) -> str:
  """A path that is valid in any process; '' and URLs do not change."""
  if not path or is_url(path):
    return path.rstrip("/") if path else path
  return os.path.abspath(os.path.expanduser(path))


def system(url: str) -> Any:
  """The fsspec file system of a URL.

  Raises UserError if a library for this kind of URL is missing, and OSError if
  there is no such kind.
  """
  kind = url.partition("://")[0]
  try:
    import fsspec

    return fsspec.filesystem(kind)
  except ImportError:
    library = _LIBRARIES.get(kind, "fsspec")
    raise errors.UserError(
      f"reading {kind}:// needs a library; run: pip install {library}"
    ) from None
  except ValueError:
    # In a line of a list this is one unusable image.
    raise OSError(errno.EINVAL, "no such kind of URL", url) from None


@contextlib.contextmanager
def plain_errors(path: str) -> Iterator[None]:
  """Turns all other exceptions into an OSError.

  Remote files fail in many ways, and a name may have a zero byte.
  """
  try:
    yield
  except (OSError, errors.UserError):
    raise
  except Exception as error:
    number = errno.EREMOTEIO if is_url(path) else errno.EINVAL
    raise OSError(number, errors.one_line(error), path) from error


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
  """The bytes of a file, or `size` of them from `start` on."""
  with plain_errors(path):
    if is_url(path):
      end = None if size is None else start + size
      return system(path).cat_file(path, start=start, end=end)
    with open(path, "rb", opener=_open_regular) as file:
      if size is None:
        return file.read()
      return os.pread(file.fileno(), size, start)


def _open_regular(path, flags):
  """Opens regular files only: reading a pipe might never end."""
  descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
  if stat.S_ISREG(os.fstat(descriptor).st_mode):
    return descriptor
  os.close(descriptor)
  raise OSError(errno.EINVAL, "not a regular file", path)


def raise_if_away(path: str) -> None:
  """Tells a shard that cannot be read at all from a damaged record in it.

  Raises the OSError of reading it, and Lost if the process may not open more
  files.
  """
  try:
    for start in (0, max(0, size(path) - _PROBED)):
      read(path, start, _PROBED)
  except OSError as error:
    if error.errno in _OUT_OF_FILES:
      raise errors.Lost(
        f"cannot read {path}: {error.strerror}; run: ulimit -n 4096"
      ) from None
    raise


def open_file(path: str) -> IO[bytes]:
  """Opens for reading."""
  if is_url(path):
    with plain_errors(path):
      return system(path).open(path, "rb")
  return open(path, "rb")


def size(path: str) -> int:
  """Size of a file, in bytes."""
  if is_url(path):
    with plain_errors(path):
      return system(path).size(path)
  return os.path.getsize(path)


def matching(path: str, ending: str) -> list[str]:
  """The shards that a path means, sorted.

  Raises UserError if there are none.

  Args:
    path: a file, a folder (its files with the suffix `ending`), or a pattern
      with * and ?, {000..009} or {a,b}; everything that braces stand for must
      exist.
    ending: suffix of names in a folder; "-00003-of-00010" may follow it.
  """
  path = absolute(path)
  if not path:
    raise errors.UserError("no files given: path is ''; set it")
  with errors.reading(path):
    named = _expanded(path)
    found = [each for one in named for each in _matching(one, ending)]
  if not found:
    raise errors.UserError(
      f"no files *{ending}* in {path}; give a file, a folder of them, or a"
      " pattern with * and ?, or {000..009}"
    )
  return sorted(found)


def _expanded(path: str) -> list[str]:
  """The paths that braces stand for."""
  done, left = [], [path]
  while left:
    one = left.pop()
    braces = _BRACES.search(one)
    if not braces or (not is_url(one) and os.path.exists(one)):
      done.append(one)
      continue
    first, last, words = braces.groups()
    if words is not None:
      middles = words.split(",")
    else:
      numbers = range(int(first), int(last) + 1)
      middles = [
        f"{number:0{len(first)}d}" for number in numbers[: _MOST_SHARDS + 1]
      ]
    before, after = one[: braces.start()], one[braces.end() :]
    left += [f"{before}{middle}{after}" for middle in middles]
    if len(left) + len(done) > _MOST_SHARDS:
      raise errors.UserError(
        f"{path} matches more than {_MOST_SHARDS:,} files; give a folder"
      )
  return done


def _matching(path, ending):
  if is_url(path):
    kind = path.partition("://")[0]
    with plain_errors(path):
      remote = system(path)
      if any(sign in path for sign in "*?"):
        found = remote.glob(path)
      # A web server has no folders; listing one would fetch the file.
      elif is_shard(path, ending):
        found = [path] if remote.exists(path) else []
      else:
        found = remote.glob(f"{path}/*{ending}*")
        found = [each for each in found if is_shard(each, ending)]
      if not found:
        raise errors.UserError(f"no such file or folder of files: {path}")
      return [
        each if is_url(each) else f"{kind}://{each.lstrip('/')}"
        for each in found
      ]
  if os.path.isdir(path):
    return [
      os.path.join(path, name)
      for name in os.listdir(path)
      if is_shard(name, ending)
    ]
  if os.path.exists(path):
    return [path]
  # Names of folders may have brackets, so only the last part is a pattern.
  folder, pattern = os.path.split(path)
  if not any(sign in pattern for sign in "*?"):
    raise errors.UserError(f"no such file or folder: {path}")
  return [os.fspath(each) for each in pathlib.Path(folder).glob(pattern)]


def is_shard(path: str, ending: str) -> bool:
  """Whether a name is that of a shard: x.tar, or x.array_record-00-of-10."""
  name = path.rpartition("/")[2]
  numbered = re.escape(ending) + r"(-\d+-of-\d+)?"
  return bool(re.search(f"{numbered}$", name)) and not name.startswith(".")


def fingerprint(path: str) -> str:
  """SHA-256 over size and bytes; for a large file, over blocks of it."""
  total = size(path)
  digest = hashlib.sha256(str(total).encode())
  if total <= _WHOLE:
    digest.update(read(path))
  else:
    last = total - _BLOCK
    for block in range(_BLOCKS):
      digest.update(read(path, last * block // (_BLOCKS - 1), _BLOCK))
  return digest.hexdigest()


def read_at_random(mapped: Any) -> None:
  """Tells the system that a memory-mapped file is read at random.

  It then reads single pages instead of hundreds around each: a thousandth of a
  cold list of 10 GB. Takes an `mmap`, or a NumPy array of one.
  """
  while isinstance(mapped, np.ndarray):
    mapped = mapped.base
  if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
    mapped.madvise(mmap.MADV_RANDOM)


def stamp(path: str) -> tuple[object, ...]:
  """What changes when a file does, without reading it."""
  if is_url(path):
    with plain_errors(path):
      about = system(path).info(path)
    # Names, in various stores, of what changes with the content.
    names = "etag", "ETag", "md5Hash", "generation", "mtime", "LastModified"
    return path, size(path), *(str(about.get(name)) for name in names)
  status = os.stat(path)
  return path, status.st_size, status.st_mtime_ns
