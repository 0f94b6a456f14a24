"""Reads the folders that `seer-jax embed` writes."""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seer_jax.apps.embedding import embed_folder, shards
from seer_jax.data import sources
from seer_jax.data.storage import retry
from seer_jax.runtime import errors, files

# Larger arrays are mapped from a file.
_IN_MEMORY = 2**28


class Embeddings:
  """A finished folder of embeddings.

  Raises UserError if it has none, or is not finished.

  Attributes:
    folder: its path.
    about: source, weights and options (`embed_folder.read_about`).
  """

  def __init__(self, folder: str | pathlib.Path):
    self.folder = files.user_path(str(folder))
    self.about = embed_folder.read_about(self.folder)
    self._files = embed_folder.shards_of(self.folder, self.about)
    self._columns: dict[str, np.ndarray] = {}
    missing = sum(not path.exists() for path in self._files)
    if missing or "rows" not in self.about:
      raise errors.UserError(
        f"{self.folder} is not finished: {missing} of {len(self._files)} shards"
        " are missing; run the same seer-jax embed again"
      )

  def __len__(self) -> int:
    return self.about["rows"]

  def column(self, name: str) -> np.ndarray:
    """A column: numbers, or objects (strings, None) for text.

    Raises UserError if a shard is damaged.
    """
    if name not in self._columns:
      parts = [_read(path, name) for path in self._files]
      self._columns[name] = np.concatenate(parts)
    return self._columns[name]

  @property
  def ids(self) -> np.ndarray:
    """Ids of all images, as strings."""
    return self.column("id")

  def ids_at(self, rows: np.ndarray) -> list[str]:
    """Ids of some rows, in rising order, without keeping those of all."""
    found, first = [], 0
    for path in self._files:
      count = shards.opened(path).metadata.num_rows
      low, high = np.searchsorted(rows, [first, first + count])
      if low < high:
        found += _read(path, "id")[rows[low:high] - first].tolist()
      first += count
    return found

  @functools.cached_property
  def labels(self) -> np.ndarray | None:
    """Names of labels, None for images without; None if no image has one."""
    found = self.column("label")
    return found if any(each is not None for each in found) else None

  @functools.cached_property
  def hashes(self) -> np.ndarray:
    """Perceptual hashes, uint64."""
    return np.array([int(each, 16) for each in self.column("phash")], np.uint64)

  @functools.cached_property
  def features(self) -> np.ndarray:
    """embedding_NxD; large ones are a memory map.

    Parquet cannot be mapped, so a copy in the user's cache is. Raises UserError
    if a shard is damaged and Lost if the disk is full.
    """
    dtype = np.dtype(self.about["dtype"])
    width = self.width
    if len(self) * width * dtype.itemsize <= _IN_MEMORY:
      return np.concatenate(list(self.parts()))
    key = self.fingerprint
    path = files.cache_folder("index") / f"{key}.{dtype.name}"
    if not path.exists():
      with files.whole_file(path) as file:
        for part in self.parts():
          file.write(np.ascontiguousarray(part))
    return np.memmap(path, dtype, "r", shape=(len(self), width))

  def parts(self) -> Iterator[np.ndarray]:
    """Embeddings in order, a row group of a shard at a time.

    Raises UserError if a shard is damaged, or has embeddings of another width.
    """
    for path in self._files:
      width = shards.width_of(path)
      if width != self.width:
        raise errors.UserError(
          f"{path} has embeddings of {width} numbers, others have"
          f" {self.width}; remove it, and run the same seer-jax embed again"
        )
      yield from _embeddings(path)

  @functools.cached_property
  def width(self) -> int:
    """D."""
    return shards.width_of(self._files[0])

  @functools.cached_property
  def fingerprint(self) -> str:
    """Differs for different embeddings."""
    sizes = [(path.name, path.stat().st_size) for path in self._files]
    return files.key(sizes, embed_folder.lasting(self.about))

  def row_of(self, name: str) -> int | None:
    """The row of an image by its id or path, or None."""
    found = self._rows_by_name.get(name)
    if found is None:
      path = str(files.user_path(name).resolve())
      found = self._rows_by_name.get(path)
    return found

  @functools.cached_property
  def _rows_by_name(self):
    # An id takes precedence over an equal path.
    paths, ids = self.column("path"), self.ids
    return {name: row for row, name in enumerate(paths)} | {
      name: row for row, name in enumerate(ids)
    }

  @functools.cached_property
  def source(self) -> sources.Source:
    """The source of the images. Raises UserError if it has moved."""
    return sources.open_source(self.about["source"])

  def image(self, row: int) -> bytes:
    """The encoded file of an image.

    Raises OSError if it cannot be read any more, and BadImage if it is excluded
    by now.
    """
    index, name = int(self.column("index")[row]), self.ids[row]
    # Files may have been added or removed since.
    if index < len(self.source) and self.source.id_of(index) == name:
      return retry.read(self.source, index)["image"]
    return pathlib.Path(self.column("path")[row]).read_bytes()


def _read(path: pathlib.Path, name: str) -> np.ndarray:
  with shards.damage(path):
    column = shards.opened(path).read(columns=[name]).column(0)
    if pa.types.is_string(column.type):
      found = np.empty(len(column), object)
      found[:] = column.to_pylist()
      return found
    if column.null_count:
      column = column.fill_null(-1)
    return column.to_numpy()


def _embeddings(path: pathlib.Path) -> Sequence[np.ndarray]:
  """Embeddings of a shard, one array per row group."""
  with shards.damage(path):
    return [
      _rows(batch.column(0))
      for batch in shards.opened(path).iter_batches(columns=["embedding"])
    ]


def _rows(column: Any) -> np.ndarray:
  width = column.type.list_size
  # `flatten` heeds the offset of a slice.
  return column.flatten().to_numpy().reshape(-1, width)
