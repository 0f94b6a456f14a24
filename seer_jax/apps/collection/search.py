"""Search by example: exact over vectors that may be on disk, or by faiss."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from seer_jax.apps.embedding import embed, embeddings, vectors
from seer_jax.evals import knn
from seer_jax.runtime import errors, files

KINDS = ("exact", "faiss")
# faiss compares all vectors up to so many; beyond, inverted lists.
_FLAT = 100_000
# Share of the lists that is searched.
_PROBED = 1 / 16
_PART = 2**16


class Index:
  """Vectors to search by cosine.

      index = seer_jax.Index(x_NxD)
      similarity_QxK, index_QxK = index.search(query_QxD, k=10)

  Exact search is a blocked matrix product that reads the vectors once in order,
  so they may be a memory map larger than memory. faiss's index is approximate.
  """

  def __init__(
    self,
    features_NxD: np.ndarray,
    kind: str = "exact",
    path: str | pathlib.Path | None = None,
  ):
    """Raises UserError for an unknown kind, no vectors, or without faiss.

    Args:
      features_NxD: float32 or float16, of any length; may be a memory map.
      kind: "exact" or "faiss".
      path: of faiss's index; read if it exists, else written.
    """
    if kind not in KINDS:
      raise errors.UserError(
        f"there is no index {kind!r}; use one of {', '.join(KINDS)}"
      )
    if features_NxD.ndim != 2 or not len(features_NxD):
      raise errors.UserError(
        f"the vectors have shape {features_NxD.shape}; an index takes NxD, N"
        " at least 1"
      )
    self._features = features_NxD
    self._faiss = None
    if kind == "faiss":
      self._faiss = _faiss_index(features_NxD, path and pathlib.Path(path))

  @classmethod
  def open(
    cls, folder: str | pathlib.Path | embeddings.Embeddings, kind: str = "exact"
  ) -> "Index":
    """The index of a folder that `seer-jax embed` wrote.

    Raises UserError if it has no finished embeddings.
    """
    found = folder
    if not isinstance(found, embeddings.Embeddings):
      found = embeddings.Embeddings(folder)
    name = f"{found.fingerprint}.faiss"
    return cls(found.features, kind, files.cache_folder("index") / name)

  def __len__(self) -> int:
    return len(self._features)

  @property
  def width(self) -> int:
    """D."""
    return self._features.shape[1]

  def search(
    self, query_QxD: np.ndarray, k: int = 10, without: Sequence[int] = ()
  ) -> tuple[np.ndarray, np.ndarray]:
    """The vectors most similar to each query.

    Raises UserError for queries of another width, or with values that are not
    finite.

    Args:
      query_QxD: vectors of any length; a single one may have shape D.
      k: results per query, at most N less those without.
      without: rows to leave out, such as the query's own.

    Returns:
      similarity_QxK, falling cosines, and index_QxK, rows of the index. faiss
      may find fewer: index -1, similarity -inf.
    """
    query_QxD = np.atleast_2d(np.asarray(query_QxD, np.float32))
    if query_QxD.shape[1] != self.width:
      raise errors.UserError(
        f"a query has {query_QxD.shape[1]} numbers, but a vector of the index"
        f" has {self.width}; embed both with the same weights and tap"
      )
    if not np.isfinite(query_QxD).all():
      raise errors.UserError(
        "a query is not finite; check that its image is usable"
      )
    if k < 1:
      raise errors.UserError(f"k is {k}; it must be positive")
    without = np.unique(np.asarray(without, np.int64))
    wanted = min(k + len(without), len(self))
    if self._faiss is None:
      found = knn.nearest(self._features, query_QxD, wanted)
    else:
      found = self._faiss.search(vectors.unit(query_QxD), wanted)
      found = np.where(found[1] < 0, -np.inf, found[0]), found[1]
    return _left(*found, without, min(k, len(self) - len(without)))


def _left(similarity_QxK, index_QxK, without, k):
  """The first k results of each query that are not left out."""
  out_QxK = np.isin(index_QxK, without)
  # False sorts first; a stable sort keeps the order otherwise.
  order_QxK = np.argsort(out_QxK, 1, kind="stable")[:, :k]
  return (
    np.take_along_axis(similarity_QxK, order_QxK, 1),
    np.take_along_axis(index_QxK, order_QxK, 1).astype(np.int64),
  )


def _faiss_index(features_NxD, path) -> Any:
  try:
    import faiss
  except ImportError:
    raise errors.UserError(
      "--index faiss needs a library; run: pip install 'seer_jax[faiss]'"
    ) from None
  if path is not None and path.exists():
    return faiss.read_index(str(path))
  count, width = features_NxD.shape
  if count <= _FLAT:
    index = faiss.IndexFlatIP(width)
  else:
    lists = int(4 * count**0.5)
    index = faiss.index_factory(
      width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe = max(1, int(lists * _PROBED))
    some = np.random.default_rng(0).choice(
      count, min(count, 64 * lists), replace=False
    )
    index.train(vectors.unit(features_NxD[np.sort(some)]))
  for first in range(0, count, _PART):
    index.add(vectors.unit(features_NxD[first : first + _PART]))
  if path is not None and count > _FLAT:
    with files.whole_file(path) as file:
      faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
  return index


def query(
  found: embeddings.Embeddings, names: Sequence[str], weights: str | None
) -> tuple[np.ndarray, list[int]]:
  """The centroid of several examples, and their rows in the folder.

  Raises UserError if an example is neither in the folder nor a file, or the
  weights are not those of the folder.

  Args:
    names: ids of its images, or paths of any.
    weights: for images outside the folder; None is those of the folder.

  Returns:
    query_D, and the rows of the examples in the folder.
  """
  rows = {name: found.row_of(name) for name in names}
  others = [name for name, row in rows.items() if row is None]
  examples = [found.features[row] for row in rows.values() if row is not None]
  for name in others:
    if not files.user_path(name).is_file():
      raise errors.UserError(
        f"{name} is neither a file nor an id in {found.folder}, such as"
        f" {found.ids[0]!r}"
      )
  if others:
    examples += list(of_images(found, others, weights))
  return (
    vectors.centroid(np.stack(examples)),
    [row for row in rows.values() if row is not None],
  )


def of_images(
  found: embeddings.Embeddings, images: Any, weights: str | None
) -> np.ndarray:
  """Embeddings of other images, computed like those of a folder.

  Raises UserError if the weights are missing or different.
  """
  about = found.about
  opened = embed.open_weights(weights or about["weights"])
  if opened.fingerprint != about["weights_fingerprint"]:
    raise errors.UserError(
      f"{found.folder} was embedded with {about['weights']}, not with"
      f" {opened.name}; give the same --weights, or embed again"
    )
  return embed.embed(
    images,
    (opened.encoder, opened.variables),
    tap=about["tap"],
    precision=about["precision"],
  )
