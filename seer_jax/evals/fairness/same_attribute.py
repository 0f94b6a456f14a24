"""Same-attribute retrieval: SEER's third fairness indicator.

Whether the nearest images of a database share an attribute with the query, such
as gender: precision@k of cosine neighbours (Goyal et al. 2022).
The labels of both tables are the attribute, compared by name.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from seer_jax.evals import context, features, knn
from seer_jax.runtime import errors


class SameAttribute:
  """Precision@k of the bank's images for the queries, by group."""

  def __init__(self, ctx: context.Context):
    """Raises UserError if a k exceeds the bank, or no label is in both."""
    self._extract, self._split = ctx.extract, ctx.split
    self._bank, self._query, _ = ctx.images
    self._ks = ctx.config.eval.neighbours
    if max(self._ks) > len(self._bank.indices):
      raise errors.UserError(
        f"config.eval.neighbours asks for {max(self._ks)} of only"
        f" {len(self._bank.indices)} images; reduce it"
      )
    ours, theirs = (
      each.source.label_names for each in (self._bank, self._query)
    )
    if not set(ours) & set(theirs):
      raise errors.UserError(
        f"no label of the queries ({_some(theirs)}) is one of the database"
        f" ({_some(ours)}); both tables need the attribute as their label"
      )

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`same/precision@5`, mean over queries), ..."""
    bank, query = (
      self._extract(variables, each).labelled()
      for each in (self._bank, self._query)
    )
    hits_QxK = same(
      bank,
      query,
      max(self._ks),
      self._bank.source.label_names,
      self._query.source.label_names,
      self._extract.mesh,
    )
    for k in self._ks:
      precision_Q = hits_QxK[:, :k].mean(1)
      name = f"same/precision@{k}"
      yield name, float(precision_Q.mean())
      yield from self._split(name, query.index_N, precision_Q)


def same(
  bank: features.Features,
  query: features.Features,
  k: int,
  bank_names: Sequence[str],
  query_names: Sequence[str],
  mesh: Any = None,
) -> np.ndarray:
  """Whether each of the k nearest has the query's label: bool QxK."""
  _, index_QxK = knn.nearest(
    bank.features_NxD, query.features_NxD, k, "cosine", mesh
  )
  found_QxK = np.array(bank_names, object)[bank.labels_N[index_QxK]]
  wanted_Q = np.array(query_names, object)[query.labels_N]
  return (found_QxK == wanted_Q[:, None]).astype(bool)


def _some(names):
  return ", ".join(map(errors.shown, names[:4])) or "none"
