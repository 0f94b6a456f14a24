"""One image as it is stored: its bytes, its label, its name."""

from collections.abc import Collection
from typing import TypedDict

from seer_jax.runtime import errors

EXTENSIONS = (
  *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff"),
  *("gif", "ppm", "pgm", "pbm", "jp2", "avif"),
)
UNLABELLED = -1
# There may be so many times as many numbers of classes as classes that have an
# image; a few more than those always.
_SPARSEST, _ALWAYS = 10, 10**6


class Example(TypedDict):
  """One encoded image; `label` indexes `label_names`, or is -1: unlabelled."""

  image: bytes
  label: int
  id: str


def numbered_classes(labels: Collection[int], where: str) -> int:
  """How many classes there are if labels are their numbers.

  Args:
    labels: all that there are, from 0 on.
    where: they stand.

  Raises:
    UserError: they are no numbers of classes: far larger than they are many.
  """
  highest = max(labels, default=UNLABELLED)
  if highest > _SPARSEST * len(labels) + _ALWAYS:
    raise errors.UserError(
      f"labels of {where} go up to {highest}, but only {len(labels)} are used:"
      " they are numbers of classes; count these from 0, or give their names"
    )
  return highest + 1


def check_index(i: int, size: int) -> None:
  """Raises IndexError outside 0..size - 1."""
  if not 0 <= i < size:
    raise IndexError(f"index {i} is outside 0..{size - 1}")
