"""How much of the feature space clean images use; needs no labels."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from seer_jax.evals import features


def spread(features_NxD: np.ndarray, most: int = 2048) -> dict[str, float]:
  """How much of the feature space is used, by at most so many rows.

  Rows are normalized first. `features/std` is the mean standard deviation of
  the coordinates, times sqrt(D): near 1 if rows point everywhere, 0 if all
  point the same way. `features/rank` is the effective rank, exp of the entropy
  of the normalized singular values (Roy and Vetterli 2007). Without rows both
  are 0.
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


def spectrum(features_NxD: np.ndarray, most: int = 8192) -> dict[str, float]:
  """Two signs of quality from the spectrum of raw features, without labels.

  `features/rankme` is exp of the entropy of the singular values (Garrido et al.
  2023, equation 1); higher was better downstream, among runs of one method.
  `features/alpha` is the exponent of the eigenvalues of the covariance,
  i^-alpha (Agrawal et al. 2022), fitted to those above a millionth of the
  largest; near 1 was best. Both are 0 with fewer than two rows. RankMe uses
  25,600 rows; this one fewer, since it runs on the host while devices wait.
  """
  if len(features_NxD) < 2:
    return {"features/rankme": 0.0, "features/alpha": 0.0}
  rows = features_NxD[:: -(-len(features_NxD) // most)].astype(np.float64)
  # The smaller of the two Gram matrices has the same eigenvalues.
  singular = np.sqrt(np.maximum(np.linalg.eigvalsh(_gram(rows)), 0))
  share = singular / max(singular.sum(), 1e-12) + 1e-7
  eigen = np.linalg.eigvalsh(_gram(rows - rows.mean(0)))[::-1]
  eigen = eigen[eigen > max(eigen[0], 0) * 1e-6]
  alpha = 0.0
  if len(eigen) > 1:
    rank = np.log(np.arange(1, len(eigen) + 1))
    alpha = -np.polyfit(rank, np.log(eigen), 1)[0]
  return {
    "features/rankme": float(np.exp(-np.sum(share * np.log(share)))),
    "features/alpha": float(alpha),
  }


def _gram(rows):
  return rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T


def unique_prototypes(kernel_PxK: np.ndarray, near: float = 0.975) -> float:
  """Share of prototypes with no other as near as a cosine of `near`.

  Prototypes that coincide are lost codes (counted as in arXiv 2510.20108).
  """
  kernel = np.asarray(kernel_PxK, np.float32)
  kernel = kernel / np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)
  count, alone = kernel.shape[1], 0
  for start in range(0, count, 1024):
    cosine = kernel[:, start : start + 1024].T @ kernel
    rows = np.arange(len(cosine))
    cosine[rows, start + rows] = -1
    alone += int(np.sum(cosine.max(1) < near))
  return alone / count


class Spread:
  """Statistics of clean trunk features and of prototypes, without labels."""

  def __init__(self, extract: features.Extractor, images: features.ImageSet):
    self._extract, self._images = extract, images

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields the values of `spread` and of `spectrum` by name.

    Then `features/nonfinite`, the share of images left out, if there are any,
    and `prototypes/unique` of the first head, if there is one.
    """
    found = self._extract(variables, self._images)
    yield from spread(found.features_NxD).items()
    yield from spectrum(found.features_NxD).items()
    if found.nonfinite:
      yield "features/nonfinite", found.nonfinite
    head = variables.get("params", {}).get("prototypes_0")
    if head:
      yield "prototypes/unique", unique_prototypes(np.asarray(head["kernel"]))
