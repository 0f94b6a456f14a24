"""The images that a file lists, up to billions of them."""

import hashlib
import itertools
import os
import shutil
from typing import Any

import numpy as np

from seer_jax import errors
from seer_jax.sources import files, lines
from seer_jax.sources.source import UNLABELLED, Example, check_index

_PATHS, _LABELS = ("path", "image", "file", "url"), ("label", "class")


class Listing:
  """The images whose paths a file lists, in its order.

  The list, and an index of it, stay on the disk: memory does not grow with the
  number of entries. It is one of

  * text: a path a line, or a path, a tab and a label;
  * `.npy`: an array of strings, as VISSL's `disk_filelist` takes;
  * `.parquet`: a column named path, image, file or url, or else the first of
    strings; and one named label or class, if there is one.

  Paths are absolute, URLs, or relative to the folder of the list. Labels that
  are not whole numbers are names, numbered in sorted order. The id of an image
  is its entry as it stands.

  Raises:
    UserError: the list is missing, empty or of another format.
  """

  entries_are_paths = True  # They may lie outside of the root.

  def __init__(self, path: str, labels: str = ""):
    """Opens a list.

    Args:
      path: of the list; may be a URL.
      labels: an `.npy` file of one label an entry, numbers or strings; '' for
        those in the list itself.
    """
    if not path:
      raise errors.UserError("no list given: path is ''; set it to a file")
    self._name = files.absolute(path)
    self.root = os.path.dirname(self._name)
    local = _local(self._name)
    self.fingerprint = files.fingerprint(local)
    if local.endswith(".npy"):
      self._entries, self._labels = _Strings(local), None
    else:
      if local.endswith(".parquet"):
        local = _as_text(local)
      self._entries = lines.Lines(local)
      self._labels = _Tabbed(self._entries)
    if labels:
      path = _local(files.absolute(labels))
      self._labels = _Array(path, len(self))
      inner = self.fingerprint, files.fingerprint(path)
      self.fingerprint = hashlib.sha256(repr(inner).encode()).hexdigest()
    self.label_names = self._labels.names if self._labels else ()

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Example:
    name = self.id_of(i)
    path = name if files.is_url(name) else os.path.join(self.root, name)
    return Example(image=files.read(path), label=self.label_of(i), id=name)

  def id_of(self, i: int) -> str:
    check_index(i, len(self))
    return os.fsdecode(self._entries[i].partition(b"\t")[0])

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    return self._labels[i] if self.label_names else UNLABELLED

  def __repr__(self) -> str:
    return f"Listing({self._name!r}, {len(self)} images)"


class _Strings:
  """An array of strings on the disk."""

  def __init__(self, path: str):
    self._path = path
    self._open()

  def _open(self):
    self._array = _memory_mapped(self._path)
    if self._array.dtype.kind not in "SU":
      raise errors.UserError(
        f"{self._path} holds {self._array.dtype}, not strings; save an array of"
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


class _Array:
  """Labels in an array on the disk."""

  def __init__(self, path: str, size: int):
    array = _memory_mapped(path)
    if len(array) != size:
      raise errors.UserError(
        f"{path} holds {len(array)} labels for a list of {size} images"
      )
    self._kept = files.kept("labels", files.stamp(path))
    if not self._kept.exists():
      with files.keep(self._kept) as folder:
        _number(lambda: _parts(array), folder)
    self._open()

  def _open(self):
    names = (self._kept / "names").read_bytes()
    self.names = tuple(map(os.fsdecode, names.split(b"\0"))) if names else ()
    if names:  # An empty file cannot be mapped.
      self._numbers = np.memmap(self._kept / "numbers", np.int32, "r")

  def __getitem__(self, i: int) -> int:
    return int(self._numbers[i])

  def __getstate__(self):
    return {"_kept": self._kept}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


class _Tabbed(_Array):
  """Labels after the tabs of a text; read once through, and kept."""

  def __init__(self, text: lines.Lines):
    self._kept = files.kept("labels", files.stamp(text.path))
    if not self._kept.exists():
      with files.keep(self._kept) as folder:
        _number(lambda: _after_tabs(text), folder)
    self._open()


def _parts(array, size=2**20):
  """Lists of bytes or whole numbers."""
  if array.dtype.kind not in "SUiu":
    raise errors.UserError(
      f"labels are {array.dtype}; use whole numbers or strings"
    )
  for start in range(0, len(array), size):
    part = array[start : start + size].tolist()
    yield list(map(os.fsencode, part)) if array.dtype.kind == "U" else part


def _after_tabs(text):
  """Lists of bytes; none where the first line has no label."""
  if b"\t" not in text[0]:
    return
  with open(text.path, "rb") as file:
    rest = itertools.islice(file, len(text))
    for part in iter(lambda: list(itertools.islice(rest, 2**20)), []):
      yield [line.partition(b"\t")[2].strip() for line in part]


def _number(parts, folder):
  """Numbers and names of labels; whole numbers below 0 and "" are none."""
  seen = set()
  for part in parts():
    seen.update(part)
  seen -= {b""}
  if all(isinstance(label, int) or _is_number(label) for label in seen):
    number_of = {label: max(int(label), UNLABELLED) for label in seen}
    highest = max(number_of.values(), default=UNLABELLED)
    names = [b"%d" % label for label in range(highest + 1)]
  else:
    names = sorted(seen)
    number_of = {label: number for number, label in enumerate(names)}
  number_of[b""] = UNLABELLED
  with (folder / "numbers").open("wb") as file:
    for part in parts():
      np.array([number_of[label] for label in part], np.int32).tofile(file)
  (folder / "names").write_bytes(b"\0".join(names))


def _is_number(word: bytes) -> bool:
  return word.removeprefix(b"-").isdigit()


def _memory_mapped(path) -> np.ndarray[Any, Any]:
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:  # Its header is a piece of Python.
    words = next(iter(str(error).splitlines()), type(error).__name__)
    raise errors.UserError(
      f"{path} cannot be read as an array ({words}); save strings or numbers,"
      " not objects: np.save(path, np.array(paths))"
    ) from None
  if array.ndim != 1 or not len(array):
    raise errors.UserError(
      f"{path} has the shape {array.shape}; give one entry an image"
    )
  return array


def _local(path: str) -> str:
  """A list's path on this machine; of a URL, a copy in the user's cache."""
  try:
    if not files.is_url(path):
      files.size(path)
      return path
    kept = files.kept("lists", files.stamp(path))
    copy = kept / os.path.basename(path)
    if not copy.exists():
      with (
        files.keep(kept) as folder,
        files.open_file(path) as source,
        (folder / copy.name).open("wb") as out,
      ):
        shutil.copyfileobj(source, out, 2**24)
    return os.fspath(copy)
  except OSError as error:
    raise errors.UserError(
      f"cannot read the list {path}: {error.strerror or error}"
    ) from None


def _as_text(path: str) -> str:
  """A Parquet list as text in the user's cache: rows by number are quick."""
  kept = files.kept("lists", files.stamp(path))
  if not kept.exists():
    with files.keep(kept) as folder:
      _write_text(path, folder / "list.txt")
  return os.fspath(kept / "list.txt")


def _write_text(path, out):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise errors.UserError(
      f"reading {path} needs a library; run: pip install pyarrow"
    ) from None
  try:
    table = parquet.ParquetFile(path)
  except (pyarrow.ArrowInvalid, OSError) as error:
    raise errors.UserError(f"{path} is no Parquet file: {error}") from None
  schema = table.schema_arrow
  strings = [each.name for each in schema if pyarrow.types.is_string(each.type)]
  named = [name for name in _PATHS if name in strings] or strings
  if not named:
    raise errors.UserError(
      f"{path} has no column of paths, only {', '.join(schema.names)}; name one"
      " path"
    )
  columns = [named[0], *[name for name in _LABELS if name in schema.names][:1]]
  with out.open("w", encoding="utf-8", newline="\n") as file:
    for batch in table.iter_batches(columns=columns):
      for row in zip(*(each.to_pylist() for each in batch), strict=True):
        words = ("" if value is None else str(value) for value in row)
        file.write("\t".join(words) + "\n")
