"""A text file of any length, by the number of a line."""

import collections
import itertools
import mmap
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from seer_jax.data.storage import filesystem, index_cache
from seer_jax.runtime import errors, files

# The place of one line in so many is kept: of a billion lines, 125 MB on disk.
_STRIDE = 64
_CHUNK = 64 * 2**20
# Changes when an index of before is of no use any more.
_VERSION = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a line begins with that is no entry of a list; and such lines by name.
_NO_ENTRY = b"\r\n#"
_REASONS = ("blank lines", "comments", "header")
# What a column of paths is called, in any case, and the first line of a text.
PATH_COLUMNS = (
  *("path", "image", "file", "url"),
  *("filename", "file_name", "image_path"),
)


class Lines:
  """The lines of a file on this machine, without reading it into memory.

  On the first opening the file is read once through, a gigabyte in about a
  second, and the places of some lines are kept in the user's cache. Empty lines
  at the end do not count.

  Attributes:
    path: of the file.
    has_tabs: whether there is a tab anywhere in it.
    skipped: how many lines are left out, by what they are.
  """

  def __init__(self, path: str, forgiving: bool = False):
    """Opens it.

    Raises UserError if there is no line in it, or it is no text.

    Args:
      forgiving: leaves out what people and spreadsheets put into a list: a
        byte-order mark, a first line that names columns, blank lines, and
        comments, which begin with #.
    """
    self.path, self._forgiving = path, forgiving
    self._kept = files.cached(
      "lines", _VERSION, filesystem.stamp(path), forgiving
    )
    index_cache.open_index(
      self._kept, lambda folder: _index(path, forgiving, folder), self._open
    )

  def _open(self):
    self._places = np.load(self._kept / "places.npy", mmap_mode="r")
    filesystem.read_at_random(self._places)
    self._count, tabs, *skipped = np.load(self._kept / "count.npy").tolist()
    self.has_tabs = bool(tabs)
    self.skipped = +collections.Counter(
      dict(zip(_REASONS, skipped, strict=True))
    )
    with open(self.path, "rb") as file:
      self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    filesystem.read_at_random(self._text)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, i: int) -> bytes:
    """Line `i`, without its end."""
    block, more = divmod(i, _STRIDE)
    start = int(self._places[block])
    for _ in range(more):
      start = self._next(start)
    end = self._text.find(b"\n", start)
    line = self._text[start : end if end >= 0 else len(self._text)]
    return line.removesuffix(b"\r")

  def _next(self, start):
    """Where the line after the one at `start` begins."""
    start = self._text.find(b"\n", start) + 1
    while self._forgiving and self._text[start] in _NO_ENTRY:
      start = self._text.find(b"\n", start) + 1
    return start

  def in_order(self) -> Iterator[bytes]:
    """All lines, with their ends, as they are, read once through."""
    with open(self.path, "rb") as file:
      file.seek(int(self._places[0]))
      lines = iter(file)
      if self._forgiving:
        lines = (line for line in file if line[0] not in _NO_ENTRY)
      yield from itertools.islice(lines, len(self))

  def __getstate__(self):
    return {
      "path": self.path,
      "_forgiving": self._forgiving,
      "_kept": self._kept,
    }

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


def _index(path: str, forgiving: bool, folder: pathlib.Path) -> None:
  """Finds the places of lines; into two files of `folder`."""
  start, end = 0, _end(path)
  blank, comments, header = 0, 0, 0
  if forgiving:
    start, header = _first(path)
  count, tabs = 0, False  # Of entries so far.
  with open(path, "rb") as file, (folder / "places").open("wb") as out:
    file.seek(start)
    at, new = start, True
    while at < end:
      data = file.read(min(_CHUNK, end - at))
      if b"\0" in data:
        raise errors.UserError(
          f"{path} is no text: it holds a byte of 0; give a text with a path a"
          " line, or its real ending (.npy, .parquet)"
        )
      tabs = tabs or b"\t" in data
      chunk = np.frombuffer(data, np.uint8)
      begun = np.flatnonzero(chunk[:-1] == ord("\n")) + 1
      if new:  # At the end of the chunk before.
        begun = np.concatenate(([0], begun))
      new = data.endswith(b"\n")
      if forgiving:
        first = chunk[begun]
        is_comment = first == ord("#")
        is_blank = (first == ord("\n")) | (first == ord("\r"))
        comments += int(is_comment.sum())
        blank += int(is_blank.sum())
        begun = begun[~(is_comment | is_blank)]
      # Of those with the numbers count, count + 1, ...
      kept = begun[-count % _STRIDE :: _STRIDE] + at
      out.write(kept.astype(np.int64).tobytes())
      count += len(begun)
      at += len(chunk)
  if not count:
    raise errors.UserError(f"{path} is empty; give a list with a line for each")
  raw = np.memmap(folder / "places", np.int64, "r")
  np.save(folder / "places.npy", raw)
  (folder / "places").unlink()
  about = [count, tabs, blank, comments, header]
  np.save(folder / "count.npy", np.array(about, np.int64))


def _first(path):
  """(where the entries begin, whether a header stands before them)."""
  with open(path, "rb") as file:
    start = 0
    if file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK:
      start = len(_BYTE_ORDER_MARK)
    file.seek(start)
    line = file.readline(1024)
  first = line.split(b"\t")[0].strip().lower()
  is_header = first.decode("latin-1") in PATH_COLUMNS
  return (start + len(line), 1) if is_header else (start, 0)


def _end(path):
  """Where the last line ends that is not empty."""
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    while size:
      start = max(0, size - 4096)
      kept = len(os.pread(file.fileno(), size - start, start).rstrip(b"\r\n"))
      size = start + kept
      if kept:
        break
  return size
