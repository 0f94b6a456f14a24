"""Random access to the lines of a text file of any length.

pyarrow reads a text as a whole: a list of 10 million paths (450 MB) kept 480 MB
of memory and took 1.1 GB to read, where this keeps 1.3 MB of offsets on disk.
"""

import collections
import itertools
import mmap
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from seer_jax.data.storage import filesystem, index_cache
from seer_jax.runtime import errors, files

# The offset of every 64th line is kept: 125 MB on disk for a billion lines.
_STRIDE = 64
_CHUNK = 64 * 2**20
# Changes with the format of the index.
_VERSION = 4
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# First characters of lines that are not entries, and what these lines are.
_NO_ENTRY = b"\r\n#"
_REASONS = ("blank lines", "comments", "header")
# Names, in any case, of a column of paths, or of the first line of a text.
PATH_COLUMNS = (
  *("path", "image", "file", "url"),
  *("filename", "file_name", "image_path"),
)


class Lines:
  """The lines of a local file, without reading it into memory.

  At the first opening the file is read through once, a gigabyte in about a
  second, and the offsets of some lines are kept in the user's cache. Empty
  lines at the end do not count.

  Attributes:
    path: of the file.
    has_tabs: whether it has any tab.
    skipped: how many lines are skipped, by what they are.
  """

  def __init__(self, path: str, forgiving: bool = False):
    """Opens it.

    A `forgiving` one skips what people and spreadsheets put into lists: a
    byte-order mark, a first line of column names, blank lines, and comments,
    which begin with #. Raises UserError if the file has no lines, or is not a
    text.
    """
    self.path, self._forgiving = path, forgiving
    self._kept = files.cached(
      "lines", _VERSION, filesystem.stamp(path), forgiving
    )
    index_cache.open_index(
      self._kept, lambda folder: _index(path, forgiving, folder), self._open
    )

  def _open(self):
    self._offsets = np.load(self._kept / "offsets.npy", mmap_mode="r")
    filesystem.read_at_random(self._offsets)
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
    """Line `i`, without its line break."""
    block, more = divmod(i, _STRIDE)
    start = int(self._offsets[block])
    for _ in range(more):
      start = self._next(start)
    end = self._text.find(b"\n", start)
    line = self._text[start : end if end >= 0 else len(self._text)]
    return line.removesuffix(b"\r")

  def _next(self, start):
    """The offset of the line after the one at `start`."""
    start = self._text.find(b"\n", start) + 1
    while self._forgiving and self._text[start] in _NO_ENTRY:
      start = self._text.find(b"\n", start) + 1
    return start

  def in_order(self) -> Iterator[bytes]:
    """All lines as they are, with line breaks, read in one pass."""
    with open(self.path, "rb") as file:
      file.seek(int(self._offsets[0]))
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
  """Writes the offsets of lines into two files of `folder`."""
  start, end = 0, _end(path)
  blank, comments, header = 0, 0, 0
  if forgiving:
    start, header = _first(path)
  count, tabs = 0, False  # Of entries so far.
  with open(path, "rb") as file, (folder / "offsets").open("wb") as out:
    file.seek(start)
    at, new = start, True
    while at < end:
      data = file.read(min(_CHUNK, end - at))
      if b"\0" in data:
        raise errors.UserError(
          f"{path} is not text: it has a zero byte; give a text with a path per"
          " line, or a file of another kind with its suffix (.npy, .parquet)"
        )
      tabs = tabs or b"\t" in data
      chunk = np.frombuffer(data, np.uint8)
      begun = np.flatnonzero(chunk[:-1] == ord("\n")) + 1
      if new:  # A line begins with the chunk.
        begun = np.concatenate(([0], begun))
      new = data.endswith(b"\n")
      if forgiving:
        first = chunk[begun]
        is_comment = first == ord("#")
        is_blank = (first == ord("\n")) | (first == ord("\r"))
        comments += int(is_comment.sum())
        blank += int(is_blank.sum())
        begun = begun[~(is_comment | is_blank)]
      # These lines have the numbers count, count + 1, ...
      kept = begun[-count % _STRIDE :: _STRIDE] + at
      out.write(kept.astype(np.int64).tobytes())
      count += len(begun)
      at += len(chunk)
  if not count:
    raise errors.UserError(f"{path} is empty; give a list of one path per line")
  raw = np.memmap(folder / "offsets", np.int64, "r")
  np.save(folder / "offsets.npy", raw)
  (folder / "offsets").unlink()
  about = [count, tabs, blank, comments, header]
  np.save(folder / "count.npy", np.array(about, np.int64))


def _first(path):
  """(offset of the first entry, whether there is a header before it)."""
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
  """The end of the last line that is not empty."""
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    while size:
      start = max(0, size - 4096)
      kept = len(os.pread(file.fileno(), size - start, start).rstrip(b"\r\n"))
      size = start + kept
      if kept:
        break
  return size
