"""Images that must not be used: a source without those that lists name."""

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
  row_of,
)
from seer_jax.data.storage import filesystem
from seer_jax.data.storage.example import Example
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# Sources up to this size are searched for the names of a list when opened, in
# two seconds at most.
_LOOKED_THROUGH = 200_000

# A hash by itself, beside a path as sha256sum and shasum write it, or with the
# prefix of registries. sha256sum's backslash marks a path with a line break.
_HASH = re.compile(
  rb"\\?(?:sha256:|SHA2?-?256 \(.*\) = )?([0-9a-f]{64})(?:[ \t,;].*)?",
  re.IGNORECASE,
)


class Exclusions:
  """What lists exclude: each line is an id, a path, or the SHA-256 of a file.

  Raises UserError if a list cannot be read, or is empty.
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
    """Whether any of the names of an image is listed."""
    return bool(len(self.found(names)))

  def found(self, names: Collection[str]) -> np.ndarray:
    """The listed ones of some names, as `first_of` encodes them."""
    return _found_in(b"".join(map(first_of, names)), self._names)

  def has_hash(self, digest: bytes) -> bool:
    """Whether the SHA-256 of a file is listed."""
    return bool(len(_found_in(digest[:8], self.hashes)))


class Excluding:
  """A source that returns no image that lists exclude.

  Indices do not change; reading an excluded image raises `Excluded`, and the
  caller replaces it or leaves it out. This wraps the source itself, inside
  whatever takes a part of it, so that nothing bypasses it.

  An image is recognized by its id, the other names that its source gives it,
  its path in any spelling, and the hashes of its file and of the file it was
  packed from. A relative path is relative to the source's root or to the folder
  in which the program starts; an absolute entry of a list of images is also
  recognized by any relative path that it ends in.
  """

  def __init__(self, source: Source, exclusions: Exclusions, prefix: str = ""):
    """Wraps a source.

    Args:
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
    """The listed names that any image has, as `first_of` encodes them."""
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

  def row_of(self, i: int, table: str) -> int | None:
    return row_of(self._source, i, table)

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
    """All spellings by which a list may refer to an image."""
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
  """Warns of names in a list that match no image.

  Of many images, or of images whose names are known only when they are read,
  only absolute paths outside the source's root can be checked.
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
  """The lines of a list that are not empty, without a byte-order mark.

  Raises UserError if it cannot be read, or is empty.
  """
  with errors.reading(f"the list {path}"):
    data = filesystem.read(filesystem.absolute(path))
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # As PowerShell writes it.
    data = data.decode("utf-16", "replace").encode(errors="replace")
  data = data.removeprefix(b"\xef\xbb\xbf")
  found = {line.strip() for line in data.splitlines()} - {b""}
  if not found:
    raise errors.UserError(f"the list {path} is empty")
  return found


def roots_of(source: Source) -> tuple[str, ...]:
  """The folder that ids are relative to, as given and with links resolved."""
  root = getattr(source, "root", "")
  if not root or filesystem.is_url(root):
    return (root,) if root else ()
  return tuple(dict.fromkeys((root, os.path.realpath(root))))


def _forms(line: str) -> Iterator[str]:
  """All meanings of a line; no more than needed, since lists may be long."""
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
  """Without `./`, `//` and `x/..`; URLs are not changed."""
  if filesystem.is_url(name):
    return name
  # POSIX gives two leading slashes a meaning that is not used.
  return os.path.normpath(name).replace("//", "/")


def _digest(data: bytes) -> bytes:
  return hashlib.sha256(data).digest()


def first_of(name: str) -> bytes:
  """What is kept of a name: the first bytes of its hash."""
  return _digest(os.fsencode(name))[:8]


def _table(digests) -> np.ndarray:
  """Eight bytes of each, sorted: at most 32 MB for a million names.

  The probability that a given image is excluded by chance, with a million names
  listed, is below 10^-12.
  """
  first = b"".join(digest[:8] for digest in digests)
  return np.unique(np.frombuffer(first, np.uint64))


def _found_in(firsts: bytes, table: np.ndarray) -> np.ndarray:
  values = np.frombuffer(firsts, np.uint64)
  if not len(table):
    return values[:0]
  rows = np.minimum(np.searchsorted(table, values), len(table) - 1)
  return values[table[rows] == values]
