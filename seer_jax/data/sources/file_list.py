"""The images that a file lists, up to billions of them."""

import logging
import os
import shutil
from typing import Any

import numpy as np

from seer_jax.data.sources import array_record, tables
from seer_jax.data.storage import (
  filesystem,
  index_cache,
  label_index,
  line_index,
)
from seer_jax.data.storage.example import UNLABELLED, Example, check_index
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# Changes with the format of the copies.
_VERSION = 2


class Listing:
  """The images whose paths a file lists, in its order.

  The list, and an index of it, stay on disk: memory does not grow with the
  number of entries. It is one of

  * text: a path per line, or a path, a tab and a label; blank lines, comments
    (#), a byte-order mark and a line of column names are skipped, and counted
    in the log;
  * `.npy`: an array of strings, like VISSL's `disk_filelist`;
  * `.parquet` or `.csv`: a column named path, image, file or url, in any case,
    or else the first column of strings; and one named label or class, if there
    is one.

  Paths are absolute, URLs, or relative to the folder of the list. Labels that
  are not whole numbers are names, numbered in sorted order. The id of an image
  is its entry, unchanged. Raises UserError if the list is missing, empty or
  malformed.
  """

  names_are_known = True
  entries_are_paths = True  # They may be outside the root.

  def __init__(self, path: str, label_file: str = "", column: str = ""):
    """Opens a list at a path or URL.

    `label_file` is an `.npy` file with one label per entry, numbers or strings,
    '' for those in the list itself; `column` is that of the paths in a table,
    '' to go by the names.
    """
    if not path:
      raise errors.UserError("no list given: path is ''; set it to a file")
    self._name = filesystem.absolute(path)
    self.root = os.path.dirname(self._name)
    local = local_copy(self._name)
    self.fingerprint = filesystem.fingerprint(local)
    is_table = local.endswith((".parquet", ".csv"))
    if column and not is_table:
      raise errors.UserError(
        f"column is {column!r}, but {path} has no columns; remove it, or give a"
        " Parquet or CSV file"
      )
    if local.endswith(".npy"):
      self._entries, self._labels = _Strings(local), None
    elif is_table:
      self._entries, self._labels = _of_table(local, column)
    else:
      text = self._entries = _BeforeTabs(local, forgiving=True)
      self._labels = label_index.Labels(
        local, lambda: label_index.after_tabs(text)
      )
      _tell(text)
    if label_file:
      path = local_copy(filesystem.absolute(label_file))
      array = _memory_mapped(path)
      if len(array) != len(self):
        raise errors.UserError(
          f"{path} has {len(array)} labels, but the list has {len(self)}"
          " images; give one per image"
        )
      self._labels = label_index.Labels(
        path, lambda: label_index.of_array(array)
      )
      inner = self.fingerprint, filesystem.fingerprint(path)
      self.fingerprint = files.fingerprint(inner)
    self.label_names = self._labels.names if self._labels else ()

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Example:
    image = filesystem.read(self.path_of(i))
    return Example(image=image, label=self.label_of(i), id=self.id_of(i))

  def id_of(self, i: int) -> str:
    check_index(i, len(self))
    return os.fsdecode(self._entries[i])

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    return self._labels[i] if self._labels else UNLABELLED

  def path_of(self, i: int) -> str:
    name = self.id_of(i)
    return name if filesystem.is_url(name) else os.path.join(self.root, name)

  def row_of(self, i: int, table: str) -> int | None:
    check_index(i, len(self))
    return i if filesystem.absolute(table) == self._name else None

  def __repr__(self) -> str:
    return f"Listing({self._name!r}, {len(self)} images)"


class _Strings:
  """An array of strings on disk."""

  def __init__(self, path: str):
    self._path = path
    self._open()

  def _open(self):
    self._array = _memory_mapped(self._path)
    if self._array.dtype.kind not in "SU":
      raise errors.UserError(
        f"{self._path} has {self._array.dtype}, not strings; save an array of"
        " paths"
      )

  def __len__(self) -> int:
    return len(self._array)

  def __getitem__(self, i: int) -> bytes:
    return os.fsencode(self._array[i].item())

  def __getstate__(self):
    return {"_path": self._path}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


class _BeforeTabs(line_index.Lines):
  """The entries of a text, without their labels."""

  def __getitem__(self, i: int) -> bytes:
    return super().__getitem__(i).partition(b"\t")[0]


class _Escaped(line_index.Lines):
  """The entries of a text that was written from a table."""

  def __getitem__(self, i: int) -> bytes:
    return os.fsencode(array_record.unescaped(super().__getitem__(i)))


def _tell(text):
  if text.skipped:
    words = (f"{n:,} {what}" for what, n in text.skipped.items())
    _log.warning(
      "%s: %s entries; skipped %s (an entry that begins with # is ./#...)",
      text.path,
      f"{len(text):,}",
      ", ".join(words),
    )


def _memory_mapped(path) -> np.ndarray[Any, Any]:
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # Its header is a Python literal.
    raise errors.UserError(
      f"{path} cannot be read as an array ({errors.one_line(error)}); save"
      " strings or numbers, not objects: np.save(path, np.array(paths))"
    ) from None
  if array.ndim != 1 or not len(array):
    raise errors.UserError(
      f"{path} has the shape {array.shape}; give one entry per image"
    )
  filesystem.read_at_random(array)
  return array


def local_copy(path: str) -> str:
  """The local path of a list; for a URL, a copy in the user's cache.

  Raises UserError if it cannot be read.
  """
  with errors.reading(f"the list {path}"):
    if not filesystem.is_url(path):
      if os.path.isdir(path):
        raise errors.UserError(
          f"{path} is a folder, not a list of images; give a file, or set kind"
          " to folder"
        )
      filesystem.size(path)
      return path
    kept = files.cached("lists", filesystem.stamp(path))
    copy = kept / os.path.basename(path)
    index_cache.open_index(
      kept, lambda folder: _copy(path, folder / copy.name), lambda: None
    )
    return os.fspath(copy)


def _copy(path, out):
  with filesystem.open_file(path) as source, out.open("wb") as file:
    shutil.copyfileobj(source, file, 2**24)


def _of_table(
  path: str, column: str
) -> tuple[_Escaped, label_index.Labels | None]:
  """Entries and labels; the entries as text in the user's cache."""
  table = tables.Table(path, column)
  kept = files.cached("lists", _VERSION, filesystem.stamp(path), column)
  entries = index_cache.open_index(
    kept,
    lambda folder: table.write_paths(folder / "list.txt"),
    lambda: _Escaped(os.fspath(kept / "list.txt")),
  )
  named = label_index.Labels(path, table.labels) if table.has_labels else None
  return entries, named
