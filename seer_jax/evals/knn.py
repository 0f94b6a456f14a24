"""Weighted k-nearest-neighbour classification of clean features.

The protocol of Wu et al. 2018 (section 3.4) that SwAV reports: features are
L2-normalised; each of a query's k nearest bank images votes for its label with
weight exp(cosine / T).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.evals import features

_CHUNK = 256


class Knn:
  """Top-1 accuracy of queries against a bank, for several k in one pass."""

  def __init__(
    self,
    extract: features.Extractor,
    bank: features.ImageSet,
    query: features.ImageSet,
    ks: Sequence[int],
    temperature: float,
  ):
    self._extract, self._bank, self._query = extract, bank, query
    self._ks, self._temperature = ks, temperature

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`knn/k=20`, share of queries classified rightly), ..."""
    bank, query = (
      self._extract(variables, self._bank),
      self._extract(variables, self._query),
    )
    found = accuracy(
      bank, query, self._ks, self._temperature, self._extract.between
    )
    for k, right in found.items():
      yield f"knn/k={k}", right


def accuracy(
  bank: features.Features,
  query: features.Features,
  ks: Sequence[int],
  temperature: float,
  between: Callable[[], None] = lambda: None,
) -> dict[int, float]:
  """{k: top-1 accuracy}; a k larger than the bank means the whole bank.

  Images without a label (-1) are left out on both sides; where none is left on
  one, nothing is classified rightly. `between` is called before each chunk of
  queries.
  """
  bank, query = _labelled(bank), _labelled(query)
  if not (len(bank.labels_N) and len(query.labels_N)):
    return dict.fromkeys(ks, 0.0)
  classes = 1 + int(max(bank.labels_N.max(), query.labels_N.max()))
  bank_NxD = jnp.asarray(_unit(bank.features_NxD))
  one_hot_NxL = jax.nn.one_hot(bank.labels_N, classes)
  ks_here = tuple(min(k, len(bank.labels_N)) for k in ks)
  right = np.zeros(len(ks))
  query_NxD = _unit(query.features_NxD)
  for start in range(0, len(query_NxD), _CHUNK):
    between()
    chunk = slice(start, start + _CHUNK)
    guesses = _vote(
      query_NxD[chunk], bank_NxD, one_hot_NxL, ks_here, temperature
    )
    for i, guess in enumerate(guesses):
      right[i] += np.sum(np.asarray(guess) == query.labels_N[chunk])
  return dict(zip(ks, (right / len(query_NxD)).tolist(), strict=True))


@jax.jit(static_argnames=("ks", "temperature"))
def _vote(query_BxD, bank_NxD, one_hot_NxL, ks, temperature):
  cosine_BxN = jnp.matmul(query_BxD, bank_NxD.T, precision="highest")
  cosine_BxK, nearest_BxK = jax.lax.top_k(cosine_BxN, max(ks))
  # Less the largest, which cancels in the vote, nothing overflows.
  weight_BxK = jnp.exp((cosine_BxK - cosine_BxK[:, :1]) / temperature)
  votes_BxKxL = weight_BxK[..., None] * one_hot_NxL[nearest_BxK]
  return [jnp.argmax(votes_BxKxL[:, :k].sum(1), axis=-1) for k in ks]


def _labelled(some):
  has_label = some.labels_N >= 0
  return features.Features(
    some.features_NxD[has_label], some.labels_N[has_label]
  )


def _unit(features_NxD):
  norm = np.linalg.norm(features_NxD, axis=1, keepdims=True)
  return features_NxD / np.maximum(norm, 1e-12)
