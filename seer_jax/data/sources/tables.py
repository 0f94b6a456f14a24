"""Lists of images in tables: Parquet and CSV."""

import csv
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pyarrow
from pyarrow import csv as arrow_csv
from pyarrow import parquet, types

from seer_jax.data.sources import array_record
from seer_jax.data.storage import label_index, line_index
from seer_jax.runtime import errors

_PATHS, _LABELS = line_index.PATH_COLUMNS, ("label", "class")


class Table:
  """The columns of a list that are used; their names in any case."""

  def __init__(self, path: str, column: str = ""):
    """Opens a `.parquet` or `.csv` file.

    A CSV whose first line has no known column name has paths in its first
    column and labels in the second. `column` is that of the paths, '' to go by
    the names. Raises UserError if the file is malformed, empty, or has no
    column of paths.
    """
    self._path = path
    self._table = (_Csv if path.endswith(".csv") else _Parquet)(path, column)
    schema = self._table.schema
    if self._table.is_empty:
      raise errors.UserError(f"{path} has no rows; give one per image")
    texts = [each.name for each in schema if _is_text(each.type)]
    self.names = tuple(schema.names)
    self.path_column = _chosen(path, schema, texts, column)
    named = [name for name in schema.names if name.lower() in _LABELS]
    if not named and not self._table.has_header:
      named = schema.names[1:2]
    self._label = next(iter(named), None)
    self.has_labels = self._label is not None

  def write_paths(self, out: pathlib.Path) -> None:
    """Writes them as lines, for fast access to rows."""
    with out.open("wb") as file:
      for column in self._table.columns(self.path_column):
        for value in column:
          file.write(array_record.escaped(value or "") + b"\n")

  def texts(self, name: str) -> list[str]:
    """A column as text; "" where it is empty. For tables that fit in memory."""
    return [
      _text(value) for column in self._table.columns(name) for value in column
    ]

  def labels(self) -> Iterator[label_index.Part]:
    """Whole numbers or names; floats that are whole count as numbers.

    Raises UserError for other labels.
    """
    for column in self._table.columns(self._label):
      yield [self._plain(value) for value in column]

  def _plain(self, value):
    if value is None or value != value:  # pandas writes NaN for nothing.
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


def _text(value):
  if value is None or value != value:  # pandas writes NaN for nothing.
    return ""
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  return str(value)


class _Parquet:
  has_header = True

  def __init__(self, path: str, column: str):
    del column  # Its columns always have names.
    try:
      self._file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
      raise errors.UserError(
        f"{path} is not a Parquet file: {errors.one_line(error)}"
      ) from None
    self.schema = self._file.schema_arrow
    self.is_empty = not self._file.metadata.num_rows

  def columns(self, name: str) -> Iterator[list[Any]]:
    """The values of a column, part by part."""
    for batch in self._file.iter_batches(columns=[name]):
      yield batch.column(0).to_pylist()


class _Csv:
  def __init__(self, path: str, column: str):
    self._path = path
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
      first = file.readline()
    words = next(csv.reader([first]), [])
    known = {word.strip().lower() for word in words} & {*_PATHS, *_LABELS}
    self.has_header = bool(known) or column in words
    self.is_empty = not words
    self.schema = pyarrow.schema([])
    if words:
      with self._opened() as reader:
        self.schema = reader.schema

  def _opened(self, **options):
    headless = arrow_csv.ReadOptions(
      autogenerate_column_names=not self.has_header
    )
    convert = arrow_csv.ConvertOptions(strings_can_be_null=True, **options)
    try:
      return arrow_csv.open_csv(self._path, headless, convert_options=convert)
    except (pyarrow.ArrowException, OSError) as error:
      raise errors.UserError(
        f"{self._path} is not a CSV file: {errors.one_line(error)}"
      ) from None

  def columns(self, name: str) -> Iterator[list[Any]]:
    """The values of a column, part by part."""
    # As strings: a column of paths may begin with a million numbers.
    kinds = {name: pyarrow.string()}
    with self._opened(include_columns=[name], column_types=kinds) as reader:
      try:
        for batch in reader:
          yield batch.column(0).to_pylist()
      except pyarrow.ArrowException as error:
        raise errors.UserError(
          f"{self._path} is damaged: {errors.one_line(error)}"
        ) from None


def _chosen(path, schema, texts, column):
  """The name of the column of paths."""
  columns = ", ".join(f"{each.name} ({each.type})" for each in schema)
  if column and column not in texts:
    raise errors.UserError(
      f"{path} has no column {column!r} of strings, only {columns}"
    )
  named = [name for key in _PATHS for name in texts if name.lower() == key]
  if not named and not texts:
    raise errors.UserError(
      f"{path} has no column of strings for the paths, only {columns}"
    )
  return column or (named or texts)[0]


def _is_text(kind):
  if types.is_dictionary(kind):
    kind = kind.value_type
  return (
    types.is_string(kind)
    or types.is_large_string(kind)
    or types.is_string_view(kind)
  )
