"""Balanced sampling from the top of a hierarchy (Vo et al. 2024, section 3.4).

The clusters of the top level get equal shares of the images to keep, those of a
level below equal shares of their parent's; a cluster with fewer images than its
share gives all, and the others share the rest.
"""

from collections.abc import Sequence

import numpy as np


def shares(
  capacity_K: np.ndarray, total: int, rng: np.random.Generator
) -> np.ndarray:
  """Shares as equal as the capacities allow, `total` in all: int64 K.

  What does not divide goes to random clusters, one more each.

  Args:
    capacity_K: most that each can have; their sum is at least `total`.
    total: what to share.
    rng: for the rest.
  """
  rising = np.argsort(capacity_K, kind="stable")
  sorted_K = capacity_K[rising].astype(np.int64)
  many = np.arange(len(sorted_K), 0, -1)
  # What all get in total if none gets more than the n-th smallest capacity.
  filled_K = np.cumsum(sorted_K) - sorted_K + sorted_K * many
  full = int(np.searchsorted(filled_K, total, "right"))
  if full == len(sorted_K):
    return capacity_K.astype(np.int64)
  level, rest = divmod(int(total - sorted_K[:full].sum()), int(many[full]))
  share_K = np.minimum(capacity_K, level).astype(np.int64)
  room = np.flatnonzero(capacity_K > level)
  share_K[rng.permutation(room)[:rest]] += 1
  return share_K


def sample(parents: Sequence[np.ndarray], keep: int, seed: int) -> np.ndarray:
  """Positions of the images to keep, rising.

  Args:
    parents: of each level, the finest first, the cluster of each image, then
      of each cluster of the level below.
    keep: how many; at most all.
    seed: of random choices among images and for what does not divide.
  """
  rng = np.random.default_rng(seed)
  size = np.ones(len(parents[0]), np.int64)
  sizes = [size]  # Images below: of images, of clusters of each level.
  counts = [*map(len, parents[1:]), int(parents[-1].max()) + 1]
  for parent, count in zip(parents, counts, strict=True):
    size = np.bincount(parent, size, minlength=count)
    sizes.append(size.astype(np.int64))
  share = shares(sizes[-1], keep, rng)
  for parent, capacity in zip(parents[::-1], sizes[-2::-1], strict=True):
    share = _divided(parent, capacity, share, rng)
  return np.flatnonzero(share)


def _divided(parent, capacity, share, rng):
  """Shares of the children of each cluster."""
  order = np.argsort(parent, kind="stable")
  bounds = np.searchsorted(parent[order], np.arange(len(share) + 1))
  found = np.zeros(len(parent), np.int64)
  for number, wanted in enumerate(share.tolist()):
    children = order[bounds[number] : bounds[number + 1]]
    if wanted:
      found[children] = shares(capacity[children], wanted, rng)
  return found
