"""Duplicates in a collection: equal files, and images that look the same."""

import functools
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tqdm

from seer_jax.apps.collection import search
from seer_jax.apps.embedding import embeddings, perceptual_hash, vectors
from seer_jax.runtime import errors, files
from seer_jax.runtime.parallel import process_pool

# Neighbours compared of each image, and queries at once.
_NEIGHBOURS, _QUERIES = 16, 4096
_HERE = process_pool.Local()


class Group(NamedTuple):
  """Copies of one image."""

  kind: str  # "exact" if all files are equal, else "near".
  keep: int  # Row of the one with most pixels, then bytes, then the first.
  others: list[int]


class Pairs:
  """Finds pairs of near duplicates, a part of them per task of a pool."""

  def __init__(
    self,
    found: embeddings.Embeddings,
    bits: int,
    cosine: float,
    features: float | None,
  ):
    """See `groups`."""
    self._found, self._bits, self._cosine = found, bits, cosine
    self._features = features
    self._by_hash = perceptual_hash.PARTS if bits >= 0 else 0

  def __len__(self) -> int:
    queries = -(-len(self._found) // _QUERIES)
    return self._by_hash + queries * (self._features is not None)

  def __call__(self, part: int) -> tuple[int, np.ndarray]:
    """(part, pairs Mx2): first by hash, then by features."""
    if part < self._by_hash:
      near = self._close(part)
      return part, near[_cosines(self._found.features, near) >= self._cosine]
    return part, self._neighbours((part - self._by_hash) * _QUERIES)

  def __getstate__(self):
    rest = self._bits, self._cosine, self._features
    return self._found.folder, self._found.fingerprint, rest

  def __setstate__(self, state):
    folder, fingerprint, rest = state
    found = embeddings.Embeddings(folder)
    if found.fingerprint != fingerprint:
      raise errors.UserError(
        f"{folder} has other embeddings here than where the command was"
        " started; mount the same folder"
      )
    self.__init__(found, *rest)

  @functools.cached_property
  def _distinct(self):
    """(first row of each hash, the hash)."""
    hash_M, first_M = np.unique(self._found.hashes, return_index=True)
    return first_M, hash_M

  def _close(self, part):
    """Pairs with close hashes; of equal hashes, each with the first only."""
    first_M, hash_M = self._distinct
    close = first_M[perceptual_hash.close_pairs(hash_M, self._bits, part)]
    if part:
      return close
    return np.concatenate([_equal(self._found.hashes), close])

  @functools.cached_property
  def _index(self):
    return search.Index(self._found.features)

  def _neighbours(self, first):
    query = self._found.features[first : first + _QUERIES]
    similarity_QxK, index_QxK = self._index.search(query, _NEIGHBOURS)
    q, k = np.nonzero(similarity_QxK >= self._features)
    pairs = np.stack([q + first, index_QxK[q, k]], 1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def groups(
  found: embeddings.Embeddings,
  bits: int,
  cosine: float,
  features: float | None = None,
  pool: process_pool.Pool = _HERE,
) -> list[Group]:
  """Groups of duplicates, the largest first.

  Near duplicates have perceptual hashes that differ in few bits, and similar
  embeddings. Such hashes miss crops and overlays; `features` finds them, as far
  as the weights do.

  Args:
    bits: in which hashes may differ; -1 for equal files only.
    cosine: least cosine of the embeddings of near duplicates.
    features: pairs of this cosine are duplicates whatever their hashes.
    pool: finds a part of the pairs per task. Parts are kept in the user's cache
      until all are found: the same call resumes.
  """
  pairs = [_equal(found.column("sha256"))]
  work = Pairs(found, bits, cosine, features)
  folder = files.cached("duplicates", found.fingerprint, bits, cosine, features)
  paths = [folder / f"{part}.npy" for part in range(len(work))]
  missing = [part for part, path in enumerate(paths) if not path.exists()]
  with tqdm.tqdm(total=len(work), unit=" parts") as bar:
    bar.update(len(work) - len(missing))
    for part, found_Mx2 in pool.each(work, missing):
      with files.whole_file(paths[part]) as file:
        np.save(file, found_Mx2)
      bar.update()
  pairs += map(np.load, paths)
  shutil.rmtree(folder, ignore_errors=True)
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


def _cosines(features_NxD, pairs_Mx2):
  a_M, b_M = pairs_Mx2.T
  return vectors.cosines(features_NxD, a_M, features_NxD, b_M)


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
