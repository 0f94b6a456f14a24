"""Cells of the Earth, and distances on it."""

import numpy as np

from seer_jax.data.published import rows as rows_lib
from seer_jax.runtime import errors, files

_EARTH = 6371.0  # Kilometers.
_LATITUDE = "latitude", "lat", "latitude_mean"
_LONGITUDE = "longitude", "lon", "lng", "longitude_mean"


def read_cells(path: str) -> np.ndarray:
  """Latitude and longitude of each class, in degrees: cells_Cx2.

  A CSV with columns of both and, perhaps, `class_label`, the number of the
  class; otherwise classes are in the order of the rows. Raises UserError if it
  is malformed, or classes are missing or twice.
  """
  rows = rows_lib.read_csv(files.user_path(path))
  latitude, longitude = columns(tuple(rows[0]) if rows else (), path)
  try:
    cells_Cx2 = np.array(
      [(float(row[latitude]), float(row[longitude])) for row in rows]
    )
    numbers_C = np.array(
      [int(row.get("class_label") or at) for at, row in enumerate(rows)]
    )
  except (TypeError, ValueError) as error:
    raise errors.UserError(
      f"{path} has a cell that is no number: {errors.one_line(error)}"
    ) from None
  if sorted(numbers_C.tolist()) != list(range(len(rows))):
    raise errors.UserError(
      f"{path}: class_label must have each of 0 to {len(rows) - 1} once"
    )
  check_degrees(cells_Cx2, path)
  return cells_Cx2[np.argsort(numbers_C)]


def columns(names: tuple[str, ...], path: str) -> tuple[str, str]:
  """Names of the columns of latitude and longitude. Raises UserError."""
  found = [
    next((name for name in names if name.lower() in wanted), None)
    for wanted in (_LATITUDE, _LONGITUDE)
  ]
  if None in found:
    raise errors.UserError(
      f"{path} has no columns latitude and longitude, only"
      f" {', '.join(names) or 'none'}"
    )
  return found[0], found[1]


def check_degrees(degrees_Nx2: np.ndarray, where: str) -> None:
  """Raises UserError for coordinates that are not on Earth."""
  fine_N = (np.abs(degrees_Nx2) <= (90, 180)).all(1)
  if not fine_N.all():
    bad = tuple(degrees_Nx2[np.argmin(fine_N)].tolist())
    raise errors.UserError(
      f"{where} has the coordinates {bad}; latitudes are within 90 degrees and"
      " longitudes within 180"
    )


def distance(a_Nx2: np.ndarray, b_Nx2: np.ndarray) -> np.ndarray:
  """Great-circle distances in kilometers, by the haversine formula: N."""
  a_Nx2, b_Nx2 = np.radians(a_Nx2), np.radians(b_Nx2)
  half_Nx2 = np.sin((a_Nx2 - b_Nx2) / 2) ** 2
  cosines_N = np.cos(a_Nx2[:, 0]) * np.cos(b_Nx2[:, 0])
  h_N = half_Nx2[:, 0] + cosines_N * half_Nx2[:, 1]
  return 2 * _EARTH * np.arcsin(np.sqrt(np.clip(h_N, 0, 1)))


def nearest_cell(degrees_Nx2: np.ndarray, cells_Cx2: np.ndarray) -> np.ndarray:
  """The class whose cell's mean is nearest to each point: N."""
  points, means = (_on_sphere(x) for x in (degrees_Nx2, cells_Cx2))
  parts = [
    np.argmax(points[first : first + 4096] @ means.T, 1)
    for first in range(0, len(points), 4096)
  ]
  return np.concatenate(parts)


def _on_sphere(degrees_Nx2):
  latitude, longitude = np.radians(degrees_Nx2).T
  return np.stack(
    [
      np.cos(latitude) * np.cos(longitude),
      np.cos(latitude) * np.sin(longitude),
      np.sin(latitude),
    ],
    1,
  )
