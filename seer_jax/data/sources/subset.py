"""Some of the images of a source: a part, or those that a list names."""

import array
import dataclasses
import fractions
import math
import os
from collections.abc import Callable, Sequence

import numpy as np

from seer_jax.data import shuffle
from seer_jax.data.sources import opt_out
from seer_jax.data.sources.base import (
  Source,
  digest_of,
  other_names_of,
  path_of,
  row_of,
)
from seer_jax.data.storage import index_cache
from seer_jax.data.storage.example import Example, check_index
from seer_jax.runtime import errors, files


class Subset:
  """The images of a source that have some indices.

  Raises UserError if there are none.
  """

  def __init__(self, source: Source, indices: Sequence[int], about: object):
    """Chooses.

    Args:
      indices: of those chosen; light to pickle.
      about: what the choice depends on, apart from the source.
    """
    if not len(indices):
      raise errors.UserError("no image is left after choosing; choose more")
    self._source, self._indices = source, indices
    self.label_names = source.label_names
    inner = source.fingerprint, about
    self.fingerprint = files.fingerprint(inner)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> Example:
    return self._source[self._at(i)]

  def id_of(self, i: int) -> str:
    return self._source.id_of(self._at(i))

  def label_of(self, i: int) -> int:
    return self._source.label_of(self._at(i))

  def digest(self, i: int) -> bytes | None:
    return digest_of(self._source, self._at(i))

  def path_of(self, i: int) -> str:
    return path_of(self._source, self._at(i))

  def row_of(self, i: int, table: str) -> int | None:
    return row_of(self._source, self._at(i), table)

  def _at(self, i):
    check_index(i, len(self))
    return int(self._indices[i])

  def __repr__(self) -> str:
    return f"{len(self)} of {self._source!r}"


@dataclasses.dataclass(frozen=True)
class _Permuted:
  """The indices at a range of positions of a permutation, made on access."""

  begin: int
  end: int
  size: int
  key: str

  def __len__(self) -> int:
    return self.end - self.begin

  def __getitem__(self, i: int) -> int:
    check_index(i, len(self))  # Ends iteration.
    position = np.full(1, self.begin + i)
    return int(shuffle.permuted(position, self.size, self.key)[0])


class _Kept:
  """Indices in a file of the user's cache, found once."""

  def __init__(
    self, source: Source, about: object, find: Callable[[], np.ndarray]
  ):
    """Opens it.

    Args:
      about: what the indices depend on, apart from the source.
      find: computes them, if they are not in the cache.
    """
    known_by = source.fingerprint, len(source), source.label_names
    self._folder = files.cached("chosen", known_by, about)
    index_cache.open_index(
      self._folder,
      lambda folder: np.save(folder / "indices.npy", find()),
      self._open,
    )

  def _open(self):
    self._indices = np.load(self._folder / "indices.npy", mmap_mode="r")

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, i: int) -> int:
    return self._indices[i]

  def __getstate__(self):
    return {"_folder": self._folder}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


def some(
  source: Source,
  take: float,
  skip: float = 0,
  balanced: bool = False,
  seed: int = 0,
) -> Subset:
  """A part of a source's images, from one permutation of them.

  Calls with ranges that do not overlap give disjoint parts. Raises UserError if
  there are fewer images, or less than one is asked for.

  Args:
    take: up to 1, the share to take, where 1 is all the rest; above 1, the
      number.
    skip: how much of the permutation to leave out before, likewise.
    balanced: as many of each class: shares are of the smallest class; numbers
      are of all classes together, which differ by at most one image. Unlabelled
      images are left out.
  """
  take, skip = _amount("take", take), _amount("skip", skip)
  if take <= 0:
    raise errors.UserError("take is 0; it must be above 0")
  about = str(take), str(skip), bool(balanced), seed
  if balanced:
    kept = _Kept(source, about, lambda: _balanced(source, take, skip, seed))
    return Subset(source, kept, about)
  begin, end = _bounds(take, skip, len(source))
  if end > len(source):
    raise errors.UserError(
      f"skip={float(skip):g} and take={float(take):g} ask for {end} images, but"
      f" there are {len(source)}; reduce them"
    )
  part = _Permuted(begin, max(begin, end), len(source), f"subset {seed}")
  return Subset(source, part, about)


def _amount(key: str, value: float) -> fractions.Fraction:
  """A share or a number, exactly as written: 0.1 is a tenth."""
  value = float(value)
  if not (math.isfinite(value) and value >= 0):
    raise errors.UserError(
      f"{key} is {value:g}; it must be a share from 0 to 1, or a number"
    )
  if value > 1 and value != int(value):
    raise errors.UserError(
      f"{key} is {value:g}; above 1 it is a number of images and must be whole"
    )
  if key == "skip" and value == 1:
    raise errors.UserError(
      "skip is 1, the share of all images, so none is left; give a share below"
      " 1, or a number of images from 2 on"
    )
  return fractions.Fraction(repr(value))


def _bounds(take, skip, size: int) -> tuple[int, int]:
  """Where a part begins and ends; adjacent parts share a bound."""
  begin = _number(skip, size)
  if take == 1:
    return begin, size
  if take < 1 and skip < 1:
    return begin, round((skip + take) * size)
  return begin, begin + _number(take, size)


def _number(share_or_count: fractions.Fraction, size: int) -> int:
  if share_or_count <= 1:
    return round(share_or_count * size)
  return int(share_or_count)


def _balanced(source, take, skip, seed) -> np.ndarray:
  labels = np.fromiter(
    (source.label_of(i) for i in range(len(source))), np.int32, len(source)
  )
  by_label = np.argsort(labels, kind="stable")
  by_label = by_label[np.count_nonzero(labels < 0) :]
  if not len(by_label):
    raise errors.UserError("balanced is set, but no image has a label")
  kinds, firsts = np.unique(labels[by_label], return_index=True)
  classes = np.split(by_label, firsts[1:])
  smallest = min(map(len, classes))
  chosen = []
  for number, members in enumerate(classes):
    begin, end = _class_bounds(take, skip, smallest, number, len(classes))
    if end > len(members):
      name = source.label_names[kinds[number]]
      raise errors.UserError(
        f"balanced with skip={float(skip):g} and take={float(take):g} asks for"
        f" {end} images of each of {len(classes)} classes, but {name!r} has"
        f" {len(members)}; reduce them"
      )
    key, wanted = f"subset {seed} {number}", np.arange(begin, end)
    chosen.append(members[shuffle.permuted(wanted, len(members), key)])
  return np.sort(np.concatenate(chosen))


def _class_bounds(take, skip, smallest, number, classes):
  """As `_bounds`, for one class; numbers are of all classes together."""

  def of_class(count):
    each, more = divmod(int(count), classes)
    return each + (number < more)

  if take <= 1 and skip < 1:
    return _bounds(take, skip, smallest)
  begin = of_class(skip) if skip > 1 else _number(skip, smallest)
  if take == 1:
    return begin, smallest
  if take < 1:
    return begin, begin + _number(take, smallest)
  if skip > 1:  # A class with one more image before has one less.
    return begin, of_class(skip + take)
  return begin, begin + of_class(take)


def named(source: Source, path: str) -> Subset:
  """The images that a file names, one per line.

  A line is an id, or the last part of one, with or without its extension, as in
  the published lists of 1 % and 10 % of ImageNet. Raises UserError if some are
  not in the source.
  """
  wanted = {os.fsdecode(line) for line in opt_out.read_lines(path)}
  digest = files.fingerprint(sorted(wanted))
  kept = _Kept(source, digest, lambda: _numbers_of(source, wanted, path))
  return Subset(source, kept, digest)


def _numbers_of(source, wanted, path) -> np.ndarray:
  found, numbers = set(), array.array("q")
  for i in range(len(source)):
    hit = set()
    for name in (source.id_of(i), *other_names_of(source, i)):
      last = name.rpartition("/")[2]
      hit |= wanted & {name, last, os.path.splitext(last)[0]}
    if hit:
      found |= hit
      numbers.append(i)
  missing = sorted(wanted - found)
  if missing:
    raise errors.UserError(
      f"{len(missing)} of the {len(wanted)} images that {path} names are not in"
      f" the source, for example {missing[0]!r}"
    )
  return np.array(numbers, np.int64)
