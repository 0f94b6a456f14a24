"""How much of the feature space clean images use; needs no labels."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from seer_jax.evals import features


def spread(features_NxD: np.ndarray, most: int = 2048) -> dict[str, float]:
  """How much of the feature space is used.

  Args:
    features_NxD: finite, of any scale; rows are normalised first.
    most: rows looked at, evenly spaced; the spectrum needs no more.

  Returns:
    `features/std`: mean standard deviation of the coordinates, times sqrt(D);
      towards 1 when rows point everywhere, 0 when all point the same way.
    `features/rank`: the effective rank, exp of the entropy of the normalised
      singular values (Roy and Vetterli 2007).
    Without a row both are 0.
  """
  if not len(features_NxD):
    return {"features/std": 0.0, "features/rank": 0.0}
  rows = features_NxD[:: -(-len(features_NxD) // most)].astype(np.float64)
  rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
  singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
  weight = singular / max(singular.sum(), 1e-12)
  weight = weight[weight > 0]
  return {
    "features/std": float(rows.std(0).mean() * math.sqrt(rows.shape[1])),
    "features/rank": float(np.exp(-np.sum(weight * np.log(weight)))),
  }


class Spread:
  """Standard deviation and effective rank of trunk features."""

  def __init__(self, extract: features.Extractor, images: features.ImageSet):
    self._extract, self._images = extract, images

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`features/std`, ...), (`features/rank`, ...).

    And (`features/nonfinite`, share of images left out), if there are any.
    """
    found = self._extract(variables, self._images)
    yield from spread(found.features_NxD).items()
    if found.nonfinite:
      yield "features/nonfinite", found.nonfinite
