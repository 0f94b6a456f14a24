"""Images in tar shards, as WebDataset lays them out."""

import collections
import hashlib
import json
import logging
import multiprocessing.pool
import os

import numpy as np

from seer_jax.data.sources import array_record
from seer_jax.data.storage import (
  filesystem,
  index_cache,
  label_index,
  line_index,
  tar_index,
)
from seer_jax.data.storage.example import EXTENSIONS, Example, check_index
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

_THREADS = 8
_AT_ONCE = 2**20
# Changes with the format of the index.
_VERSION = 4


class Tars:
  """The samples of all shards, in the order of the shards' names.

  Members that share their path up to the first dot of the name are a sample:
  its image has one of `EXTENSIONS` (the first of them, if there are several);
  its label is in `.cls`, or else in `.json` (`label`, `class` or `cls`): a
  whole number or, if not all are numbers, a name. The id is the path up to that
  dot (https://github.com/webdataset/webdataset). If there is no image under
  such a name, dots are part of names: the id of `shot 2021.01.png` is `shot
  2021.01`. A sample that occurs twice stays there twice.

  At the first opening all headers are read once, and the offsets of the images
  are kept in the user's cache; after that each image is one read. Raises
  UserError if there are no shards or images, or a shard is cut short,
  compressed, or has a path that leads outside.
  """

  names_are_known = True

  def __init__(self, path: str):
    self._paths = filesystem.matching(path, ".tar")
    with errors.reading(f"the shards of {path}"):
      stamps = tuple(map(filesystem.stamp, self._paths))
    self._kept = files.cached("tars", _VERSION, stamps)
    index_cache.open_index(
      self._kept, lambda folder: _index(self._paths, folder), self._open
    )
    about = json.loads((self._kept / "about.json").read_text())
    self.fingerprint = about["fingerprint"]
    self.label_names = tuple(about["label_names"])

  def _open(self):
    self._entries = np.load(self._kept / "entries.npy", mmap_mode="r")
    filesystem.read_at_random(self._entries)
    self._paths_inside = line_index.Lines(os.fspath(self._kept / "paths"))

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i: int) -> Example:
    name = self.id_of(i)
    shard, start, size, label, _ = self._entries[i].tolist()
    image = filesystem.read(self._paths[shard], start, size)
    return Example(image=image, label=label, id=name)

  def id_of(self, i: int) -> str:
    return self._path_inside(i)[: self._entries[i, 4]]

  def other_names_of(self, i: int) -> tuple[str, ...]:
    return (self._path_inside(i),)

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    return int(self._entries[i, 3])

  def _path_inside(self, i):
    check_index(i, len(self))
    return array_record.unescaped(self._paths_inside[i])

  def __getstate__(self):
    return self.__dict__ | {"_entries": None, "_paths_inside": None}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self) -> str:
    return f"Tars({len(self._paths)} shards, {len(self)} images)"


def _index(paths, folder):
  """Writes offsets (shard, start, size, label, length of the id) and paths."""
  digest, total = hashlib.sha256(), 0
  labels = {}  # In the order in which they are met.
  passed_over = collections.Counter()
  with (
    (folder / "entries").open("wb") as entries,
    (folder / "paths").open("wb") as names,
    multiprocessing.pool.ThreadPool(_THREADS) as threads,
  ):
    for shard, found in enumerate(threads.imap(tar_index.read, paths)):
      for image in found.images:
        label = labels.setdefault(image.label, len(labels))
        entry = image.start, image.size, label, image.id_length
        name = array_record.escaped(image.path) + b"\n"
        np.array([shard, *entry], np.int64).tofile(entries)
        names.write(name)
        digest.update(repr((shard, *entry)).encode() + name)
      total += len(found.images)
      passed_over.update(found.passed_over)
  if not total:
    raise errors.UserError(
      f"no images in {len(paths)} tar shards, for example {paths[0]};"
      f" recognized extensions are {' '.join(EXTENSIONS)}"
    )
  _tell(paths, total, passed_over)
  label_names, number_of = label_index.numbering(labels, paths[0])
  digest.update(repr(list(labels)).encode())
  about = {"fingerprint": digest.hexdigest(), "label_names": label_names}
  (folder / "about.json").write_text(json.dumps(about))
  raw = np.memmap(folder / "entries", np.int64, "r+").reshape(-1, 5)
  numbers = np.array([number_of[label] for label in labels])
  for first in range(0, len(raw), _AT_ONCE):
    part = raw[first : first + _AT_ONCE, 3]
    part[:] = numbers[part]
  np.save(folder / "entries.npy", raw)
  (folder / "entries").unlink()


def _tell(paths, total, passed_over):
  passed_over = +passed_over  # Without counts of 0.
  if passed_over:
    reasons = (f"{n:,} {why}" for why, n in passed_over.most_common())
    _log.warning(
      "%d tar shards, for example %s: %s images; other members: %s",
      len(paths),
      paths[0],
      f"{total:,}",
      ", ".join(reasons),
    )
