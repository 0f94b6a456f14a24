"""Images in tar shards, as WebDataset lays them out."""

import hashlib
import multiprocessing.pool
import os
import posixpath
import tarfile
from collections.abc import Iterator

import numpy as np

from seer_jax import errors
from seer_jax.sources import array_records, files, lines
from seer_jax.sources.source import (
  EXTENSIONS,
  UNLABELLED,
  Example,
  check_index,
)

_THREADS = 8


class Tars:
  """The samples of all shards, in the order of their names.

  Members that share their path up to the first dot of the name are a sample:
  its image has one of `EXTENSIONS` (the first of them, if there are several),
  its label is in `.cls`, as a whole number. The id is the path up to that dot.
  (https://github.com/webdataset/webdataset.)

  Opened for the first time, all headers are read once, and the places of the
  images are kept in the user's cache; after that any image is one read.

  Raises:
    UserError: there are no shards or images; a shard is cut short, compressed,
      or holds a path that leads outside.
  """

  def __init__(self, path: str):
    self._paths = files.matching(path, ".tar")
    try:
      stamps = tuple(map(files.stamp, self._paths))
    except OSError as error:
      raise errors.UserError(
        f"cannot read {error.filename}: {error.strerror}"
      ) from None
    self._kept = files.kept("tars", stamps)
    if not self._kept.exists():
      with files.keep(self._kept) as folder:
        _index(self._paths, folder)
    contents = [(posixpath.basename(stamp[0]), stamp[1]) for stamp in stamps]
    self.fingerprint = hashlib.sha256(repr(contents).encode()).hexdigest()
    self._open()
    names = range(int(np.max(self._places[:, 3], initial=UNLABELLED)) + 1)
    self.label_names = tuple(map(str, names))

  def _open(self):
    self._places = np.load(self._kept / "places.npy", mmap_mode="r")
    self._ids = lines.Lines(os.fspath(self._kept / "ids"))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, i: int) -> Example:
    name = self.id_of(i)
    shard, start, size, label = self._places[i].tolist()
    image = files.read(self._paths[shard], start, size)
    return Example(image=image, label=label, id=name)

  def id_of(self, i: int) -> str:
    check_index(i, len(self))
    return array_records.unescaped(self._ids[i])

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    return int(self._places[i, 3])

  def __getstate__(self):
    return self.__dict__ | {"_places": None, "_ids": None}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self) -> str:
    return f"Tars({len(self._paths)} shards, {len(self)} images)"


def _index(paths, folder):
  """Places (shard, start, size, label) and ids of all images."""
  total = 0
  with (
    (folder / "places").open("wb") as places,
    (folder / "ids").open("wb") as ids,
    multiprocessing.pool.ThreadPool(_THREADS) as threads,
  ):
    for shard, samples in enumerate(threads.imap(_samples_of, paths)):
      for name, start, size, label in samples:
        np.array([shard, start, size, label], np.int64).tofile(places)
        ids.write(array_records.escaped(name) + b"\n")
      total += len(samples)
  if not total:
    raise errors.UserError(
      f"no images in {len(paths)} tar shards, for example {paths[0]};"
      f" recognised extensions are {' '.join(EXTENSIONS)}"
    )
  raw = np.memmap(folder / "places", np.int64, "r").reshape(-1, 4)
  np.save(folder / "places.npy", raw)
  (folder / "places").unlink()


def _samples_of(path: str) -> list[tuple[str, int, int, int]]:
  try:
    with files.open_file(path) as file:
      return list(_samples(path, file))
  except (tarfile.TarError, EOFError) as error:
    raise errors.UserError(
      f"{path} is no whole tar file ({error}); it may have been cut short, or"
      " be compressed, which has no random access: copy or unpack it again"
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"cannot read {path}: {error.strerror or error}"
    ) from None


def _samples(path: str, file) -> Iterator[tuple[str, int, int, int]]:
  """(id, where the image starts, its size, label) of each sample."""
  key, images, label = None, {}, UNLABELLED
  total = files.size(path)
  with tarfile.open(fileobj=file, mode="r:") as tar:
    for member in tar:
      if not member.isreg():
        continue
      _refuse_outside(member.name, path)
      start = member.offset_data
      if start + member.size > total:
        raise tarfile.ReadError(f"{member.name} ends after the file")
      folder, name = posixpath.split(member.name)
      stem, _, extension = name.partition(".")
      if not stem:
        continue  # A hidden file.
      here = posixpath.join(folder, stem)
      if here != key:
        yield from _sample(key, images, label)
        key, images, label = here, {}, UNLABELLED
      extension = extension.lower()
      if extension in EXTENSIONS:
        images[extension] = start, member.size
      elif extension == "cls":
        label = _label(tar.extractfile(member).read(32))
    if tar.offset and not _ends(path, tar.offset, total):
      raise tarfile.ReadError("its end is missing")
    yield from _sample(key, images, label)


def _sample(key, images, label):
  if images:
    extension = min(images, key=EXTENSIONS.index)
    yield key, *images[extension], label


def _ends(path, offset, total):
  """Whether the block of zeros that ends an archive is there."""
  return offset < total and not any(files.read(path, offset, 512))


def _label(text: bytes) -> int:
  try:
    return max(int(text), UNLABELLED)
  except ValueError:
    return UNLABELLED


def _refuse_outside(name, path):
  # Nothing is ever unpacked; but who writes such names is up to something.
  if name.startswith("/") or ".." in name.split("/"):
    raise errors.UserError(
      f"{path} holds the path {name!r}, which leads outside; do not trust this"
      " file"
    )
