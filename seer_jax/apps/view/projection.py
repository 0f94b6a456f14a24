"""Embeddings in the plane: by UMAP if it is installed, else by PCA."""

import logging
import warnings

import numpy as np

from seer_jax.apps.embedding import embeddings, vectors
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# Beyond so many images UMAP is slow, and "auto" is PCA.
_UMAP_MOST = 50_000
_SAMPLE = 20_000
# Room around the central 98 % of the images; outliers are clipped to its edge.
_OUTSIDE = 0.2


def plane(found: embeddings.Embeddings, method: str) -> tuple[str, np.ndarray]:
  """(method used, position_Nx2 within 0 and 1, float32).

  Kept in the user's cache. Raises UserError if UMAP is asked for but not
  installed.
  """
  if method == "auto":
    method = best_for(len(found))
  if method == "umap" and not _umap():
    raise errors.UserError(
      "--map umap needs a library; run: pip install 'seer_jax[map]'"
    )
  path = files.cache_folder("maps") / f"{found.fingerprint}-{method}.npy"
  if path.exists():
    return method, np.load(path)
  _log.info("making the map of %d images by %s", len(found), method)
  position_Nx2 = positions(found.features, method)
  with files.whole_file(path) as file:
    np.save(file, position_Nx2)
  return method, position_Nx2


def best_for(images: int) -> str:
  """The method for so many images: UMAP if it is installed and fast enough."""
  return "umap" if 15 < images <= _UMAP_MOST and _umap() else "pca"


def positions(features_NxD: np.ndarray, method: str) -> np.ndarray:
  """Positions by "umap" or "pca": Nx2 within 0 and 1, float32."""
  return _within((_by_umap if method == "umap" else pca)(features_NxD))


def _umap():
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # About optional dependencies.
      import umap
  except ImportError:
    return None
  return umap


def _by_umap(features_NxD):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # That a seed disables its parallelism.
    return (
      _umap()
      .UMAP(metric="cosine", random_state=0)
      .fit_transform(vectors.unit(features_NxD))
    )


def pca(features_NxD: np.ndarray) -> np.ndarray:
  """Two principal components of directions, fitted to a sample: Nx2."""
  count, width = features_NxD.shape
  rows = np.arange(count)
  if count > _SAMPLE:
    rows = np.sort(np.random.default_rng(0).permutation(count)[:_SAMPLE])
  some_MxD = vectors.unit(features_NxD[rows])
  mean_D = some_MxD.mean(0)
  _, basis = np.linalg.eigh(np.cov(some_MxD.T).reshape(width, width))
  basis_Dx2 = np.zeros((width, 2), np.float32)
  basis_Dx2[:, : min(2, width)] = basis[:, ::-1][:, :2]
  parts = [
    (vectors.unit(features_NxD[first : first + _SAMPLE]) - mean_D) @ basis_Dx2
    for first in range(0, count, _SAMPLE)
  ]
  return np.concatenate(parts)


def _within(position_Nx2):
  """Scales positions to the unit square, with room for outliers."""
  low, high = np.percentile(position_Nx2, (1, 99), axis=0)
  middle = (low + high) / 2
  reach = max(float(np.max(high - low)), 1e-9) / 2 * (1 + _OUTSIDE)
  position = 0.5 + (position_Nx2 - middle) / (2 * reach)
  return np.clip(position, 0, 1).astype(np.float32)
