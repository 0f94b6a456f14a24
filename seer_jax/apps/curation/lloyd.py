"""Exact k-means over vectors on the grid, which may be on disk.

Lloyd's iterations from k-means++ (Arthur and Vassilvitskii 2007), first over a
sample. Centres are means, or mean directions (spherical k-means, Dhillon and
Modha 2001).

A pass reads the points in chunks, which the devices share; each device compares
a block of points with a tile of centres at a time, so that no matrix of
distances leaves its cache. Distances are squared, in units of the grid.
"""

import functools
import logging
import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.apps.curation import grid
from seer_jax.apps.curation.grid import Points
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.runtime.parallel import process_pool

_log = logging.getLogger(__name__)

# Points compared at once by a device, centres in a tile, and blocks of points
# in a chunk: those of a CPU fit its cache.
_ON_CPU, _ELSEWHERE, _BLOCKS = 1024, 8192, 32
# Points per cluster in the sample, and in all, at least.
_SAMPLE, _SAMPLED = 32, 2**17
# k-means++ draws from at least so many points per cluster, from more while
# draws times points are below the limit; beyond so many clusters, centres begin
# at random points instead.
_SPREAD, _SPREAD_WORK, _SPREAD_LIMIT = 4, 2**29, 20_000
# Seconds of a pass that is worth a line.
_QUICK = 3
# Iterations end when the inertia falls by less than this share.
_GAIN = 5e-4


class Clusters(NamedTuple):
  """Points in clusters."""

  centre_KxD: np.ndarray  # On the grid, int16.
  cluster_N: np.ndarray  # Of each point, int32.
  distance_N: np.ndarray  # Squared, to its centre, int32.

  @property
  def inertia(self) -> int:
    """The sum of all distances."""
    return int(self.distance_N.sum(dtype=np.int64))


def fit(
  points: Points,
  k: int,
  mesh: jax.sharding.Mesh,
  *,
  seed: int = 0,
  iterations: int = 20,
  spherical: bool = False,
) -> Clusters:
  """Clusters points by Euclidean distance.

  Args:
    points: N of them, at least k.
    k: number of clusters.
    mesh: its devices share the points; the result does not depend on it.
    seed: of the sample and the first centres.
    iterations: most passes over the points, after as many over the sample.
    spherical: centres are as long as the points instead of means.
  """
  rng = np.random.default_rng([seed, k])
  wanted = max(_SAMPLED, _SAMPLE * k)
  some = np.sort(rng.permutation(len(points))[:wanted])
  sample = points.only(some)
  centre_KxD = begin(sample, k, rng)
  if len(some) < len(points):
    found = _lloyd(sample, centre_KxD, mesh, iterations, spherical)
    centre_KxD = found.centre_KxD
  return _lloyd(points, centre_KxD, mesh, iterations, spherical)


def begin(sample: Points, k: int, rng: np.random.Generator) -> np.ndarray:
  """The first centres, from the sample: k-means++, or for many, any points."""
  wanted = k if k > _SPREAD_LIMIT else max(_SPREAD * k, _SPREAD_WORK // k)
  rows = np.sort(rng.permutation(len(sample))[:wanted])
  found_MxD = sample.only(rows).block(0, len(rows))
  if k > _SPREAD_LIMIT:
    return found_MxD
  x_MxD = found_MxD.astype(np.float32)
  norm_M = _squares(found_MxD)
  left_M, chosen = np.full(len(rows), np.iinfo(np.int64).max // len(rows)), []
  for _ in range(k):
    # The best of a few draws, as the authors suggest.
    ends_M = np.cumsum(left_M)
    draws_T = rng.integers(max(1, ends_M[-1]), size=2 + int(np.log(k)))
    draws_T = np.searchsorted(ends_M[:-1], draws_T, "right")
    dots_MxT = x_MxD @ x_MxD[draws_T].T
    distance_MxT = norm_M[:, None] + norm_M[draws_T] - 2 * dots_MxT
    after_MxT = np.minimum(left_M[:, None], distance_MxT.astype(np.int64))
    best = np.argmin(after_MxT.sum(0))
    chosen.append(draws_T[best])
    left_M = after_MxT[:, best]
  return found_MxD[chosen]


def _lloyd(points, centre_KxD, mesh, iterations, spherical):
  before = None
  for number in range(1, iterations + 1):
    began = time.monotonic()
    cluster_N, distance_N, sums_KxD = assign(points, centre_KxD, mesh)
    found = Clusters(centre_KxD, cluster_N, distance_N)
    inertia, seconds = found.inertia, time.monotonic() - began
    if seconds > _QUICK:
      _log.info(
        "k-means of %d points, %d clusters, pass %d (%.0f s): inertia %.5f",
        len(points),
        len(centre_KxD),
        number,
        seconds,
        inertia / len(points) / grid.scale_of(points.width) ** 2,
      )
    if before is not None and before - inertia <= _GAIN * before:
      break
    before = inertia
    centre_KxD = _moved(points, found, sums_KxD, spherical)
  return found


def directions(x_NxD: np.ndarray) -> np.ndarray:
  """Vectors of integers, scaled to the length of points on the grid."""
  x_NxD = x_NxD.astype(np.float64)
  # `fsum` is correctly rounded, in any order.
  length_N = np.sqrt([math.fsum(row) for row in x_NxD * x_NxD])
  scale_Nx1 = grid.scale_of(x_NxD.shape[1]) / np.maximum(length_N, 1)[:, None]
  return np.rint(x_NxD * scale_Nx1).astype(np.int16)


def _moved(points, found, sums_KxD, spherical):
  """New centres; an empty cluster restarts at a point far from its own."""
  sizes_K = np.bincount(found.cluster_N, minlength=len(sums_KxD))
  if spherical:
    centre_KxD = directions(sums_KxD)
  else:
    divisor_Kx1 = np.maximum(sizes_K, 1)[:, None]
    # Rounded to the nearest, in integers.
    centre_KxD = (2 * sums_KxD + divisor_Kx1) // (2 * divisor_Kx1)
    centre_KxD = centre_KxD.astype(np.int16)
  empty = np.flatnonzero(sizes_K == 0)
  if len(empty):
    far = np.sort(np.argsort(-found.distance_N, kind="stable")[: len(empty)])
    centre_KxD[empty] = points.only(far).block(0, len(far))
  return centre_KxD


def assign(
  points: Points, centre_KxD: np.ndarray, mesh: jax.sharding.Mesh
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(nearest centre N, squared distance N, sums by centre KxD) of points."""
  count, k = len(points), len(centre_KxD)
  platform = mesh.devices.flat[0].platform
  most = _ON_CPU if platform == "cpu" else _ELSEWHERE
  block, tile = _fitting(most, count), _fitting(most, k)
  blocks = _fitting(_BLOCKS, -(-count // (mesh.size * block)))
  chunk = mesh.size * block * blocks
  tiles = -(-k // tile)
  centre_TxCxD = np.zeros((tiles * tile, points.width), np.float32)
  centre_TxCxD[:k] = centre_KxD
  half_TxC = np.full(tiles * tile, np.inf, np.float32)
  half_TxC[:k] = _squares(centre_KxD) / 2
  tiled = jax.device_put(
    (
      centre_TxCxD.reshape(tiles, tile, -1),
      half_TxC.reshape(tiles, tile),
    ),
    mesh_lib.replicated(mesh),
  )
  step = _step(mesh, block, k)
  cluster_N, distance_N = np.empty(count, np.int32), np.empty(count, np.int32)
  sums_KxD = np.zeros((k, points.width), np.int64)

  def finish(first, found):
    index_R, distance_R, sums = map(np.asarray, found)
    real = min(len(index_R), count - first)
    cluster_N[first : first + real] = index_R[:real]
    distance_N[first : first + real] = distance_R[:real]
    np.add(sums_KxD, sums, out=sums_KxD)

  before = None
  for first in range(0, count, chunk):
    process_pool.stop_if_asked()
    x_RxD = points.block(first, first + chunk)
    real = len(x_RxD)
    if real < chunk:
      x_RxD = np.pad(x_RxD, ((0, chunk - real), (0, 0)))
    found = step(jax.device_put(x_RxD, mesh_lib.rows(mesh)), real, *tiled)
    # One chunk late: the next is read meanwhile.
    if before is not None:
      finish(*before)
    before = first, found
  finish(*before)
  return cluster_N, distance_N, sums_KxD


def _fitting(most, count):
  """The least power of two that holds so many, up to `most`."""
  return min(most, 1 << (count - 1).bit_length())


def _squares(x_NxD):
  """Squared lengths, int64."""
  return np.einsum("nd,nd->n", x_NxD, x_NxD, dtype=np.int64)


@functools.cache
def _step(mesh, block, k):
  """The pass over a chunk: (index R, distance R, sums KxD)."""
  rows = mesh_lib.rows(mesh).spec

  def of_device(x_RxD, real, centre_TxCxD, half_TxC):
    index_R, distance_R = jax.lax.map(
      lambda x_BxD: _nearest(x_BxD, centre_TxCxD, half_TxC),
      x_RxD.reshape(-1, block, x_RxD.shape[1]),
    )
    index_R, distance_R = index_R.ravel(), distance_R.ravel()
    first = jax.lax.axis_index(mesh_lib.AXES) * len(x_RxD)
    is_real_R = first + jnp.arange(len(x_RxD)) < real
    # Segments from K on are dropped: padding is in no cluster.
    segment_R = jnp.where(is_real_R, index_R, k)
    sums_KxD = jax.ops.segment_sum(x_RxD.astype(jnp.int32), segment_R, k)
    return index_R, distance_R, jax.lax.psum(sums_KxD, mesh_lib.AXES)

  return jax.jit(
    jax.shard_map(
      of_device,
      mesh=mesh,
      in_specs=(rows, jax.P(), jax.P(), jax.P()),
      out_specs=(rows, rows, jax.P()),
      check_vma=False,
    )
  )


def _nearest(x_BxD, centre_TxCxD, half_TxC):
  """(index B, squared distance B) of the nearest centres, tile by tile."""
  x_DxB = x_BxD.astype(jnp.float32).T
  tile = centre_TxCxD.shape[1]

  def compare(best, centres):
    score_B, index_B = best
    number, centre_CxD, half_C = centres
    # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2).
    dots_CxB = jnp.matmul(centre_CxD, x_DxB, precision="highest")
    score_CxB = dots_CxB - half_C[:, None]
    here_B = score_CxB.max(0)
    # `argmax` takes 45 ms instead of 25 on a CPU (1,024 x 10,000 scores).
    at_CxB = jnp.where(
      score_CxB == here_B, jnp.arange(tile, dtype=jnp.int32)[:, None], tile
    )
    found_B = number * tile + at_CxB.min(0)
    is_better_B = here_B > score_B
    return (
      jnp.where(is_better_B, here_B, score_B),
      jnp.where(is_better_B, found_B, index_B),
    ), None

  count = x_BxD.shape[0]
  first = jnp.full(count, -jnp.inf), jnp.zeros(count, jnp.int32)
  numbers = jnp.arange(len(centre_TxCxD), dtype=jnp.int32)
  (score_B, index_B), _ = jax.lax.scan(
    compare, first, (numbers, centre_TxCxD, half_TxC)
  )
  square_B = jnp.sum(x_DxB * x_DxB, axis=0)
  # Each term is exact; their difference need not be in float32.
  doubled_B = (2 * score_B).astype(jnp.int32)
  return index_B, square_B.astype(jnp.int32) - doubled_B
