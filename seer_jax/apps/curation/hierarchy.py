"""Hierarchical k-means with resampling (Vo et al. 2024, sections 3.2 and 3.3).

k-means puts more centres where there are more points, so clusters of frequent
concepts are many. Clustering the centres again, level by level, evens that out:
the centres of a level spread more uniformly over the concepts. Resampling does
more of it within a level: it clusters again only the points closest to each
centre, of which a large cluster has no more than a small one.

Above the first level centres are compared by direction, unlike the authors'. A
mean is shorter the more its points differ, and a short centre is near to
everything: one cluster would take most of the others.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from seer_jax.apps.curation import lloyd
from seer_jax.apps.curation.grid import Points
from seer_jax.runtime import errors


def levels_of(images: int) -> list[int]:
  """Default numbers of clusters, the finest level first: 10 sqrt(N), ..."""
  finest = min(10 * images**0.5, images / 2)
  counts = {max(1, round(finest / step)) for step in (1, 10, 100)}
  return sorted(counts, reverse=True)


def check_levels(counts: Sequence[int], images: int) -> None:
  """Raises UserError unless the numbers of clusters fall from N to 1."""
  if not counts or sorted(set(counts), reverse=True) != list(counts):
    raise errors.UserError(
      f"--clusters is {','.join(map(str, counts))}; the levels must fall, as in"
      " 10000,1000,100"
    )
  if counts[0] > images or counts[-1] < 1:
    raise errors.UserError(
      f"--clusters asks for {counts[0]} to {counts[-1]} clusters of"
      f" {images} images; give numbers from 1 to {images}"
    )


def clustered(
  points: Points,
  k: int,
  mesh: jax.sharding.Mesh,
  *,
  resampling: int,
  seed: int = 0,
  spherical: bool = False,
) -> lloyd.Clusters:
  """One level: k-means of the points, or of the centres of the level below.

  Args:
    points: N of them, at least k.
    k: number of clusters.
    mesh: its devices share the points.
    resampling: how often to cluster again the points closest to the centres,
      half the mean size from each cluster; 0 for never.
    seed: of k-means.
    spherical: above the first level.
  """
  found = lloyd.fit(points, k, mesh, seed=seed, spherical=spherical)
  closest = max(1, round(len(points) / k / 2))
  for step in range(1, resampling + 1):
    rows = _closest(found, closest)
    again = lloyd.fit(
      points.only(rows), k, mesh, seed=seed + step, spherical=spherical
    )
    cluster_N, distance_N, _ = lloyd.assign(points, again.centre_KxD, mesh)
    found = lloyd.Clusters(again.centre_KxD, cluster_N, distance_N)
  return found


def _closest(found, count):
  """Positions of up to `count` points of each cluster, in order."""
  order = np.lexsort((found.distance_N, found.cluster_N))
  cluster = found.cluster_N[order]
  starts = np.searchsorted(cluster, np.arange(len(found.centre_KxD)))
  rank = np.arange(len(order)) - starts[cluster]
  return np.sort(order[rank < count])


def of_images(parents: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
  """The cluster of each image at each level: N each, the finest first.

  Args:
    parents: of each level, the finest first, the cluster of each image, then
      of each cluster of the level below.
  """
  cluster_N = np.arange(len(parents[0]))
  for parent in parents:
    cluster_N = parent[cluster_N]
    yield cluster_N
