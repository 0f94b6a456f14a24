"""Spherical k-means over vectors that may be on disk.

Lloyd's iterations on the unit sphere (Dhillon and Modha 2001), from k-means++
(Arthur and Vassilvitskii 2007). In balanced clusters none is larger than the
mean: vectors apply at centres, the nearest first, and each centre keeps the
nearest applicants (deferred acceptance, Gale and Shapley 1962).
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from seer_jax.apps.embedding import vectors
from seer_jax.evals import knn
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

# Floats on the devices at once, of rows and of their similarities.
_CHUNK = 2**25
# Vectors per cluster in the sample for k-means++ and the first iterations.
_SAMPLE = 32
# Iterations end when at most this share of the vectors moves.
_MOVES = 1e-3
# Passes of balancing, and centres at which a vector applies at first.
_BALANCING, _CANDIDATES = 10, 16
# Rows at once on the host.
_ROWS = 4096


class Clusters(NamedTuple):
  """Vectors in clusters."""

  cluster_N: np.ndarray  # Int32; 0 is the largest cluster, -1 is no cluster.
  similarity_N: np.ndarray  # Cosine to the centre.
  centre_KxD: np.ndarray  # Of length one, float32.

  @property
  def sizes(self) -> np.ndarray:
    """The number of vectors in each cluster: K."""
    inside = self.cluster_N[self.cluster_N >= 0]
    return np.bincount(inside, minlength=len(self.centre_KxD))


def spherical_kmeans(
  features_NxD: np.ndarray,
  k: int,
  *,
  balanced: bool = False,
  iterations: int = 25,
  seed: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Clusters:
  """Clusters vectors by direction.

  Raises UserError if k is not from 1 to N.

  Args:
    features_NxD: float32 or float16, of any length; may be a memory map.
    k: number of clusters, K.
    balanced: no cluster is larger than N / K, rounded up.
    iterations: most passes over all vectors, after as many over a sample if
      that is smaller.
    mesh: its devices share the vectors; None is one device.
  """
  count = len(features_NxD)
  if not 1 <= k <= count:
    raise errors.UserError(
      f"k is {k}, but there are {count} images; give 1 to {count}"
    )
  mesh = mesh or mesh_lib.make(1)
  rng = np.random.default_rng(seed)
  rows = np.sort(rng.permutation(count)[: _SAMPLE * k])
  sample_MxD = np.asarray(features_NxD[rows], np.float32)
  centre_KxD = _plus_plus(sample_MxD, k, seed)
  if len(rows) < count:
    centre_KxD = _lloyd(mesh, sample_MxD, centre_KxD, iterations)[0]
  found = _lloyd(mesh, features_NxD, centre_KxD, iterations)
  if balanced:
    found = _balanced(mesh, features_NxD, found[0])
  centre_KxD, cluster_N, similarity_N = found
  order_K = np.argsort(-np.bincount(cluster_N, minlength=k), kind="stable")
  return Clusters(
    np.argsort(order_K)[cluster_N].astype(np.int32),
    similarity_N,
    centre_KxD[order_K],
  )


@functools.partial(jax.jit, static_argnums=1)
def _spread(sample_MxD, k, key):
  """k-means++: draws each centre by the distance to those before.

  Takes the best of a few draws, as the authors suggest.
  """
  unit_MxD = knn.unit(sample_MxD)
  count, tries = len(unit_MxD), 2 + int(np.log(k))

  def draw(i, carry):
    rows_K, distance_M = carry
    rows_T = jax.random.categorical(
      jax.random.fold_in(key, i),
      jnp.log(jnp.maximum(distance_M, 1e-9)),
      shape=(tries,),
    )
    cosine_MxT = jnp.matmul(unit_MxD, unit_MxD[rows_T].T, precision="highest")
    left_MxT = jnp.minimum(distance_M[:, None], 1 - cosine_MxT)
    best = jnp.argmin(left_MxT.sum(0))
    return rows_K.at[i].set(rows_T[best]), left_MxT[:, best]

  first = jnp.zeros(k, jnp.int32), jnp.ones(count)
  rows_K, _ = jax.lax.fori_loop(0, k, draw, first)
  return unit_MxD[rows_K]


def _plus_plus(sample_MxD, k, seed):
  return np.asarray(_spread(sample_MxD, k, jax.random.key(seed)))


def _lloyd(mesh, features_NxD, centre_KxD, iterations):
  """(centres, cluster_N, similarity_N) after a few passes."""
  before_N = None
  for number in range(iterations + 1):
    index_Nx1, similarity_Nx1, sums_KxD = _passed(
      mesh, features_NxD, centre_KxD, 1
    )
    cluster_N, similarity_N = index_Nx1[:, 0], similarity_Nx1[:, 0]
    moved = 1.0 if before_N is None else np.mean(cluster_N != before_N)
    if moved <= _MOVES or number == iterations:
      break
    before_N = cluster_N
    sizes_K = np.bincount(cluster_N, minlength=len(centre_KxD))
    centre_KxD = _moved(sums_KxD, sizes_K, similarity_N, features_NxD)
  return centre_KxD, cluster_N, similarity_N


def _balanced(mesh, features_NxD, centre_KxD):
  """The same with no cluster above the mean size; the best of some passes."""
  k, best = len(centre_KxD), None
  capacity = -(-len(features_NxD) // k)
  for _ in range(_BALANCING):
    index_NxM, similarity_NxM, _ = _passed(
      mesh, features_NxD, centre_KxD, min(k, _CANDIDATES)
    )
    cluster_N = _accepted(index_NxM, similarity_NxM, capacity, k)
    cluster_N = _placed(features_NxD, centre_KxD, cluster_N, capacity)
    rows_N = np.arange(len(cluster_N))
    similarity_N = vectors.cosines(features_NxD, rows_N, centre_KxD, cluster_N)
    if best is None or similarity_N.mean() > best[2].mean():
      best = centre_KxD, cluster_N, similarity_N
    sums_KxD = _sums(features_NxD, cluster_N, k)
    sizes_K = np.bincount(cluster_N, minlength=k)
    centre_KxD = _moved(sums_KxD, sizes_K, similarity_N, features_NxD)
  return best


def _accepted(index_NxM, similarity_NxM, capacity, k):
  """Deferred acceptance: the centre that keeps each vector, or -1."""
  count, candidates = index_NxM.shape
  at_N = np.zeros(count, np.int64)
  rows = np.arange(count)
  while True:
    active = rows[at_N < candidates]
    centre = index_NxM[active, at_N[active]]
    order = np.lexsort((-similarity_NxM[active, at_N[active]], centre))
    starts = np.searchsorted(centre[order], np.arange(k))
    rank = np.arange(len(active)) - starts[centre[order]]
    refused = active[order[rank >= capacity]]
    if not len(refused):
      break
    at_N[refused] += 1
  last_N = np.minimum(at_N, candidates - 1)
  return np.where(at_N < candidates, index_NxM[rows, last_N], -1)


def _placed(features_NxD, centre_KxD, cluster_N, capacity):
  """Assigns the vectors left over to the nearest centres with room."""
  left = np.flatnonzero(cluster_N < 0)
  for first in range(0, len(left), _ROWS):
    rows = left[first : first + _ROWS]
    inside = cluster_N[cluster_N >= 0]
    room_K = capacity - np.bincount(inside, minlength=len(centre_KxD))
    similarity = vectors.unit(features_NxD[rows]) @ centre_KxD.T
    # The nearest ones choose first.
    for row in np.argsort(-similarity[:, room_K > 0].max(1)):
      best = np.argmax(np.where(room_K > 0, similarity[row], -np.inf))
      cluster_N[rows[row]] = best
      room_K[best] -= 1
  return cluster_N


def _sums(features_NxD, cluster_N, k):
  """Sums of unit vectors by cluster."""
  sums_KxD = np.zeros((k, features_NxD.shape[1]))
  for first in range(0, len(cluster_N), _ROWS):
    unit_RxD = vectors.unit(features_NxD[first : first + _ROWS])
    where = cluster_N[first : first + _ROWS], np.arange(len(unit_RxD))
    member_KxR = sparse.coo_array(
      (np.ones(len(unit_RxD), np.float32), where), (k, len(unit_RxD))
    )
    sums_KxD += member_KxR @ unit_RxD
  return sums_KxD


def _moved(sums_KxD, sizes_K, similarity_N, features_NxD):
  """New centres; an empty cluster restarts at a vector far from its own."""
  empty = np.flatnonzero(sizes_K == 0)
  if len(empty):
    far = np.sort(np.argsort(similarity_N)[: len(empty)])
    sums_KxD[empty] = features_NxD[far]
  return vectors.unit(sums_KxD)


def _passed(mesh, features_NxD, centre_KxD, candidates):
  """(index_NxM, similarity_NxM, sums_KxD) of the M nearest centres.

  The sums are of the unit vectors nearest to each centre.
  """
  step = _step(mesh, candidates)
  sums_KxD = np.zeros(centre_KxD.shape)
  indices, similarities = [], []
  replicated_KxD = jax.device_put(centre_KxD, mesh_lib.replicated(mesh))
  for chunk_RxD, real in _chunks(mesh, features_NxD, len(centre_KxD)):
    found = step(chunk_RxD, real, replicated_KxD)
    index_RxM, similarity_RxM, sums = map(mesh_lib.to_host, found)
    sums_KxD += sums
    indices.append(index_RxM[:real])
    similarities.append(similarity_RxM[:real])
  return np.concatenate(indices), np.concatenate(similarities), sums_KxD


def _chunks(mesh, features_NxD, k) -> Iterator[tuple[jax.Array, int]]:
  """(rows on the devices, in chunks of one size; how many are not padding)."""
  count, width = features_NxD.shape
  rows = min(count, max(1024, _CHUNK // max(width, k)))
  rows = -(-rows // mesh.size) * mesh.size
  for first in range(0, count, rows):
    chunk = np.asarray(features_NxD[first : first + rows])
    real = len(chunk)
    if real < rows:
      chunk = np.pad(chunk, ((0, rows - real), (0, 0)))
    yield jax.device_put(chunk, mesh_lib.rows(mesh)), real


@functools.cache
def _step(mesh, candidates):
  rows, whole = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)

  @functools.partial(jax.jit, out_shardings=(rows, rows, whole))
  def step(chunk_RxD, real, centre_KxD):
    unit_RxD = knn.unit(chunk_RxD.astype(jnp.float32))
    similarity_RxK = jnp.matmul(unit_RxD, centre_KxD.T, precision="highest")
    best_RxM, index_RxM = _largest(similarity_RxK, candidates)
    # Segments from K on are dropped: padding is in no cluster.
    is_real_R = jnp.arange(len(chunk_RxD)) < real
    nearest_R = jnp.where(is_real_R, index_RxM[:, 0], len(centre_KxD))
    sums_KxD = jax.ops.segment_sum(unit_RxD, nearest_R, len(centre_KxD))
    return index_RxM, best_RxM, sums_KxD

  return step


def _largest(x_RxK, count):
  """`jax.lax.top_k` of a few, a quarter of its time on CPUs."""

  def take(rest_RxK, _):
    index_R = jnp.argmax(rest_RxK, 1).astype(jnp.int32)
    is_it_RxK = jnp.arange(x_RxK.shape[1]) == index_R[:, None]
    best_R = jnp.max(rest_RxK, 1)
    return jnp.where(is_it_RxK, -jnp.inf, rest_RxK), (best_R, index_R)

  _, (best_MxR, index_MxR) = jax.lax.scan(take, x_RxK, length=count)
  return best_MxR.T, index_MxR.T
