"""The images in a folder."""

import collections
import os
from collections.abc import Iterator

import numpy as np

from seer_jax.data.storage import filesystem
from seer_jax.data.storage.example import (
  EXTENSIONS,
  UNLABELLED,
  Example,
  check_index,
)
from seer_jax.runtime import errors, files

# Folders of thumbnails, deleted files and attributes, made by storage systems.
_NOT_THE_USERS = b"@eaDir", b"__MACOSX", b"#recycle", b"$RECYCLE.BIN"


class Folder:
  """The image files under a folder, at any depth, sorted by relative path.

  The folder may be a URL (`gs://`, `s3://`) that fsspec can read. Files are
  recognized by extension (`EXTENSIONS`, in either case); hidden files and
  folders, and those made by storage systems, are skipped; links to folders are
  followed. The label is the first-level sub-folder that an image is in,
  numbered by sorted name; images directly in `path` have none. The id is the
  relative path, with `/`.

  Reading a file that is gone or locked raises OSError; an empty one gives b"".
  Raises UserError if `path` is missing, not a folder, unreadable or without
  images.
  """

  names_are_known = True

  def __init__(self, path: str | os.PathLike[str]):
    self.root = filesystem.absolute(os.fspath(path))
    paths, others = _find_images(self.root)
    # Photographs in unknown formats must not be skipped silently.
    self._others = f"; {_count_files(others)}" if others else ""

    # One blob and two arrays: a million str objects would take each worker
    # seconds of unpickling and some 100 MB.
    self._paths = b"".join(paths)
    self._offsets = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    folders = [path.rpartition(b"/")[0].partition(b"/")[0] for path in paths]
    names = sorted(set(folders) - {b""})
    label_of = {b"": UNLABELLED} | {name: i for i, name in enumerate(names)}
    self._labels = np.array([label_of[name] for name in folders], np.int32)
    self.label_names = tuple(map(os.fsdecode, names))
    self.fingerprint = files.fingerprint(b"\0".join(paths))

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, i: int) -> Example:
    image = filesystem.read(self.path_of(i))
    return Example(image=image, label=self.label_of(i), id=self.id_of(i))

  def id_of(self, i: int) -> str:
    return os.fsdecode(self._relative(i))

  def label_of(self, i: int) -> int:
    return int(self._labels[i])

  def path_of(self, i: int) -> str:
    return f"{self.root}/{self.id_of(i)}"

  def _relative(self, i):
    check_index(i, len(self))
    return self._paths[self._offsets[i] : self._offsets[i + 1]]

  def __repr__(self) -> str:
    return f"Folder({self.root!r}, {len(self)} images{self._others})"


def _find_images(root: str) -> tuple[list[bytes], collections.Counter[str]]:
  """Relative paths of the images under `root`, sorted, and what else is there.

  Raises UserError if there are no images.
  """
  found = _walk_url(root) if filesystem.is_url(root) else _walk_folder(root)
  images = []
  others = collections.Counter()
  for path in found:
    extension = os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")
    if extension in EXTENSIONS:
      images.append(path)
    else:
      others[extension] += 1
  if not images:
    raise errors.UserError(
      f"no images in {root}: found {_count_files(others)}; recognized"
      f" extensions are {' '.join(EXTENSIONS)}"
    )
  # The order of a directory is arbitrary. Bytes sort alike in all locales.
  return sorted(images), others


def _walk_url(root: str) -> Iterator[bytes]:
  """Like `_walk`, where folders are only prefixes of names."""
  with errors.reading(root), filesystem.plain_errors(root):
    remote = filesystem.system(root)
    found = remote.find(root)
    above = len(remote._strip_protocol(root)) + 1
  for path in found:
    relative = path[above:]
    if not any(_is_hidden(os.fsencode(p)) for p in relative.split("/")):
      yield os.fsencode(relative)


def _walk_folder(root: str) -> Iterator[bytes]:
  if not os.path.exists(root):
    raise errors.UserError(
      f"no such folder: {root}; give the path of a folder of images"
    )
  if not os.path.isdir(root):
    raise errors.UserError(
      f"{root} is a file, not a folder; give the folder that it is in"
    )
  return _walk(os.fsencode(root), b"", ())


def _walk(
  root: bytes, folder: bytes, parents: tuple[tuple[int, int], ...]
) -> Iterator[bytes]:
  """Relative paths of the files that are not hidden, in no order."""
  path = os.path.join(root, folder)
  with errors.reading(f"folder {os.fsdecode(path)}"):
    status = os.stat(path)
    entries = list(os.scandir(path))
  # A link may lead back to a folder above; otherwise, a folder under two names
  # is what the user asked for.
  identity = (status.st_dev, status.st_ino)
  if identity in parents:
    return
  for entry in entries:
    if _is_hidden(entry.name):
      continue
    relative = folder + entry.name
    if _is_folder(entry):
      yield from _walk(root, relative + b"/", (*parents, identity))
    else:
      yield relative


def _is_hidden(name: bytes) -> bool:
  return name.startswith(b".") or name in _NOT_THE_USERS


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself; reading it as a file reports that.
    return False


def _count_files(counts: collections.Counter[str]) -> str:
  """`{"txt": 3, "": 1}` -> '4 other files (3 txt, 1 without extension)'."""
  if not counts:
    return "no files at all"
  shown = [
    f"{count} {extension or 'without extension'}"
    for extension, count in counts.most_common(5)
  ]
  more = ["..."] if len(counts) > len(shown) else []
  return f"{counts.total()} other files ({', '.join(shown + more)})"
