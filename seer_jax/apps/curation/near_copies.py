"""Images that say nothing new: SemDeDup (Abbas et al. 2023, section 3).

Images are compared with those of their own cluster only. Of images that are
closer than a threshold, the one farthest from the centre stays, the least
typical: a copy is an image with a close one farther out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.apps.curation import grid, lloyd
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.runtime.parallel import process_pool

# Images compared at once by each device.
_TILE = 1024


def clusters_of(images: int) -> int:
  """How many clusters to compare within, each of about sqrt(N) / 2 images."""
  return max(1, round(2 * images**0.5))


def kept(
  points: grid.Points,
  found: lloyd.Clusters,
  cosine: float,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Positions of the points that are no copies, rising.

  Args:
    points: N of them.
    found: their clusters.
    cosine: images at least this close are copies, below 1.
    mesh: its devices share the points; the result does not depend on it.
  """
  # Compared with products of vectors on the grid, which are integers.
  least = np.float32(np.ceil(cosine * grid.scale_of(points.width) ** 2))
  # Cluster by cluster, the farthest first: copies come after their originals.
  order = np.lexsort((-found.distance_N.astype(np.int64), found.cluster_N))
  cluster_N = found.cluster_N[order]
  starts_N = np.searchsorted(cluster_N, cluster_N)
  tile, is_copy_N = _TILE * mesh.size, np.zeros(len(order), bool)
  compare = _compare(mesh)

  def tile_at(first):
    rows = order[first : first + tile]
    x_TxD, cluster_T = points.only(rows).block(0, len(rows)), cluster_N[first:]
    missing = tile - len(rows)
    return (
      np.pad(x_TxD, ((0, missing), (0, 0))),
      np.pad(cluster_T[:tile], (0, missing), constant_values=-1),
    )

  for first in range(0, len(order), tile):
    later = jax.device_put(tile_at(first), mesh_lib.rows(mesh))
    for before in range(starts_N[first] // tile * tile, first + 1, tile):
      process_pool.stop_if_asked()
      earlier = jax.device_put(tile_at(before), mesh_lib.replicated(mesh))
      copy_T = np.asarray(compare(later, earlier, before - first, least))
      is_copy_N[first : first + tile] |= copy_T[: len(order) - first]
  return np.sort(order[~is_copy_N])


@functools.cache
def _compare(mesh):
  """Which of a tile are copies of points before them in another, or in it."""
  rows, whole = mesh_lib.rows(mesh).spec, jax.P()

  def of_device(later, earlier, offset, least):
    (x_SxD, cluster_S), (x_TxD, cluster_T) = later, earlier
    dots_TxS = jnp.matmul(
      x_TxD.astype(jnp.float32),
      x_SxD.astype(jnp.float32).T,
      precision="highest",
    )
    first = jax.lax.axis_index(mesh_lib.AXES) * len(x_SxD)
    later_S = first + jnp.arange(len(x_SxD))
    earlier_T = offset + jnp.arange(len(x_TxD))
    is_pair_TxS = (earlier_T[:, None] < later_S) & (
      cluster_T[:, None] == cluster_S
    )
    return (is_pair_TxS & (dots_TxS >= least)).any(0)

  return jax.jit(
    jax.shard_map(
      of_device,
      mesh=mesh,
      in_specs=((rows, rows), (whole, whole), whole, whole),
      out_specs=rows,
      check_vma=False,
    )
  )
