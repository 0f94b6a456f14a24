"""Images in ArrayRecord shards, written by `data.pack` or by other programs."""

import collections
import errno
import json
import os
import threading
from typing import Any

import numpy as np

from seer_jax.data.storage import filesystem, line_index, tf_example
from seer_jax.data.storage.example import (
  UNLABELLED,
  Example,
  check_index,
  locate,
)
from seer_jax.runtime import errors, files

ENDING = ".array_record"
# Files that `pack` writes beside its shards.
ABOUT, IDS, LABELS = "images.json", "ids.txt", "labels.npy"
ORIGINALS = "originals.npy"  # SHA-256 of the files that were packed, N x 32.
PLAN = os.path.join("parts", "plan.json")  # Of an unfinished pack.
# Shards open at once: a billion images have more than a process may open.
_OPEN = 64


class ArrayRecords:
  """The records of all shards, in the order of the shards' names.

  A record is an encoded image, or a `tf.train.Example` with one. In a folder
  that `seer-jax pack` wrote, ids and labels are read from files beside the
  shards. Elsewhere an id is the shard's name and the number in it, and
  `label_of` reads the record, whose label counts if `labels` names it. Raises
  UserError if there are no shards, or one is damaged or cut short.

  Args:
    path: a folder, a file, or a pattern.
    labels: a text file with the name of each label, for shards that `seer-jax
      pack` did not write.
  """

  def __init__(self, path: str, labels: str = ""):
    if filesystem.is_url(path):
      raise errors.UserError(
        f"{path} is a URL, but ArrayRecord shards are only read from this"
        " machine's file systems; copy them, mount the bucket, or use tars"
      )
    self._paths = filesystem.matching(path, ENDING)
    folder = os.path.dirname(self._paths[0])
    about = _about(folder)
    if about:
      # By sizes alone: opening a hundred thousand shards takes minutes.
      _compare(about, self._paths)
      shards = [about["shards"][os.path.basename(p)] for p in self._paths]
      counts = [shard["images"] for shard in shards]
    else:
      counts = [_count(each) for each in self._paths]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise errors.UserError(f"the shards of {path} have no records")
    self.label_names = tuple(about.get("label_names", _names(labels)))
    self._beside = folder if about else ""
    contents = [
      (os.path.basename(each), count, filesystem.size(each))
      for each, count in zip(self._paths, counts, strict=True)
    ]
    # Two packs of equal sizes may have different images.
    beside = [
      filesystem.fingerprint(os.path.join(folder, name))
      for name in ((IDS, LABELS, ORIGINALS) if about else ())
    ]
    self.fingerprint = files.fingerprint((contents, beside))
    self._open()

  def _open(self):
    self._readers, self._lock = collections.OrderedDict(), threading.Lock()
    self._ids = self._labels = self._originals = None
    if self._beside:
      self._ids = line_index.Lines(os.path.join(self._beside, IDS))
      self._labels, self._originals = (
        np.load(os.path.join(self._beside, name), mmap_mode="r")
        for name in (LABELS, ORIGINALS)
      )

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Example:
    found = tf_example.read(self._record(i), self.id_of(i))
    return found | {"label": self._known(found["label"])}

  def _known(self, label):
    return label if label < len(self.label_names) else UNLABELLED

  @property
  def names_are_known(self) -> bool:
    return self._ids is not None

  def digest(self, i: int) -> bytes | None:
    """SHA-256 of the file that was packed; None if it is not known."""
    check_index(i, len(self))
    return None if self._originals is None else self._originals[i].tobytes()

  def id_of(self, i: int) -> str:
    shard, number = locate(self._ends, i)
    if self._ids is not None:
      return unescaped(self._ids[i])
    return f"{os.path.basename(self._paths[shard])}__{number}"

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    if self._labels is not None:
      return int(self._labels[i])
    return self[i]["label"]

  def _record(self, i):
    shard, number = locate(self._ends, i)
    try:
      return self._reader_of(shard).read([number])[0]
    except Exception as error:  # ArrayRecord's have no names.
      filesystem.raise_if_away(self._paths[shard])
      reason = errors.one_line(error)
      raise OSError(errno.EBADMSG, reason, self.id_of(i)) from None

  def _reader_of(self, shard):
    """The reader of a shard; the latest ones stay open."""
    with self._lock:
      reader = self._readers.pop(shard, None) or _reader(self._paths[shard])
      self._readers[shard] = reader
      if len(self._readers) > _OPEN:
        # Not closed here: another thread may be reading from it.
        self._readers.popitem(last=False)
    return reader

  def __getstate__(self):
    opened = ("_readers", "_lock", "_ids", "_labels", "_originals")
    return self.__dict__ | dict.fromkeys(opened)

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self) -> str:
    shards = len(self._paths)
    return f"ArrayRecords({shards} shards, {len(self)} images)"


def _reader(path):
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(path)


def _names(path):
  if not path:
    return ()
  try:
    return tuple(
      filesystem.read(filesystem.absolute(path)).decode().splitlines()
    )
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"cannot read the label names in {path}: {error}"
    ) from None


def _count(path):
  """The number of records in a shard."""
  try:
    reader = _reader(path)
    if reader.ok():
      count = reader.num_records()
      reader.close()
      return count
  except Exception:  # ArrayRecord's have no names.
    pass
  raise errors.UserError(
    f"{path} is not a complete ArrayRecord shard; copy or write it again"
  )


def _about(folder: str) -> dict[str, Any]:
  """What `pack` recorded about a folder of shards; empty for other shards."""
  path = os.path.join(folder, ABOUT)
  if not os.path.exists(path):
    if os.path.exists(os.path.join(folder, PLAN)):
      raise errors.UserError(
        f"{folder} is not completely packed; run the same seer-jax pack command"
        " again"
      )
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except ValueError as error:
    raise errors.UserError(f"{path} is damaged ({error}); pack again") from None


def _compare(about, paths):
  """Refuses shards that are not those that were written."""
  wanted = {name: shard["bytes"] for name, shard in about["shards"].items()}
  found = {os.path.basename(each): filesystem.size(each) for each in paths}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise errors.UserError(
        f"{name} in {os.path.dirname(paths[0])} has"
        f" {found.get(name, 'no (it is missing)')} bytes, but {ABOUT} records"
        f" {wanted.get(name, 'none')}; copy or pack the folder again"
      )


def escaped(name: str) -> bytes:
  """An id on one line."""
  return os.fsencode(
    name.replace("%", "%25").replace("\n", "%0A").replace("\r", "%0D")
  )


def unescaped(line: bytes) -> str:
  """The id on a line."""
  name = os.fsdecode(line)
  return name.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
