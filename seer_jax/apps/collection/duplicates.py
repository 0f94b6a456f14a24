"""Duplicates in a collection: equal files, and images that look the same."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from seer_jax.apps.collection import search
from seer_jax.apps.embedding import embeddings, perceptual_hash, vectors

# Neighbours compared of each image, and queries at once.
_NEIGHBOURS, _QUERIES = 16, 4096


class Group(NamedTuple):
  """Copies of one image."""

  kind: str  # "exact" if all files are equal, else "near".
  keep: int  # Row of the one with most pixels, then bytes, then the first.
  others: list[int]


def groups(
  found: embeddings.Embeddings,
  bits: int,
  cosine: float,
  features: float | None = None,
) -> list[Group]:
  """Groups of duplicates, the largest first.

  Near duplicates have perceptual hashes that differ in few bits, and similar
  embeddings. Such hashes miss crops and overlays; `features` finds them, as far
  as the weights do.

  Args:
    bits: in which hashes may differ; -1 for equal files only.
    cosine: least cosine of the embeddings of near duplicates.
    features: pairs of this cosine are duplicates whatever their hashes.
  """
  pairs = [_equal(found.column("sha256"))]
  if bits >= 0:
    near = _close(found.hashes, bits)
    pairs.append(near[_cosines(found.features, near) >= cosine])
  if features is not None:
    pairs.append(_neighbours(found.features, features))
  return sorted(
    _grouped(found, np.concatenate(pairs)),
    key=lambda group: (-len(group.others), group.keep),
  )


def _equal(values_N):
  """Pairs (first, other) of rows with the same value."""
  _, first, inverse = np.unique(
    values_N.astype(str) if values_N.dtype == object else values_N,
    return_index=True,
    return_inverse=True,
  )
  pairs_Nx2 = np.stack([first[inverse], np.arange(len(values_N))], 1)
  return pairs_Nx2[pairs_Nx2[:, 0] != pairs_Nx2[:, 1]]


def _close(hashes_N, bits):
  """Pairs with close hashes; of equal hashes, each with the first only."""
  _, first = np.unique(hashes_N, return_index=True)
  close = perceptual_hash.close_pairs(hashes_N[first], bits)
  return np.concatenate([_equal(hashes_N), first[close]])


def _cosines(features_NxD, pairs_Mx2):
  a_M, b_M = pairs_Mx2.T
  return vectors.cosines(features_NxD, a_M, features_NxD, b_M)


def _neighbours(features_NxD, cosine):
  index, found = search.Index(features_NxD), [np.empty((0, 2), np.int64)]
  for start in range(0, len(features_NxD), _QUERIES):
    query = features_NxD[start : start + _QUERIES]
    similarity_QxK, index_QxK = index.search(query, _NEIGHBOURS)
    q, k = np.nonzero(similarity_QxK >= cosine)
    found.append(np.stack([q + start, index_QxK[q, k]], 1))
  pairs = np.concatenate(found)
  return pairs[pairs[:, 0] != pairs[:, 1]]


def _grouped(found, pairs_Mx2) -> Iterator[Group]:
  """Connected components of pairs, with the image to keep."""
  from scipy import sparse

  count = len(found)
  graph = sparse.coo_array(
    (np.ones(len(pairs_Mx2), np.int8), pairs_Mx2.T), (count, count)
  )
  _, group_N = sparse.csgraph.connected_components(graph, directed=False)
  order = np.argsort(group_N, kind="stable")
  starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
  height, width, size, digest = (
    found.column(name) for name in ("height", "width", "bytes", "sha256")
  )
  area = height.astype(np.int64) * width
  for rows in np.split(order, starts[1:]):
    if len(rows) < 2:
      continue
    keep = min(rows, key=lambda row: (-area[row], -size[row], row))
    kind = "exact" if len(set(digest[rows])) == 1 else "near"
    yield Group(kind, int(keep), [int(row) for row in rows if row != keep])


def rows_of(
  found: embeddings.Embeddings, several: list[Group]
) -> Iterator[dict[str, object]]:
  """A row for each image of each group, the one to keep first."""
  columns = {
    name: found.column(name)
    for name in ("id", "path", "width", "height", "bytes")
  }
  for number, group in enumerate(several):
    rows = [group.keep, *group.others]
    pairs = np.array([[group.keep, row] for row in rows])
    cosine_M = _cosines(found.features, pairs)
    bits_M = perceptual_hash.distance(
      found.hashes[pairs[:, 0]], found.hashes[pairs[:, 1]]
    )
    for row, cosine, bits in zip(rows, cosine_M, bits_M, strict=True):
      yield (
        {"group": number, "kind": group.kind, "keep": int(row == group.keep)}
        | {name: column[row] for name, column in columns.items()}
        | {"cosine": f"{cosine:.4f}", "bits": int(bits)}
      )
