"""Where a photograph was taken: a classifier of cells of the Earth.

Each class is a cell, and its prediction the cell's mean coordinates. Figures
are shares of images within 1, 25, 200, 750 and 2,500 km (Hays & Efros 2008;
cells of Müller-Budack et al. 2018, as in VISSL). Distances are great circles on
a sphere of radius 6,371 km.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from seer_jax.data.published import cells
from seer_jax.evals import context
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors

# Kilometers.
RADII = (1, 25, 200, 750, 2500)


class Geolocation:
  """Shares of images that are placed within the radii."""

  def __init__(self, ctx: context.Context):
    """Raises UserError if cells or coordinates are missing."""
    options = ctx.config.eval
    if not options.cells:
      raise errors.UserError(
        "geolocation needs config.eval.cells, a CSV with the latitude and"
        " longitude of each class"
      )
    self._cells_Cx2 = cells.read_cells(options.cells)
    self._table = rates.table_of(ctx.config, ctx.images.query)
    self._columns = cells.columns(self._table.names, "the table of test images")
    self._extract, self._query = ctx.extractor(("logits",)), ctx.images.query
    self._split = ctx.split

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`geolocation/25km`, share), ... and the median, in km."""
    found = self._extract.of(variables, self._query)
    classes = found.features_NxD.shape[1]
    if classes != len(self._cells_Cx2):
      raise errors.UserError(
        f"the classifier has {classes} classes, but config.eval.cells has"
        f" {len(self._cells_Cx2)} cells; give the cells it was trained on"
      )
    truth_Nx2 = np.stack(
      [self._table.numbers(name, found.index_N) for name in self._columns], 1
    )
    cells.check_degrees(truth_Nx2, "the table of test images")
    guess_N = np.argmax(found.features_NxD, 1)
    km_N = cells.distance(self._cells_Cx2[guess_N], truth_Nx2)
    for radius in RADII:
      name = f"geolocation/{radius}km"
      yield name, float(np.mean(km_N <= radius))
      yield from self._split(name, found.index_N, km_N <= radius)
    yield "geolocation/median_km", float(np.median(km_N))
