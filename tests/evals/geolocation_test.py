"""Distances on Earth, and cells from tables."""

import math

import numpy as np
import pytest

from seer_jax.data.published import cells
from seer_jax.runtime import errors


def test_distances_equal_arcs_on_paper():
  """A quarter of the equator, half a meridian, and nothing."""
  a = np.array([[0.0, 0.0], [90.0, 10.0], [48.0, 2.0]])
  b = np.array([[0.0, 90.0], [-90.0, 0.0], [48.0, 2.0]])
  quarter = math.pi / 2 * 6371
  np.testing.assert_allclose(
    cells.distance(a, b), [quarter, 2 * quarter, 0], atol=1e-6
  )
  # Across the date line it is 2 degrees, not 358.
  (found,) = cells.distance(np.array([[0.0, 179.0]]), np.array([[0.0, -179.0]]))
  assert found == pytest.approx(2 * math.pi / 180 * 6371)


def test_the_nearest_cell_is_found_across_the_date_line():
  centers = np.array([[0.0, 170.0], [0.0, -178.0], [80.0, 0.0]])
  found = cells.nearest_cell(np.array([[1.0, 179.0], [70.0, 5.0]]), centers)
  np.testing.assert_array_equal(found, [1, 2])


def test_cells_are_in_the_order_of_their_classes(tmp_path):
  path = tmp_path / "cells.csv"
  path.write_text(
    "class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean\n"
    "1,a,9,10,20\n0,b,9,30,40\n"
  )
  np.testing.assert_array_equal(
    cells.read_cells(str(path)), [[30, 40], [10, 20]]
  )
  for text, words in (
    ("a,b\n1,2\n", "no columns latitude and longitude"),
    ("latitude,longitude\n91,0\n", "within 90 degrees"),
    ("latitude,longitude\nx,0\n", "no number"),
    ("class_label,latitude,longitude\n0,1,1\n0,2,2\n", "each of 0 to 1 once"),
  ):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=words):
      cells.read_cells(str(path))
