"""Arrays in files: described without being read.

All claims of a header are checked against the file first.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seer_jax.runtime import errors

_MOST_AXES = 32


class Storage(NamedTuple):
  """A range of bytes in a file."""

  path: pathlib.Path
  offset: int
  size: int
  dtype: np.dtype


# Tuples, since a pickle can reach into the attributes of most other objects.
class Tensor(NamedTuple):
  """A strided view of a storage, as in PyTorch; nothing is read yet."""

  storage: Storage
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # In elements.
  start: int = 0  # Its first element in the storage.

  @property
  def dtype(self) -> np.dtype:
    return self.storage.dtype

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @contextlib.contextmanager
  def mapped(self) -> Iterator[np.ndarray]:
    """Maps the array, read-only, while the block lasts.

    Its pages count as memory of this process until then; copy what is to be
    kept. Raises UserError if the file is missing, or shorter than it was.
    """
    if not self.size:
      yield np.zeros(self.shape, self.dtype)
      return
    try:
      flat = np.memmap(
        self.storage.path,
        self.dtype,
        mode="r",
        offset=self.storage.offset + self.start * self.dtype.itemsize,
        shape=(_span(self.shape, self.strides),),
      )
    except (OSError, ValueError) as error:
      raise errors.UserError(
        f"cannot read {self.storage.path}: {error}"
      ) from error
    steps = tuple(step * self.dtype.itemsize for step in self.strides)
    yield np.lib.stride_tricks.as_strided(
      flat, self.shape, steps, writeable=False
    )

  def read(self) -> np.ndarray:
    """A copy in memory."""
    with self.mapped() as view:
      return np.array(view)


def view(
  storage: Storage,
  shape: tuple[int, ...],
  strides: tuple[int, ...] | None = None,
  start: int = 0,
) -> Tensor:
  """A tensor from the claims of a header, once checked.

  Raises ValueError if it is not within the storage.

  Args:
    strides: in elements; None if the rows are contiguous.
  """
  if len(shape) > _MOST_AXES:
    raise ValueError(f"{len(shape)} axes")
  if strides is None:
    strides = contiguous(shape)
  numbers = (start, *shape, *strides)
  if any(type(each) is not int or each < 0 for each in numbers):
    words = ", ".join(map(errors.shown, numbers[: 2 * _MOST_AXES]))
    raise ValueError(f"start, shape and strides {words}")
  if len(shape) != len(strides):
    raise ValueError(f"shape {shape} and {len(strides)} strides")
  count = storage.size // storage.dtype.itemsize
  # Strides of 0 would repeat elements: much memory from a small file.
  too_much = math.prod(shape) > count
  if too_much or start + _span(shape, strides) > count:
    words = f"shape {shape} with strides {strides} from element {start}"
    raise ValueError(f"{errors.shown(words, 200)} in a storage of {count}")
  return Tensor(storage, shape, strides, start)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Strides, in elements, of contiguous rows."""
  return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def raw(array: np.ndarray) -> memoryview:
  """The bytes of an array in C order; bfloat16 has no buffer of its own."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def within(folder: pathlib.Path, name: object) -> pathlib.Path:
  """The file with this bare name in a folder.

  Raises UserError for a path, or if the file is missing.
  """
  plain = isinstance(name, str) and name.isprintable()
  if not plain or name in ("", ".", ".."):
    raise errors.UserError(f"{errors.shown(name)} names no file in {folder}")
  if "/" in name or "\\" in name:
    raise errors.UserError(
      f"{errors.shown(name)} leads out of {folder}; refused"
    )
  path = folder / name
  # A name may be longer than file systems allow.
  if not os.path.isfile(path):
    raise errors.UserError(
      f"{folder}/{errors.shown(name)} is missing; copy it there"
    )
  return path


def _span(shape, strides):
  """The number of elements from the first to the last."""
  if not math.prod(shape):
    return 0
  return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
