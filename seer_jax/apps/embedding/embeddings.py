"""What `seer-jax embed` wrote, to be read: rows, and one array of features."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seer_jax.apps.embedding import embed_folder, shards
from seer_jax.data import sources
from seer_jax.data.storage import retry
from seer_jax.runtime import errors, files

# Larger ones are mapped from a file.
_IN_MEMORY = 2**28


class Embeddings:
  """A finished folder of embeddings.

  Raises UserError if it holds none, or is not finished.

  Attributes:
    folder: where it is.
    about: what was embedded, by what, and how.
  """

  def __init__(self, folder: str | pathlib.Path):
    self.folder = files.user_path(str(folder))
    self.about = embed_folder.read_about(self.folder)
    self._files = embed_folder.shards_of(self.folder, self.about)
    self._columns: dict[str, np.ndarray] = {}
    missing = sum(not path.exists() for path in self._files)
    if missing or "rows" not in self.about:
      raise errors.UserError(
        f"{self.folder} is not finished:"
        f" {len(self._files) - missing} of {len(self._files)} shards are there;"
        " run the same seer-jax embed again"
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
    """Of all images, as strings."""
    return self.column("id")

  @functools.cached_property
  def labels(self) -> np.ndarray | None:
    """Names of labels, None where there is none; None if nothing has one."""
    found = self.column("label")
    return found if any(each is not None for each in found) else None

  @functools.cached_property
  def hashes(self) -> np.ndarray:
    """Perceptual hashes, uint64."""
    return np.array([int(each, 16) for each in self.column("phash")], np.uint64)

  @functools.cached_property
  def features(self) -> np.ndarray:
    """embedding_NxD, as it was written; of large ones a memory map.

    That is of a file in the user's cache, made once: Parquet cannot be mapped.
    Raises UserError if a shard is damaged and Lost if the disk is full.
    """
    dtype = np.dtype(self.about["dtype"])
    width = self.width
    if len(self) * width * dtype.itemsize <= _IN_MEMORY:
      return np.concatenate(
        [part for path in self._files for part in _embeddings(path)]
      )
    key = self.fingerprint
    path = files.cache_folder("index") / f"{key}.{dtype.name}"
    if not path.exists():
      with files.whole_file(path) as file:
        for shard in self._files:
          for part in _embeddings(shard):
            file.write(np.ascontiguousarray(part))
    return np.memmap(path, dtype, "r", shape=(len(self), width))

  @functools.cached_property
  def width(self) -> int:
    """D."""
    return shards.width_of(self._files[0])

  @functools.cached_property
  def fingerprint(self) -> str:
    """Tells these embeddings from others."""
    sizes = [(path.name, path.stat().st_size) for path in self._files]
    return files.key(sizes, embed_folder.lasting(self.about))

  def row_of(self, name: str) -> int | None:
    """The row of an image by its id, or by the file's path."""
    found = self._rows_by_name.get(name)
    if found is None:
      path = str(files.user_path(name).resolve())
      found = self._rows_by_name.get(path)
    return found

  @functools.cached_property
  def _rows_by_name(self):
    # An id wins over a path that spells the same.
    paths, ids = self.column("path"), self.ids
    return {name: row for row, name in enumerate(paths)} | {
      name: row for row, name in enumerate(ids)
    }

  @functools.cached_property
  def source(self) -> sources.Source:
    """The images themselves.

    Raises UserError if they are not where they were.
    """
    return sources.open_source(self.about["source"])

  def image(self, row: int) -> bytes:
    """The file of an image.

    Raises OSError if it cannot be read any more and BadImage if it may not be
    used any more.
    """
    index, name = int(self.column("index")[row]), self.ids[row]
    # A folder may have lost or gained files since.
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
  """Of a shard, row group by row group."""
  with shards.damage(path):
    return [
      _rows(batch.column(0))
      for batch in shards.opened(path).iter_batches(columns=["embedding"])
    ]


def _rows(column: Any) -> np.ndarray:
  width = column.type.list_size
  # `flatten` heeds the offset of a slice.
  return column.flatten().to_numpy().reshape(-1, width)
