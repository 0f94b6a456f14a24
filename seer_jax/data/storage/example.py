"""One stored image: its bytes, its label, its name."""

from collections.abc import Collection
from typing import TypedDict

import numpy as np

from seer_jax.runtime import errors

EXTENSIONS = (
  *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff"),
  *("gif", "ppm", "pgm", "pbm", "jp2", "avif"),
)
UNLABELLED = -1
# The largest class number may be this many times the number of classes used,
# and always a few more than that.
_SPARSEST, _ALWAYS = 10, 10**6


class Example(TypedDict):
  """One encoded image; `label` indexes `label_names`, or is -1 for none."""

  image: bytes
  label: int
  id: str


def numbered_classes(labels: Collection[int], where: str) -> int:
  """How many classes there are if labels are class numbers from 0 on.

  Raises UserError if the numbers are too large to be those of classes.
  """
  highest = max(labels, default=UNLABELLED)
  if highest > _SPARSEST * len(labels) + _ALWAYS:
    raise errors.UserError(
      f"labels of {where} go up to {highest}, but only {len(labels)} are used;"
      " number the classes from 0, or give their names"
    )
  return highest + 1


def locate(ends: np.ndarray, i: int) -> tuple[int, int]:
  """(shard, number in it) of an index; `ends` are those of the shards.

  Raises IndexError if the index is outside.
  """
  check_index(i, int(ends[-1]))
  shard = int(np.searchsorted(ends, i, side="right"))
  return shard, i - (int(ends[shard - 1]) if shard else 0)


def check_index(i: int, size: int) -> None:
  """Raises IndexError outside 0..size - 1."""
  if not 0 <= i < size:
    raise IndexError(f"index {i} is outside 0..{size - 1}")
