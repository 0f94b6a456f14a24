"""A text file of any length, by the number of a line."""

import mmap
import os
import pathlib

import numpy as np

from seer_jax.data.storage import files, index_cache
from seer_jax.runtime import errors

# The place of one line in so many is kept: of a billion lines, 125 MB on disk.
_STRIDE = 64
_CHUNK = 64 * 2**20
# Changes when an index of before is of no use any more.
_VERSION = 2


class Lines:
  """The lines of a file on this machine, without reading it into memory.

  On the first opening the file is read once through, a gigabyte in about a
  second, and the places of some lines are kept in the user's cache. Empty lines
  at the end do not count.

  Attributes:
    path: of the file.
    has_tabs: whether there is a tab anywhere in it.

  Raises:
    UserError: there is no line in it, or it is no text.
  """

  def __init__(self, path: str):
    self.path = path
    self._kept = files.kept("lines", _VERSION, files.stamp(path))
    index_cache.open_index(
      self._kept, lambda folder: _index(path, folder), self._open
    )

  def _open(self):
    self._places = np.load(self._kept / "places.npy", mmap_mode="r")
    self._count, tabs = np.load(self._kept / "count.npy").tolist()
    self.has_tabs = bool(tabs)
    with open(self.path, "rb") as file:
      self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, i: int) -> bytes:
    """Line `i`, without its end."""
    block, more = divmod(i, _STRIDE)
    start = int(self._places[block])
    for _ in range(more):
      start = self._text.find(b"\n", start) + 1
    end = self._text.find(b"\n", start)
    line = self._text[start : end if end >= 0 else len(self._text)]
    return line.removesuffix(b"\r")

  def __getstate__(self):
    return {"path": self.path, "_kept": self._kept}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


def _index(path: str, folder: pathlib.Path) -> None:
  """Finds the places of lines; into two files of `folder`."""
  end = _end(path)
  if not end:
    raise errors.UserError(f"{path} is empty; give a list with a line for each")
  count, tabs = 1, False  # Lines begun so far.
  with open(path, "rb") as file, (folder / "places").open("wb") as out:
    out.write(np.int64(0).tobytes())
    at = 0
    while at < end:
      data = file.read(min(_CHUNK, end - at))
      if b"\0" in data:
        raise errors.UserError(
          f"{path} is no text: it holds a byte of 0; give a text with a path a"
          " line, or its real ending (.npy, .parquet)"
        )
      tabs = tabs or b"\t" in data
      chunk = np.frombuffer(data, np.uint8)
      begun = np.flatnonzero(chunk == ord("\n")) + 1 + at
      # Of those with the numbers count, count + 1, ...
      out.write(begun[-count % _STRIDE :: _STRIDE].astype(np.int64).tobytes())
      count += len(begun)
      at += len(chunk)
  raw = np.memmap(folder / "places", np.int64, "r")
  np.save(folder / "places.npy", raw)
  (folder / "places").unlink()
  np.save(folder / "count.npy", np.array([count, tabs], np.int64))


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
