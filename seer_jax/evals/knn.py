"""Weighted k-nearest-neighbour classification of clean features.

The protocol of Wu et al. 2018 (section 3.4) that SwAV reports: features are
L2-normalized; each of a query's k nearest bank images votes for its label with
weight exp(cosine / T). VISSL uses plain products instead (metric "dot").

The bank passes through the devices in chunks, each divided among them, so that
it may be on disk: memory does not depend on its size.
"""

import functools
import itertools
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.evals import features
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

# Floats of a chunk of the bank, and queries compared with it at a time.
_CHUNK, _QUERIES = 2**25, 1024
# Similarities per block; only the largest of each is sorted at first.
_BLOCK = 128


class Grid(NamedTuple):
  """Settings to compare; all of them share one search per tap and metric."""

  ks: Sequence[int]
  temperatures: Sequence[float]
  metrics: Sequence[str]
  taps: Sequence[str]


class Knn:
  """Top-1 and top-5 accuracy of queries against a bank, for a grid."""

  def __init__(
    self,
    extract: features.Extractor,
    bank: features.ImageSet,
    query: features.ImageSet,
    grid: Grid,
    split: rates.Split = rates.no_split,
  ):
    """Takes a grid whose taps `extract` has."""
    self._extract, self._bank, self._query = extract, bank, query
    self._grid, self._split = grid, split

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`knn/k=20`, share of queries classified correctly), ...

    The name includes what the grid has several values of. Top-5 follows as
    `knn/k=20/top5` if there are more than five labels.
    """
    grid = self._grid
    for tap, metric in itertools.product(grid.taps, grid.metrics):
      bank, query = (
        self._extract(variables, images, tap)
        for images in (self._bank, self._query)
      )
      found = hits(
        bank,
        query,
        grid.ks,
        grid.temperatures,
        metric,
        self._extract.mesh,
        self._extract.between,
      )
      index_Q = query.labelled().index_N
      for (k, temperature), (top1_Q, top5_Q) in found.items():
        name = f"knn/k={k}"
        name += f",T={temperature:g}" * (len(grid.temperatures) > 1)
        name += f",{metric}" * (len(grid.metrics) > 1)
        name += f",{tap}" * (len(grid.taps) > 1)
        yield name, _mean(top1_Q)
        yield from self._split(name, index_Q, top1_Q)
        if top5_Q is not None:
          yield f"{name}/top5", _mean(top5_Q)


def accuracies(
  bank: features.Features,
  query: features.Features,
  ks: Sequence[int],
  temperatures: Sequence[float],
  metric: str = "cosine",
  mesh: jax.sharding.Mesh | None = None,
) -> dict[tuple[int, float], tuple[float, float | None]]:
  """{(k, T): (top-1, top-5) accuracy}, the means of `hits`.

  If one of the sets has no labels, the accuracy is 0.
  """
  found = hits(bank, query, ks, temperatures, metric, mesh)
  return {
    setting: (_mean(top1_Q), None if top5_Q is None else _mean(top5_Q))
    for setting, (top1_Q, top5_Q) in found.items()
  }


def _mean(right_Q):
  return float(np.mean(right_Q)) if len(right_Q) else 0.0


def hits(
  bank: features.Features,
  query: features.Features,
  ks: Sequence[int],
  temperatures: Sequence[float],
  metric: str = "cosine",
  mesh: jax.sharding.Mesh | None = None,
  between: Callable[[], None] = lambda: None,
) -> dict[tuple[int, float], tuple[np.ndarray, np.ndarray | None]]:
  """{(k, T): (whether each query is right, is among the first five)}.

  The latter is None for up to five labels. A k larger than the bank means the
  whole bank. Images without a label (-1) are left out of both sets; if one set
  is then empty, there are no queries. `between` is called before each chunk of
  queries.
  """
  bank, query = bank.labelled(), query.labelled()
  grid = list(itertools.product(ks, temperatures))
  if not (len(bank.labels_N) and len(query.labels_N)):
    return dict.fromkeys(grid, (np.zeros(0, bool), None))
  classes = 1 + int(max(bank.labels_N.max(), query.labels_N.max()))
  similarity_QxK, index_QxK = nearest(
    bank.features_NxD, query.features_NxD, max(ks), metric, mesh, between
  )
  votes_for_QxK = bank.labels_N[index_QxK]
  return {
    (k, temperature): _right(
      similarity_QxK[:, :k],
      votes_for_QxK[:, :k],
      query.labels_N,
      temperature,
      classes,
    )
    for k, temperature in grid
  }


def _right(similarity_QxK, votes_for_QxK, labels_Q, temperature, classes):
  """Top-1 and top-5 of each query. A tie goes to the smaller label."""
  top1, top5 = [], []
  for start in range(0, len(labels_Q), _QUERIES):
    part = slice(start, start + _QUERIES)
    similarity, wanted = similarity_QxK[part].astype(float), labels_Q[part]
    # Subtracting the largest, which cancels in the vote, avoids overflow.
    weight = np.exp((similarity - similarity[:, :1]) / temperature)
    rows = np.arange(len(wanted))[:, None]
    cells = (rows * classes + votes_for_QxK[part]).ravel()
    votes_QxL = np.bincount(
      cells, weight.ravel(), minlength=len(wanted) * classes
    ).reshape(-1, classes)
    order_QxL = np.argsort(-votes_QxL, axis=1, kind="stable")
    top1.append(order_QxL[:, 0] == wanted)
    top5.append((order_QxL[:, :5] == wanted[:, None]).any(1))
  return np.concatenate(top1), np.concatenate(top5) if classes > 5 else None


def nearest(
  bank_NxD: np.ndarray,
  query_QxD: np.ndarray,
  k: int,
  metric: str = "cosine",
  mesh: jax.sharding.Mesh | None = None,
  between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
  """The k most similar rows of a bank for each query, by exact search.

  Raises UserError if there is no such metric.

  Args:
    bank_NxD: of floats; may be a memory map, which is read once, in order.
    query_QxD: kept in memory.
    k: neighbours, at most N.
    metric: "cosine", "dot", or "euclidean": minus the squared distance.
    mesh: whose devices share the bank; None for one device.

  Returns:
    similarity_QxK, falling, and index_QxK. Of equals the first in the bank
    comes first.
  """
  if metric not in ("cosine", "dot", "euclidean"):
    raise errors.UserError(
      f"there is no metric {metric!r}; use cosine, dot or euclidean"
    )
  mesh = mesh or mesh_lib.make(1)
  count, k = len(bank_NxD), min(k, len(bank_NxD))
  rows = -(-min(count, max(k, _CHUNK // bank_NxD.shape[1])) // mesh.size)
  rows *= mesh.size
  start, search = _search(mesh, k, metric)
  prepared = jax.jit(unit) if metric == "cosine" else lambda x: x
  queries = [
    prepared(jax.device_put(part, mesh_lib.replicated(mesh)))
    for part in _parts(np.asarray(query_QxD, np.float32), _QUERIES)
  ]
  best = [start(len(query)) for query in queries]
  before = best[:]
  for number, chunk in enumerate(_parts(bank_NxD, rows)):
    real = len(chunk)
    if real < rows:
      chunk = np.pad(chunk, ((0, rows - real), (0, 0)))
    chunk = _on_rows(mesh, chunk)
    for at, query in enumerate(queries):
      between()
      best[at] = search(query, chunk, number * rows, real, *best[at])
    # One chunk ahead of the devices is enough.
    jax.block_until_ready(before)
    before = best[:]
    _leave(bank_NxD)
  merged = [_merged(*map(mesh_lib.to_host, each), k) for each in best]
  similarity, index = zip(*merged, strict=True)
  return np.concatenate(similarity), np.concatenate(index)


def _parts(x_NxD, rows):
  for first in range(0, len(x_NxD), rows):
    yield x_NxD[first : first + rows]


def _leave(bank_NxD):
  """Frees the pages of a mapped file that were read."""
  base = bank_NxD.base
  while isinstance(base, np.ndarray):
    base = base.base
  if isinstance(base, mmap.mmap):
    base.madvise(mmap.MADV_DONTNEED)


def _on_rows(mesh, x):
  return jax.make_array_from_callback(
    x.shape, mesh_lib.rows(mesh), lambda index: x[index]
  )


@functools.cache
def _search(mesh, k, metric):
  """(start, search): the best before the first chunk, and after one more.

  Each device keeps the k best of its own rows, so that none waits for another:
  B x (devices k), the second axis divided among them.
  """
  axes = mesh_lib.AXES
  none, rows, columns = jax.P(), jax.P(axes), jax.P(None, axes)

  def start(count):
    shape = count, k * mesh.size
    return jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)

  def search(query_BxD, bank_RxD, first, real, best_BxK, index_BxK):
    count = bank_RxD.shape[0]
    offset = jax.lax.axis_index(axes) * count
    similarity_BxR = _similarity(query_BxD, bank_RxD, metric)
    is_real_R = offset + jnp.arange(count) < real
    similarity_BxR = jnp.where(is_real_R, similarity_BxR, -jnp.inf)
    top_BxK, at_BxK = _top(similarity_BxR, min(k, count))
    # Earlier rows come first, and so win ties.
    top_BxK = jnp.concatenate([best_BxK, top_BxK], 1)
    at_BxK = jnp.concatenate([index_BxK, at_BxK + offset + first], 1)
    top_BxK, order_BxK = jax.lax.top_k(top_BxK, k)
    return top_BxK, jnp.take_along_axis(at_BxK, order_BxK, 1)

  sharding = jax.NamedSharding(mesh, columns)
  return (
    jax.jit(start, static_argnums=0, out_shardings=(sharding, sharding)),
    jax.jit(
      jax.shard_map(
        search,
        mesh=mesh,
        in_specs=(none, rows, none, none, columns, columns),
        out_specs=(columns, columns),
      )
    ),
  )


def _merged(similarity_BxK, index_BxK, k):
  """The k best of all devices; of equals the smaller index comes first."""
  order_BxK = np.lexsort((index_BxK, -similarity_BxK), axis=1)[:, :k]
  return (
    np.take_along_axis(similarity_BxK, order_BxK, 1),
    np.take_along_axis(index_BxK, order_BxK, 1),
  )


def _top(similarity_BxR, k):
  """`jax.lax.top_k`, by way of the largest of each block of columns.

  The k best of all are in the k blocks with the largest maxima; of equal ones,
  in the first of these. So what is sorted is shorter by the size of a block.
  """
  batch, count = similarity_BxR.shape
  blocks = -(-count // _BLOCK)
  if blocks < 2 * k:
    return jax.lax.top_k(similarity_BxR, k)
  padding = ((0, 0), (0, blocks * _BLOCK - count))
  padded = jnp.pad(similarity_BxR, padding, constant_values=-jnp.inf)
  padded_BxMxL = padded.reshape(batch, blocks, _BLOCK)
  _, block_BxK = jax.lax.top_k(padded_BxMxL.max(2), k)
  # In rising order, so that of equals the first comes first.
  block_BxK = jnp.sort(block_BxK, 1)
  some_BxKL = jnp.take_along_axis(
    padded_BxMxL, block_BxK[..., None], 1
  ).reshape(batch, -1)
  top_BxK, at_BxK = jax.lax.top_k(some_BxKL, k)
  block_BxK = jnp.take_along_axis(block_BxK, at_BxK // _BLOCK, 1)
  return top_BxK, block_BxK * _BLOCK + at_BxK % _BLOCK


def _similarity(query_BxD, bank_RxD, metric):
  """Queries must have length one already if the metric is cosine."""
  bank_RxD = bank_RxD.astype(jnp.float32)
  product_BxR = jnp.matmul(query_BxD, bank_RxD.T, precision="highest")
  if metric == "dot":
    return product_BxR
  squares_R = jnp.sum(jnp.square(bank_RxD), 1)
  if metric == "cosine":
    return product_BxR * jax.lax.rsqrt(jnp.maximum(squares_R, 1e-24))
  squares_Bx1 = jnp.sum(jnp.square(query_BxD), 1, keepdims=True)
  return 2 * product_BxR - squares_Bx1 - squares_R


def unit(x_NxD: jax.Array) -> jax.Array:
  """Scales rows to length one; zeros stay zeros."""
  norm_Nx1 = jnp.linalg.norm(x_NxD, axis=1, keepdims=True)
  return x_NxD / jnp.maximum(norm_Nx1, 1e-12)
