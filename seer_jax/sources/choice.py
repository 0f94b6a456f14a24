"""Some of the images of a source: parts, named ones, and all but excluded."""

import hashlib
import os
import re

import numpy as np

from seer_jax import errors, order
from seer_jax.sources import files
from seer_jax.sources.source import Example, Source, check_index

_HASH = re.compile(rb"[0-9a-f]{64}")


class Subset:
  """Those of a source's images that have the given numbers.

  Raises:
    UserError: there are none.
  """

  def __init__(self, source: Source, indices: np.ndarray):
    if not len(indices):
      raise errors.UserError("nothing is left of the images that were chosen")
    self._source, self._indices = source, indices
    self.label_names = source.label_names
    digest = hashlib.sha256(source.fingerprint.encode())
    digest.update(np.ascontiguousarray(indices, np.int64).tobytes())
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> Example:
    return self._source[self._at(i)]

  def id_of(self, i: int) -> str:
    return self._source.id_of(self._at(i))

  def label_of(self, i: int) -> int:
    return self._source.label_of(self._at(i))

  def _at(self, i):
    check_index(i, len(self))
    return int(self._indices[i])

  def __repr__(self) -> str:
    return f"{len(self)} of {self._source!r}"


def some(
  source: Source,
  take: float,
  skip: float = 0,
  balanced: bool = False,
  seed: int = 0,
) -> Subset:
  """A part of a source's images, from one permutation of them.

  What one call skips is what another takes: parts may be disjoint.

  Args:
    source: of all images.
    take: up to 1, their share; above, their number.
    skip: how many of the permutation to leave out before, likewise.
    balanced: as many of each class, up to one; images without a label are left
      out. Of a class with too few all are taken.
    seed: of the permutation.

  Raises:
    UserError: there are not as many, or fewer than one is asked for.
  """
  if not (take > 0 and skip >= 0):
    raise errors.UserError(
      f"take={take:g} and skip={skip:g}: the first must be above 0, the second"
      " not below"
    )
  if balanced:
    labels = np.array([source.label_of(i) for i in range(len(source))])
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    classes = classes[int(labels.min() < 0) :]
  else:
    classes = [len(source)]
  sizes = [size if np.isscalar(size) else len(size) for size in classes]
  begin = _shared(_number(skip, sum(sizes)), sizes)
  end = _shared(_number(skip, sum(sizes)) + _number(take, sum(sizes)), sizes)
  chosen = []
  for number, (members, size) in enumerate(zip(classes, sizes, strict=True)):
    places = np.arange(begin[number], min(end[number], size))
    indices = order.permuted(places, size, f"subset {seed} {number}")
    chosen.append(indices if np.isscalar(members) else members[indices])
  wanted = _number(take, sum(sizes))
  found = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, int)
  if len(found) < wanted and not balanced:
    raise errors.UserError(
      f"skip={skip:g} and take={take:g} ask for images up to number"
      f" {begin[0] + wanted} of {len(source)}; ask for fewer"
    )
  return Subset(source, found)


def _number(share_or_count: float, size: int) -> int:
  if share_or_count <= 1:
    return round(share_or_count * size)
  return int(share_or_count)


def _shared(count: int, sizes: list[int]) -> list[int]:
  """So many over all classes, differing by one at most."""
  each, more = divmod(count, max(1, len(sizes)))
  return [each + (number < more) for number in range(len(sizes))]


def named(source: Source, path: str) -> Subset:
  """The images that a file names, a line each.

  As the published lists of 1 % and 10 % of ImageNet do. A line is an id, or
  the last part of one, with its extension or without.

  Raises:
    UserError: some are not in the source.
  """
  wanted = {os.fsdecode(line) for line in _lines(path)}
  found, numbers = set(), []
  for i in range(len(source)):
    name = source.id_of(i)
    last = name.rpartition("/")[2]
    hit = wanted & {name, last, os.path.splitext(last)[0]}
    if hit:
      found |= hit
      numbers.append(i)
  missing = sorted(wanted - found)
  if missing:
    raise errors.UserError(
      f"{len(missing)} of the {len(wanted)} images that {path} names are not in"
      f" the source, for example {missing[0]!r}"
    )
  return Subset(source, np.array(numbers))


class Excluding:
  """A source that hands out nothing that a list excludes.

  A line of the list is an id, a path, or the SHA-256 of a file's bytes. Numbers
  stay as they are; reading an excluded image raises `Excluded`, and the caller
  takes another or leaves it out.

  Raises:
    UserError: the list cannot be read.
  """

  def __init__(self, source: Source, path: str):
    self._source = source
    self.label_names = source.label_names
    entries = _lines(path)
    root = os.fsencode(getattr(source, "root", "")) + b"/"
    names = [entry for entry in entries if not _HASH.fullmatch(entry)]
    names += [name.removeprefix(root) for name in names if len(root) > 1]
    self._names = _table(map(_digest, names))
    self._hashes = _table(
      bytes.fromhex(entry.decode())
      for entry in entries
      if _HASH.fullmatch(entry)
    )
    inner = source.fingerprint, sorted(entries)
    self.fingerprint = hashlib.sha256(repr(inner).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i: int) -> Example:
    if _in(_digest(os.fsencode(self.id_of(i))), self._names):
      raise errors.Excluded(self.id_of(i))
    example = self._source[i]
    if len(self._hashes) and _in(_digest(example["image"]), self._hashes):
      raise errors.Excluded(self.id_of(i))
    return example

  def id_of(self, i: int) -> str:
    return self._source.id_of(i)

  def label_of(self, i: int) -> int:
    return self._source.label_of(i)

  def __repr__(self) -> str:
    listed = len(self._names) + len(self._hashes)
    return f"{self._source!r} but for {listed} listed"


def _lines(path):
  try:
    data = files.read(files.absolute(path))
  except OSError as error:
    raise errors.UserError(
      f"cannot read the list {path}: {error.strerror or error}"
    ) from None
  found = {line.strip() for line in data.splitlines()} - {b""}
  if not found:
    raise errors.UserError(f"the list {path} is empty")
  return found


def _digest(data: bytes) -> bytes:
  return hashlib.sha256(data).digest()


def _table(digests) -> np.ndarray:
  """Eight bytes of each, sorted: of a million names eight megabytes.

  By chance one image in 10^13 is excluded beside a million listed.
  """
  first = b"".join(digest[:8] for digest in digests)
  return np.unique(np.frombuffer(first, ">u8"))


def _in(digest: bytes, table: np.ndarray) -> bool:
  value = np.frombuffer(digest[:8], ">u8")[0]
  place = np.searchsorted(table, value)
  return bool(place < len(table) and table[place] == value)
