"""Images that nobody may use: a source without those that lists name."""

import functools
import hashlib
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator

import numpy as np

from seer_jax.data.sources.base import (
  Source,
  digest_of,
  other_names_of,
  path_of,
)
from seer_jax.data.storage import filesystem
from seer_jax.data.storage.example import Example
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# Images whose names are compared with a list's when a source is opened, in at
# most two seconds.
_LOOKED_THROUGH = 200_000

# A hash alone, as sha256sum and shasum write it beside a path, and as
# registries do. The backslash is sha256sum's, of a path with an end of line.
_HASH = re.compile(
  rb"\\?(?:sha256:|SHA2?-?256 \(.*\) = )?([0-9a-f]{64})(?:[ \t,;].*)?",
  re.IGNORECASE,
)


class Exclusions:
  """What lists exclude: a line is an id, a path, or the SHA-256 of a file.

  Raises:
    UserError: a list cannot be read, or is empty.
  """

  def __init__(self, paths: Collection[str]):
    lines = set().union(*map(read_lines, paths))
    hashes = {line: _HASH.fullmatch(line) for line in lines}
    names = (os.fsdecode(line) for line in lines if not hashes[line])
    self._names = _table(
      _digest(os.fsencode(form)) for name in names for form in _forms(name)
    )
    self.hashes = _table(
      bytes.fromhex(found[1].decode()) for found in hashes.values() if found
    )
    self.count = len(lines)
    every = b"\n".join(sorted(lines))
    self.fingerprint = files.fingerprint(every)

  def has_name(self, names: Collection[str]) -> bool:
    """Whether one of the names of an image is listed."""
    return bool(len(self.found(names)))

  def found(self, names: Collection[str]) -> np.ndarray:
    """Those of the names that are listed, as `first_of` gives them."""
    return _found_in(b"".join(map(first_of, names)), self._names)

  def has_hash(self, digest: bytes) -> bool:
    """Whether the SHA-256 of a file is listed."""
    return bool(len(_found_in(digest[:8], self.hashes)))


class Excluding:
  """A source that hands out nothing that lists exclude.

  Numbers stay as they are; reading an excluded image raises `Excluded`, and
  the caller takes another or leaves it out. It goes around the source itself,
  inside whatever takes a part of it, so that nothing gets around it.

  An image is known by its id, the other names that its source gives it, its
  path, however spelt, and the hashes of its file and of what it was packed
  from. A relative path is one from the source's root or from the folder that
  the program is started in; an absolute entry of a list is known by whatever
  relative path it ends in.
  """

  def __init__(self, source: Source, exclusions: Exclusions, prefix: str = ""):
    """Wraps a source.

    Args:
      source: of all images.
      exclusions: shared by all parts of a mixture.
      prefix: what a mixture puts before the ids.
    """
    self._source, self._exclusions = source, exclusions
    self._prefix = prefix
    self.names_are_known = getattr(source, "names_are_known", False)
    self.may_lie_anywhere = getattr(source, "entries_are_paths", False)
    self._roots = roots_of(source)
    self.label_names = source.label_names
    inner = source.fingerprint, exclusions.fingerprint
    self.fingerprint = files.fingerprint(inner)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example:
    own = self.id_of(i)
    names = {own, *other_names_of(self._source, i)}
    self._refuse_names(names, own)
    listed = self._exclusions
    if len(listed.hashes):
      original = digest_of(self._source, i)
      if original and listed.has_hash(original):
        raise errors.Excluded(own)
    example = self._source[i]
    if example["id"] not in names:
      self._refuse_names({example["id"]}, own)
    if len(listed.hashes) and listed.has_hash(_digest(example["image"])):
      raise errors.Excluded(own)
    return example

  def names_found(self) -> set[bytes]:
    """What is listed of the names of all images, as `first_of` gives it."""
    found = set()
    for i in range(len(self)):
      names = {self.id_of(i), *other_names_of(self._source, i)}
      found.update(self._exclusions.found(self._all_forms(names)).tolist())
    return {number.to_bytes(8, sys.byteorder) for number in found}

  def id_of(self, i: int) -> str:
    return self._source.id_of(i)

  def label_of(self, i: int) -> int:
    return self._source.label_of(i)

  def digest(self, i: int) -> bytes | None:
    return digest_of(self._source, i)

  def path_of(self, i: int) -> str:
    return path_of(self._source, i)

  def other_names_of(self, i: int) -> tuple[str, ...]:
    return other_names_of(self._source, i)

  @property
  def inner(self) -> Source:
    """The source of all images."""
    return self._source

  def _refuse_names(self, names, own):
    if self._exclusions.has_name(self._all_forms(names)):
      raise errors.Excluded(own)

  def _all_forms(self, names):
    return {form for name in names for form in self._forms(name)}

  def _forms(self, name) -> Iterator[str]:
    """All that a list may call an image."""
    yield name
    yield self._prefix + name
    name = _normal(name)
    yield name
    for root in self._roots:
      yield _normal(_joined(root, name))
    if name.startswith("/") or filesystem.is_url(name):
      parts = name.split("/")
      for start in range(1, len(parts)):
        yield "/".join(parts[start:])

  def __repr__(self) -> str:
    return (
      f"{self._source!r} without what {self._exclusions.count} lines exclude"
    )


def warn_of_idle_lines(source: Excluding, path: str) -> None:
  """Says how many names of a list are those of no image.

  Of many images, or of images whose names are known only when they are read,
  absolute paths alone can be told: those outside of the source's root.
  """
  names = {
    os.fsdecode(line) for line in read_lines(path) if not _HASH.fullmatch(line)
  }
  if source.names_are_known and len(source) <= _LOOKED_THROUGH:
    found = source.names_found()
    idle = [
      name for name in names if found.isdisjoint(map(first_of, _forms(name)))
    ]
    why = f"no image of {source.inner!r} has such a name"
  elif source.may_lie_anywhere:
    return
  else:
    roots = tuple(f"{root.rstrip('/')}/" for root in roots_of(source.inner))
    idle = [
      name
      for name in filter(_is_absolute, names)
      if not any(form.startswith(roots) for form in _forms(name))
    ]
    where = roots[0] if roots else f"{source.inner!r}, which has no paths"
    why = f"they are paths outside of {where}"
  if idle:
    _log.warning(
      "%d of the %d names in %s exclude nothing: %s, for example %r",
      len(idle),
      len(names),
      path,
      why,
      min(idle),
    )


def read_lines(path: str) -> set[bytes]:
  """The lines of a list that are not empty, without a byte order mark.

  Raises:
    UserError: it cannot be read, or is empty.
  """
  try:
    data = filesystem.read(filesystem.absolute(path))
  except OSError as error:
    raise errors.UserError(
      f"cannot read the list {path}: {error.strerror or error}"
    ) from None
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # As PowerShell writes it.
    data = data.decode("utf-16", "replace").encode(errors="replace")
  data = data.removeprefix(b"\xef\xbb\xbf")
  found = {line.strip() for line in data.splitlines()} - {b""}
  if not found:
    raise errors.UserError(f"the list {path} is empty")
  return found


def roots_of(source: Source) -> tuple[str, ...]:
  """The folder that a source's ids are relative to, as given and as it is."""
  root = getattr(source, "root", "")
  if not root or filesystem.is_url(root):
    return (root,) if root else ()
  return tuple(dict.fromkeys((root, os.path.realpath(root))))


def _forms(line: str) -> Iterator[str]:
  """All that a line may mean; as few as suffice, for lists may be long."""
  yield line
  name = _normal(line)
  yield name
  if not filesystem.is_url(name):
    path = os.path.abspath(name)
    yield path
    folder, last = os.path.split(path)
    yield _joined(_real(folder), last)


@functools.lru_cache(maxsize=2**16)
def _real(folder):
  return os.path.realpath(folder)


def _joined(root, name):
  return name if _is_absolute(name) else f"{root.rstrip('/')}/{name}"


def _is_absolute(name):
  return name.startswith("/") or filesystem.is_url(name)


def _normal(name):
  """Without `./`, `//` and `x/..`; a URL stays as it is."""
  if filesystem.is_url(name):
    return name
  # POSIX gives two slashes at the beginning a meaning that nobody uses.
  return os.path.normpath(name).replace("//", "/")


def _digest(data: bytes) -> bytes:
  return hashlib.sha256(data).digest()


def first_of(name: str) -> bytes:
  """What is kept of a name."""
  return _digest(os.fsencode(name))[:8]


def _table(digests) -> np.ndarray:
  """Eight bytes of each, sorted: of a million names 32 megabytes at most.

  By chance one image in 10^12 is excluded beside a million listed.
  """
  first = b"".join(digest[:8] for digest in digests)
  return np.unique(np.frombuffer(first, np.uint64))


def _found_in(firsts: bytes, table: np.ndarray) -> np.ndarray:
  values = np.frombuffer(firsts, np.uint64)
  if not len(table):
    return values[:0]
  places = np.minimum(np.searchsorted(table, values), len(table) - 1)
  return values[table[places] == values]
