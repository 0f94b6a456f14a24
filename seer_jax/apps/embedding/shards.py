"""The Parquet files of embeddings, readable by any tool, and their reports.

Columns: `id`, `path`, `label`, `embedding` (a list of fixed size), `index` in
the source, `height`, `width`, `bytes`, `sha256` of the file, `phash`, and the
nearest `prototype` where the network has prototypes.
"""

import contextlib
import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from seer_jax.runtime import errors

# Key of the schema's metadata.
_REPORT = b"seer_jax"


def schema(width: int, dtype: str) -> pa.Schema:
  """The columns of a shard; `width` is the length of an embedding."""
  number = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
  return pa.schema(
    [
      ("id", pa.string()),
      ("path", pa.string()),
      ("label", pa.string()),
      ("embedding", pa.list_(number, width)),
      ("index", pa.int64()),
      ("height", pa.int32()),
      ("width", pa.int32()),
      ("bytes", pa.int64()),
      ("sha256", pa.string()),
      ("phash", pa.string()),
      ("prototype", pa.int32()),
    ]
  )


def write(
  file: IO[bytes],
  rows: Sequence[Mapping[str, Any]],
  width: int,
  dtype: str,
  report: Mapping[str, Any],
) -> None:
  """Writes a shard, with a report as JSON in its footer."""
  fields = schema(width, dtype).with_metadata({_REPORT: json.dumps(report)})
  columns = []
  for field in fields:
    if field.name == "embedding":
      x = np.array([row["embedding"] for row in rows], dtype).reshape(-1)
      column = pa.FixedSizeListArray.from_arrays(pa.array(x), type=field.type)
    else:
      values = [_plain(row.get(field.name)) for row in rows]
      column = pa.array(values, field.type)
    columns.append(column)
  parquet.write_table(
    pa.Table.from_arrays(columns, schema=fields),
    file,
    # Dictionaries and statistics of embeddings would be of no use.
    use_dictionary=["label"],
    write_statistics=["id", "index"],
    compression="snappy",
  )


def as_csv(rows: Sequence[dict[str, object]]) -> str:
  """Rows with the same keys as CSV, with a header."""
  text = io.StringIO()
  if rows:
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  return text.getvalue()


def _plain(value):
  # Names of files need not be text; Parquet's strings are.
  if isinstance(value, str):
    return os.fsencode(value).decode(errors="backslashreplace")
  return value


def report_of(path: pathlib.Path) -> dict[str, Any]:
  """The report of a shard. Raises UserError if the file is not a shard."""
  metadata = opened(path).schema_arrow.metadata or {}
  if _REPORT not in metadata:
    raise errors.UserError(
      f"{path} was not written by seer-jax embed; remove it"
    )
  return json.loads(metadata[_REPORT])


def opened(path: pathlib.Path) -> parquet.ParquetFile:
  """Opens a shard. Raises UserError if it is damaged or missing."""
  with damage(path):
    return parquet.ParquetFile(path)


def width_of(path: pathlib.Path) -> int:
  """The length of an embedding."""
  return opened(path).schema_arrow.field("embedding").type.list_size


@contextlib.contextmanager
def damage(path: pathlib.Path) -> Iterator[None]:
  """Turns errors of reading a shard into UserError."""
  try:
    yield
  except (pa.ArrowException, OSError) as error:
    raise errors.UserError(
      f"{path} cannot be read ({errors.one_line(error)}); remove it, and"
      " run the same seer-jax embed again"
    ) from error
