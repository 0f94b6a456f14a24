"""PCA whitening of vectors, fitted to other images than those searched."""

from collections.abc import Iterable

import numpy as np

from seer_jax.runtime import errors

# Least eigenvalue, as a share of the largest (VISSL's PCA).
_LEAST = 1e-5


def fit(parts: Iterable[np.ndarray], components: int) -> dict[str, np.ndarray]:
  """The whitening of vectors, read once: {"mean": C, "projection": CxP}.

  The projection is onto the P leading eigenvectors of the covariance, each
  divided by the square root of its eigenvalue, which is at least 1e-5 of the
  largest. As in the published code the scatter is not divided by the number of
  vectors, which normalization afterwards cancels. Float32 of sums in float64.

  Args:
    parts: arrays of vectors, each with C columns.
    components: P.

  Raises:
    UserError: there are fewer vectors than components, or these exceed C.
  """
  count, total, scatter = 0, 0.0, 0.0
  for part in parts:
    x_NxC = np.asarray(part, np.float64)
    count += len(x_NxC)
    total = total + x_NxC.sum(0)
    scatter = scatter + x_NxC.T @ x_NxC
  width = len(total) if count else 0
  if components > width:
    raise errors.UserError(
      f"config.eval.retrieval.components is {components}, but vectors have"
      f" {width} numbers; give at most {width}"
    )
  if count <= components:
    raise errors.UserError(
      f"whitening to {components} components needs more than {components}"
      f" vectors, but config.eval.retrieval.whiten gives {count}; give more"
      " images, or reduce config.eval.retrieval.components"
    )
  mean_C = total / count
  scatter = scatter - count * np.outer(mean_C, mean_C)
  values, vectors = np.linalg.eigh(scatter)
  values = np.maximum(values, _LEAST * values.max())
  leading = np.argsort(-values, kind="stable")[:components]
  projection = vectors[:, leading] / np.sqrt(values[leading])
  return {
    "mean": mean_C.astype(np.float32),
    "projection": projection.astype(np.float32),
  }
