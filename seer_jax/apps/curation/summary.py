"""What a curation changed: sizes of clusters before and after."""

from collections.abc import Callable, Iterator

import numpy as np

from seer_jax.apps.curation.curate import Curation
from seer_jax.apps.embedding import embeddings
from seer_jax.apps.view import gallery

# Clusters on the page, and pictures of each, kept or dropped.
_SHOWN, _PICTURES = 20, 8


def evenness(sizes_K: np.ndarray) -> float:
  """Entropy of the shares of clusters, over that of equal shares: 0 to 1."""
  if len(sizes_K) < 2:
    return 1.0
  share_K = sizes_K[sizes_K > 0] / max(1, sizes_K.sum())
  return float(-(share_K * np.log(share_K)).sum() / np.log(len(sizes_K)))


def levels(found: Curation) -> Iterator[dict[str, str]]:
  """A row for each level, the coarsest first."""
  for number in range(len(found.cluster_LxN), 0, -1):
    before_K, after_K = _sizes(found, number - 1)
    row = {"level": str(number), "clusters": f"{len(before_K):,}"}
    for name, sizes_K in (("before", before_K), ("after", after_K)):
      row |= {
        f"evenness {name}": f"{evenness(sizes_K):.3f}",
        f"median {name}": f"{np.median(sizes_K):,.0f}",
        f"largest {name}": f"{sizes_K.max():,}",
      }
    yield row


def clusters(
  found: Curation, ids_at: Callable[[np.ndarray], list[str]]
) -> Iterator[dict[str, object]]:
  """A row for each cluster of the top level, the largest first.

  Its images before and after, and its most typical images: of those kept, and
  of those dropped.
  """
  before_K, after_K = _sizes(found, -1)
  dropped = np.setdiff1d(
    np.arange(found.cluster_LxN.shape[1]), found.kept, assume_unique=True
  )
  medoids = [_medoids(found, rows) for rows in (found.kept, dropped)]
  rows = np.sort([row for each in medoids for row in each.values()])
  names = dict(zip(rows.tolist(), ids_at(rows), strict=True)) | {None: ""}
  for number in np.argsort(-before_K, kind="stable").tolist():
    kept, other = (rows.get(number) for rows in medoids)
    yield {
      "cluster": number,
      "images": int(before_K[number]),
      "kept": int(after_K[number]),
      "medoid_kept": names[kept],
      "medoid_dropped": names[other],
    }


def page(found: Curation, images: embeddings.Embeddings) -> str:
  """The largest clusters of the top level: the most typical images of each."""
  before_K, after_K = _sizes(found, -1)
  is_kept_N = np.zeros(found.cluster_LxN.shape[1], bool)
  is_kept_N[found.kept] = True
  sections = []
  for number in np.argsort(-before_K, kind="stable")[:_SHOWN].tolist():
    rows = np.flatnonzero(found.cluster_LxN[-1] == number)
    rows = rows[np.argsort(found.distance_N[rows], kind="stable")]
    for what, these in (
      (f"{after_K[number]:,} kept", rows[is_kept_N[rows]]),
      (
        f"{before_K[number] - after_K[number]:,} dropped",
        rows[~is_kept_N[rows]],
      ),
    ):
      these = these[:_PICTURES]
      title = f"Cluster {number}: {before_K[number]:,} images, {what}"
      captions = [images.ids[row] for row in these]
      sections.append(gallery.Section(title, these, captions))
  about = (
    f"{len(is_kept_N):,} images, {found.copies:,} near copies,"
    f" {len(found.kept):,} kept. The {min(_SHOWN, len(before_K))} largest of"
    f" {len(before_K)} clusters; the most typical images of each first."
  )
  return gallery.page("Curation", about, images, sections)


def _sizes(found, level):
  cluster_N = found.cluster_LxN[level]
  before_K = np.bincount(cluster_N)
  after_K = np.bincount(cluster_N[found.kept], minlength=len(before_K))
  return before_K, after_K


def _medoids(found, rows):
  """The row closest to the centre of each cluster of the top level."""
  cluster_M = found.cluster_LxN[-1][rows]
  order = np.lexsort((found.distance_N[rows], cluster_M))
  numbers, first = np.unique(cluster_M[order], return_index=True)
  return dict(zip(numbers.tolist(), rows[order[first]].tolist(), strict=True))
