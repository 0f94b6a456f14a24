"""Unit vectors rounded to an integer grid, on which k-means is exact.

A sum of floats depends on its order, so that clusters would differ between one
device and eight. All products and sums of these integers stay below 2^23, where
float32 is exact: any order, device and library gives the same clusters. The
rounding moves a unit vector by sqrt(D / 12) / scale, 0.2 % at 256 dimensions.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from seer_jax.apps.embedding import vectors
from seer_jax.runtime import errors, files

# |x . c| + |c|^2 / 2, of vectors about as long as the scale.
_EXACT = 2**23
# Rows rounded at once.
_ROWS = 2**14


def scale_of(width: int) -> int:
  """The length of unit vectors of D dimensions on the grid."""
  # Rounding lengthens a vector by up to sqrt(D) / 2, and a mean by as much
  # again; this leaves room for both.
  return int(math.sqrt(_EXACT / 1.5) - math.sqrt(width))


def rounded(x_NxD: np.ndarray) -> np.ndarray:
  """Vectors scaled to length one, on the grid: int16."""
  unit_NxD = vectors.unit(x_NxD)
  return np.rint(unit_NxD * scale_of(x_NxD.shape[1])).astype(np.int16)


def write(
  path: pathlib.Path,
  parts: Callable[[], Iterable[np.ndarray]],
  shape: tuple[int, int],
  name_of: Callable[[int], str],
  components: int = 0,
) -> np.ndarray:
  """Writes vectors to a file, unless it exists, and maps it: int16 NxD.

  Raises UserError if a vector is not finite or has another width, and Lost if
  the disk is full.

  Args:
    path: of the file.
    parts: makes an iterator over the vectors, in order, each MxD.
    shape: (N, D).
    name_of: the name of a row, for messages.
    components: writes so many whitened principal components of the vectors
      instead, as DeepCluster does (Caron et al. 2018, section 3.3); 0 for the
      vectors themselves.
  """
  if not path.exists():
    change = _whitening(_checked(parts(), shape, name_of), components)
    with files.whole_file(path) as file:
      for x_RxD in _checked(parts(), shape, name_of):
        file.write(rounded(change(x_RxD)))
  width = components or shape[1]
  return np.memmap(path, np.int16, "r", shape=(shape[0], width))


def _checked(parts, shape, name_of) -> Iterator[np.ndarray]:
  """The vectors in blocks, RxD."""
  first = 0
  for part_MxD in parts:
    for start in range(0, len(part_MxD), _ROWS):
      x_RxD = part_MxD[start : start + _ROWS]
      _check(x_RxD, shape[1], first, name_of)
      yield x_RxD
      first += len(x_RxD)
  if first != shape[0]:
    raise errors.UserError(
      f"there are {first} features, but {shape[0]} names; embed again"
    )


def _whitening(blocks, components) -> Callable[[np.ndarray], np.ndarray]:
  """The change to whitened principal components of unit vectors."""
  if not components:
    return lambda x_RxD: x_RxD
  count, sum_D, sum_DxD = 0, 0.0, 0.0
  for x_RxD in blocks:
    unit_RxD = vectors.unit(x_RxD).astype(np.float64)
    count, sum_D = count + len(unit_RxD), sum_D + unit_RxD.sum(0)
    sum_DxD = sum_DxD + unit_RxD.T @ unit_RxD
  mean_D = sum_D / count
  variance_D, axis_DxD = np.linalg.eigh(
    sum_DxD / count - np.outer(mean_D, mean_D)
  )
  scale_C = np.sqrt(np.maximum(variance_D[-components:], 1e-12))
  white_DxC = (axis_DxD[:, -components:] / scale_C).astype(np.float32)
  return lambda x_RxD: (
    (vectors.unit(x_RxD) - mean_D.astype(np.float32)) @ white_DxC
  )


def _check(x_RxD, width, first, name_of):
  if x_RxD.shape[1] != width:
    raise errors.UserError(
      f"features from {name_of(first)} on have {x_RxD.shape[1]} numbers, those"
      f" before have {width}; embed all images with the same weights and tap"
    )
  finite_R = np.isfinite(x_RxD).all(1)
  if not finite_R.all():
    row = first + int(np.argmin(finite_R))
    raise errors.UserError(
      f"the features of {name_of(row)} are not finite; leave it out, or embed"
      " with --dtype float32"
    )


class Points:
  """Rows of vectors on the grid, read in blocks: M of them."""

  def __init__(self, grid_NxD: np.ndarray, rows_M: np.ndarray | None = None):
    """Takes the vectors, which may be mapped, and which rows; None for all."""
    self._grid, self._rows = grid_NxD, rows_M

  def __len__(self) -> int:
    return len(self._grid if self._rows is None else self._rows)

  @property
  def width(self) -> int:
    """D."""
    return self._grid.shape[1]

  def block(self, first: int, last: int) -> np.ndarray:
    """Some of the rows: int16."""
    if self._rows is None:
      return np.asarray(self._grid[first:last])
    return np.asarray(self._grid[self._rows[first:last]])

  def only(self, rows: np.ndarray) -> "Points":
    """The points at some of the positions."""
    return Points(self._grid, rows if self._rows is None else self._rows[rows])


def distances(
  points: Points, centre_KxD: np.ndarray, cluster_N: np.ndarray
) -> np.ndarray:
  """Squared distances of points to the centres of their clusters: int32 N."""
  found = [np.empty(0, np.int32)]
  for first in range(0, len(points), _ROWS):
    x_RxD = points.block(first, first + _ROWS).astype(np.int32)
    x_RxD -= centre_KxD[cluster_N[first : first + _ROWS]]
    found.append(np.einsum("rd,rd->r", x_RxD, x_RxD).astype(np.int32))
  return np.concatenate(found)
