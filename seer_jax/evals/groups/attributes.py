"""What a table says of images beside their labels, by image.

Rows are matched to images by name or, where the images are the table's own
list, by row; never by position in two files. (VISSL's analysis of Dollar Street
takes predictions and metadata to be in the same order.)
"""

import difflib
import os
from collections.abc import Sequence

import numpy as np

from seer_jax.data import sources
from seer_jax.data.sources import base, file_list, tables
from seer_jax.runtime import errors

# Two columns crossed: "gender*skin_tone".
CROSS = "*"


class Attributes:
  """Columns of a CSV or Parquet file for the images of a source."""

  def __init__(self, path: str, source: sources.Source):
    """Opens a table.

    Its column of paths has ids of the source's images, or paths relative to its
    folder. Raises UserError if it cannot be read.
    """
    if not path.endswith((".csv", ".parquet")):
      raise errors.UserError(
        f"config.eval.attributes is {path!r}; give a .csv or .parquet file with"
        " a row per image and a column per attribute"
      )
    self._path, self._source = path, source
    self._table = tables.Table(file_list.local_copy(path))
    self._columns: dict[str, list[str]] = {}
    self._rows_by_name: dict[str, int] | None = None
    self._last: tuple[bytes | None, list[int]] = (None, [])

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the columns."""
    return self._table.names

  def of(self, column: str, indices: Sequence[int]) -> list[str]:
    """The text of a column, or of several joined by `*`, for some images.

    Empty cells give "". Raises UserError if there is no such column, or an
    image has no row or several.
    """
    parts = [self._texts(name.strip()) for name in column.split(CROSS)]
    rows = self._rows(np.asarray(indices, np.int64))
    return [
      ", ".join(texts) if all(texts) else ""
      for texts in ([part[row] for part in parts] for row in rows)
    ]

  def numbers(self, column: str, indices: Sequence[int]) -> list[float]:
    """A column of numbers. Raises UserError if one is missing or none."""
    texts = self.of(column, indices)
    try:
      return [float(text) for text in texts]
    except ValueError:
      bad = next(text for text in texts if not _is_number(text))
      raise errors.UserError(
        f"{self._path}: column {column} has {errors.shown(bad)!r}, which is not"
        " a number"
      ) from None

  def _texts(self, name):
    if name not in self.names:
      near = difflib.get_close_matches(name, self.names, n=1)
      raise errors.UserError(
        f"{self._path} has no column {name!r}"
        + (f"; did you mean {near[0]}?" if near else ";")
        + f" It has {', '.join(self.names)}"
      )
    if name not in self._columns:
      self._columns[name] = self._table.texts(name)
    return self._columns[name]

  def _rows(self, index_N):
    """Rows of images; the last are kept, since several figures share them."""
    key = index_N.tobytes()
    if self._last[0] != key:
      self._last = key, [self._row(index) for index in index_N.tolist()]
    return self._last[1]

  def _row(self, index):
    row = base.row_of(self._source, index, self._path)
    if row is not None:
      return row
    known = self._known()
    name = self._source.id_of(index)
    row = known.get(name, known.get(base.path_of(self._source, index)))
    if row is None:
      raise errors.UserError(
        f"{self._path} has no row for the image {errors.shown(name)}; give a"
        " row for each test image, with its name or path"
      )
    if row < 0:
      raise errors.UserError(
        f"{self._path} has several rows for the image {errors.shown(name)};"
        " give one, or evaluate on the table itself (--test)"
      )
    return row

  def _known(self):
    """Rows by entry and by absolute path; -1 for an entry of several rows."""
    if self._rows_by_name is None:
      found: dict[str, int] = {}
      folder = os.path.dirname(os.path.abspath(self._path))
      for row, entry in enumerate(self._table.texts(self._table.path_column)):
        for name in {entry, os.path.normpath(os.path.join(folder, entry))}:
          found[name] = -1 if name in found else row
      self._rows_by_name = found
    return self._rows_by_name


def _is_number(text):
  try:
    float(text)
  except ValueError:
    return False
  return True
