"""Lists of images in Parquet files."""

import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from seer_jax.data.sources import array_record
from seer_jax.data.storage import label_index
from seer_jax.runtime import errors

_PATHS, _LABELS = ("path", "image", "file", "url"), ("label", "class")


class Parquet:
  """The columns of a list that are of use.

  Raises:
    UserError: it is none, is empty, or has no column of paths.
  """

  def __init__(self, path: str):
    self._path = path
    self._table = _opened(path)
    if not self._table.metadata.num_rows:
      raise errors.UserError(f"{path} has no rows; give one for each image")
    schema = self._table.schema_arrow
    texts = [each.name for each in schema if _is_text(each.type)]
    named = [name for name in _PATHS if name in texts] or texts
    if not named:
      columns = (f"{each.name} ({each.type})" for each in schema)
      raise errors.UserError(
        f"{path} has no column of strings for the paths, only"
        f" {', '.join(columns)}"
      )
    self._paths = named[0]
    self._label = next((n for n in _LABELS if n in schema.names), None)
    self.has_labels = self._label is not None

  def write_paths(self, out: pathlib.Path) -> None:
    """Writes them as lines: rows by number are quick then."""
    with out.open("wb") as file:
      for column in self._columns(self._paths):
        for value in column:
          file.write(array_record.escaped(value or "") + b"\n")

  def labels(self) -> Iterator[label_index.Part]:
    """Whole numbers, or words; floats that are whole are meant as numbers.

    Raises:
      UserError: they are something else.
    """
    for column in self._columns(self._label):
      yield [self._plain(value) for value in column]

  def _plain(self, value):
    if value is None or value != value:  # Pandas' nothing is no number.
      return b""
    if isinstance(value, float) and math.isfinite(value) and value % 1 == 0:
      return int(value)
    if isinstance(value, int):
      return int(value)
    if isinstance(value, str):
      return os.fsencode(value)
    raise errors.UserError(
      f"{self._path} has the label {value!r}; use whole numbers or strings"
    )

  def _columns(self, name):
    for batch in self._table.iter_batches(columns=[name]):
      yield batch.column(0).to_pylist()


def _opened(path) -> Any:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise errors.UserError(
      f"reading {path} needs a library; run: pip install pyarrow"
    ) from None
  try:
    return parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError) as error:
    raise errors.UserError(f"{path} is no Parquet file: {error}") from None


def _is_text(kind):
  """Of its many kinds of strings."""
  from pyarrow import types

  if types.is_dictionary(kind):
    kind = kind.value_type
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_string_view(kind)
  )
