"""NumPy functions of embeddings, for arrays that may be memory maps."""

import numpy as np

# Rows at once.
_PART = 2**14


def unit(x_NxD: np.ndarray) -> np.ndarray:
  """Rows scaled to length one, float32; zeros stay zeros."""
  x_NxD = np.asarray(x_NxD, np.float32)
  norm_Nx1 = np.linalg.norm(x_NxD, axis=1, keepdims=True)
  return x_NxD / np.maximum(norm_Nx1, 1e-12)


def centroid(x_NxD: np.ndarray) -> np.ndarray:
  """The mean direction of several vectors: D."""
  return unit(unit(x_NxD).mean(0, keepdims=True))[0]


def cosines(
  a_NxD: np.ndarray, rows_M: np.ndarray, b_KxD: np.ndarray, others_M: np.ndarray
) -> np.ndarray:
  """Cosines of chosen rows of two arrays: M."""
  found = [np.empty(0, np.float32)]
  for first in range(0, len(rows_M), _PART):
    part = slice(first, first + _PART)
    a, b = unit(a_NxD[rows_M[part]]), unit(b_KxD[others_M[part]])
    found.append(np.einsum("nd,nd->n", a, b))
  return np.concatenate(found)
