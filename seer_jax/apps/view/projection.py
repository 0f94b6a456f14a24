"""Embeddings on a plane: UMAP where it is installed, else two components."""

import logging
import warnings

import numpy as np

from seer_jax.apps.embedding import embeddings, vectors
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# UMAP takes long for more images: auto takes PCA.
_UMAP_MOST = 50_000
_SAMPLE = 20_000
# Outliers do not shrink the rest to a dot.
_OUTSIDE = 0.2


def plane(found: embeddings.Embeddings, method: str) -> tuple[str, np.ndarray]:
  """(the method that was taken, place_Nx2 within 0 and 1, float32).

  Kept in the user's cache: made once for a collection. Raises UserError if UMAP
  is asked for and not installed.
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
  place_Nx2 = placed(found.features, method)
  with files.whole_file(path) as file:
    np.save(file, place_Nx2)
  return method, place_Nx2


def best_for(images: int) -> str:
  """The method for so many images: UMAP where it is there and is not slow."""
  return "umap" if 15 < images <= _UMAP_MOST and _umap() else "pca"


def placed(features_NxD: np.ndarray, method: str) -> np.ndarray:
  """Features on a plane, by "umap" or "pca": Nx2 within 0 and 1, float32."""
  return _within((_by_umap if method == "umap" else pca)(features_NxD))


def _umap():
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # It tells what else could be installed.
      import umap
  except ImportError:
    return None
  return umap


def _by_umap(features_NxD):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # A seed costs its parallelism; it says so.
    return (
      _umap()
      .UMAP(metric="cosine", random_state=0)
      .fit_transform(vectors.unit(features_NxD))
    )


def pca(features_NxD: np.ndarray) -> np.ndarray:
  """The two principal components of directions, fitted on some of them: Nx2."""
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


def _within(place_Nx2):
  """Into the unit square, with a little room for outliers."""
  low, high = np.percentile(place_Nx2, (1, 99), axis=0)
  middle = (low + high) / 2
  reach = max(float(np.max(high - low)), 1e-9) / 2 * (1 + _OUTSIDE)
  place = 0.5 + (place_Nx2 - middle) / (2 * reach)
  return np.clip(place, 0, 1).astype(np.float32)
