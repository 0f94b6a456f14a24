"""Clusters of a collection, and reports of them."""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seer_jax.apps.collection import kmeans
from seer_jax.apps.embedding import embeddings, shards, vectors
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib

# HDBSCAN compares all pairs; it gets so many principal components.
_HDBSCAN_MOST, _HDBSCAN_WIDTH = 50_000, 50


def cluster(
  features_NxD: np.ndarray,
  k: int | Sequence[int],
  *,
  method: str = "kmeans",
  min_size: int = 5,
  seed: int = 0,
) -> list[kmeans.Clusters]:
  """Clusters vectors by direction.

      (found,) = seer_jax.cluster(x_NxD, 20)
      fine, coarse = seer_jax.cluster(x_NxD, (1000, 50))

  Raises UserError for an unknown method or a bad number of clusters.

  Args:
    features_NxD: float32 or float16, of any length; may be a memory map.
    k: number of clusters; a falling sequence makes a hierarchy, which clusters
      the centres of the level before. HDBSCAN ignores it.
    method: "kmeans" (spherical), "balanced" (none larger than N / K, rounded
      up) or "hdbscan", which leaves some vectors out.
    min_size: of HDBSCAN's clusters.

  Returns:
    `Clusters` of each level, the finest first.
  """
  levels = list(k) if isinstance(k, Sequence) else [int(k)]
  if method == "hdbscan":
    return [_hdbscan(features_NxD, min_size)]
  if method not in ("kmeans", "balanced"):
    raise errors.UserError(
      f"there is no method {method!r}; use kmeans, balanced or hdbscan"
    )
  if not levels or sorted(set(levels), reverse=True) != levels:
    raise errors.UserError(
      f"k is {levels}; the levels must fall, as in 1000,50"
    )
  found = [
    kmeans.spherical_kmeans(
      features_NxD,
      levels[0],
      balanced=method == "balanced",
      seed=seed,
      mesh=mesh_lib.make(),
    )
  ]
  for count in levels[1:]:
    above = kmeans.spherical_kmeans(found[-1].centre_KxD, count, seed=seed)
    found.append(_lifted(above, found[-1], features_NxD))
  return found


def _lifted(above, below, features_NxD):
  """Clusters of centres as clusters of their vectors."""
  cluster_N = above.cluster_N[below.cluster_N]
  similarity_N = _to_centres(features_NxD, above.centre_KxD, cluster_N)
  return kmeans.Clusters(cluster_N, similarity_N, above.centre_KxD)


def _to_centres(features_NxD, centre_KxD, cluster_N):
  """Cosine of each vector to the centre of its cluster."""
  rows_N = np.arange(len(cluster_N))
  return vectors.cosines(features_NxD, rows_N, centre_KxD, cluster_N)


def _hdbscan(features_NxD, min_size):
  from sklearn import cluster as sklearn_cluster
  from sklearn import decomposition

  count, width = features_NxD.shape
  if count > _HDBSCAN_MOST:
    raise errors.UserError(
      f"HDBSCAN compares all pairs, so {_HDBSCAN_MOST} images are its limit,"
      f" and there are {count}; use --method kmeans"
    )
  unit_NxD = vectors.unit(features_NxD)
  few = min(_HDBSCAN_WIDTH, count, width)
  reduced = decomposition.PCA(few, random_state=0).fit_transform(unit_NxD)
  cluster_N = sklearn_cluster.HDBSCAN(
    min_cluster_size=min_size, copy=True
  ).fit_predict(reduced)
  return _of_assignment(unit_NxD, cluster_N)


def _of_assignment(unit_NxD, cluster_N):
  """Clusters with their mean directions; the largest is 0."""
  names, cluster_N = np.unique(cluster_N, return_inverse=True)
  outside = int(names[0] < 0)
  cluster_N = cluster_N - outside
  k = len(names) - outside
  sizes_K = np.bincount(cluster_N[cluster_N >= 0], minlength=k)
  rank_K = np.argsort(np.argsort(-sizes_K, kind="stable"))
  cluster_N = np.where(cluster_N < 0, -1, rank_K[cluster_N]).astype(np.int32)
  centre_KxD = np.zeros((k, unit_NxD.shape[1]), np.float32)
  np.add.at(centre_KxD, cluster_N[cluster_N >= 0], unit_NxD[cluster_N >= 0])
  centre_KxD = vectors.unit(centre_KxD)
  similarity_N = np.zeros(len(unit_NxD), np.float32)
  if k:
    similarity_N = _to_centres(unit_NxD, centre_KxD, np.maximum(cluster_N, 0))
  return kmeans.Clusters(
    cluster_N, np.where(cluster_N < 0, 0, similarity_N), centre_KxD
  )


def by_prototypes(found: embeddings.Embeddings) -> list[kmeans.Clusters]:
  """Clusters of training: images by their nearest prototype.

  Raises UserError if the weights have no prototypes.
  """
  prototype_N = found.column("prototype")
  if (prototype_N < 0).all():
    raise errors.UserError(
      f"{found.about['weights']} has no prototypes; use --method kmeans"
    )
  return [_of_assignment(vectors.unit(found.features), prototype_N)]


class Agreement(NamedTuple):
  """How well clusters agree with labels."""

  # Share of images that have the most frequent label of their cluster.
  purity: float
  nmi: float  # Normalized mutual information, arithmetic mean of entropies.
  images: int  # With a label and a cluster.


def agreement(
  cluster_N: np.ndarray, labels_N: np.ndarray | None
) -> Agreement | None:
  """Agreement of clusters with names of labels; None without labels."""
  if labels_N is None:
    return None
  from sklearn import metrics

  known = (cluster_N >= 0) & np.array([each is not None for each in labels_N])
  if not known.any():
    return None
  clusters, labels = cluster_N[known], labels_N[known].astype(str)
  table = metrics.cluster.contingency_matrix(labels, clusters)
  return Agreement(
    float(table.max(0).sum() / table.sum()),
    float(metrics.normalized_mutual_info_score(labels, clusters)),
    int(known.sum()),
  )


def summary(
  found: kmeans.Clusters, ids_N: np.ndarray, labels_N: np.ndarray | None
) -> Iterator[dict[str, object]]:
  """A row for each cluster: size, medoid, and its most frequent label."""
  for number, size in enumerate(found.sizes):
    rows = np.flatnonzero(found.cluster_N == number)
    if not size:
      continue
    medoid = rows[np.argmax(found.similarity_N[rows])]
    row = {"cluster": number, "size": int(size), "medoid": ids_N[medoid]}
    row["mean similarity"] = f"{found.similarity_N[rows].mean():.3f}"
    if labels_N is not None:
      known = [each for each in labels_N[rows] if each is not None]
      names, counts = np.unique(known or [""], return_counts=True)
      row["label"] = names[np.argmax(counts)]
      row["purity"] = f"{counts.max() / max(1, len(known)):.3f}"
    yield row


def write(
  out: pathlib.Path, found: embeddings.Embeddings, levels: list[kmeans.Clusters]
) -> None:
  """Writes `clusters.csv`, a row per image, and `summary.csv`."""
  finest = levels[0]
  rows = [
    {"id": name, "path": path}
    | {
      f"cluster{f'_{at}' if at else ''}": level.cluster_N[row]
      for at, level in enumerate(levels)
    }
    | {"similarity": f"{finest.similarity_N[row]:.4f}"}
    for row, (name, path) in enumerate(
      zip(found.ids, found.column("path"), strict=True)
    )
  ]
  files.write_text(out / "clusters.csv", shards.as_csv(rows))
  whole = list(summary(finest, found.ids, found.labels))
  files.write_text(out / "summary.csv", shards.as_csv(whole))


def link(
  out: pathlib.Path,
  found: embeddings.Embeddings,
  groups: Mapping[str, Sequence[int]],
) -> int:
  """Makes folders of links to images; returns the number of links.

  Raises UserError if the folder exists, or the images are not files of their
  own.

  Args:
    groups: rows by name of the folder, in the order of their links.
  """
  paths = found.column("path")
  if not os.path.isfile(paths[0]):
    raise errors.UserError(
      f"--links needs image files, and {paths[0]} is not one; use the"
      " CSV file instead"
    )
  if out.exists():
    raise errors.UserError(f"--links={out} already exists; give a new folder")
  count = 0
  for name, rows in groups.items():
    folder = out / (_plain(name) or "_")
    folder.mkdir(parents=True, exist_ok=True)
    for rank, row in enumerate(rows):
      last = _plain(os.path.basename(paths[row]))
      (folder / f"{rank:05d}_{last}").symlink_to(paths[row])
      count += 1
  return count


def members(found: kmeans.Clusters) -> dict[str, np.ndarray]:
  """Rows of each cluster, the most typical first, by its number as text."""
  order = np.argsort(-found.similarity_N, kind="stable")
  return {
    f"{number:04d}": order[found.cluster_N[order] == number]
    for number in range(len(found.centre_KxD))
  }


def _plain(name):
  """A name without characters that lead out of a folder."""
  return re.sub(r"[^\w.-]+", "_", name).lstrip(".")
