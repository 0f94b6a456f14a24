"""Images in ArrayRecord shards, written by `seer_jax.pack` or by others."""

import errno
import hashlib
import json
import os
from typing import Any

import numpy as np

from seer_jax import errors
from seer_jax.sources import examples, files, lines
from seer_jax.sources.source import UNLABELLED, Example, check_index

ENDING = ".array_record"
# What `pack` lays beside its shards.
ABOUT, IDS, LABELS = "images.json", "ids.txt", "labels.npy"


class ArrayRecords:
  """The records of all shards, in the order of their names.

  A record is an encoded image, or a `tf.train.Example` that holds one. In a
  folder that `seer_jax.pack` wrote, ids and labels are read from the files
  beside the shards; elsewhere an id is the shard's name and the number in it,
  and `label_of` reads the record.

  Raises:
    UserError: there are no shards, or one is damaged or cut short.
  """

  def __init__(self, path: str):
    self._paths = files.matching(path, ENDING)
    folder = os.path.dirname(self._paths[0])
    counts = [_count(each) for each in self._paths]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise errors.UserError(f"the shards of {path} hold no record")
    about = _about(folder)
    if about:
      _compare(about, self._paths, counts)
    self.label_names = tuple(about.get("label_names", ()))
    self._beside = folder if about else ""
    contents = [
      (os.path.basename(each), count, files.size(each))
      for each, count in zip(self._paths, counts, strict=True)
    ]
    self.fingerprint = hashlib.sha256(repr(contents).encode()).hexdigest()
    self._open()

  def _open(self):
    self._readers = {}
    self._ids = self._labels = None
    if self._beside:
      self._ids = lines.Lines(os.path.join(self._beside, IDS))
      self._labels = np.load(os.path.join(self._beside, LABELS), mmap_mode="r")

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Example:
    found = examples.read(self._record(i), self.id_of(i))
    return found | {"label": self._known(found["label"])}

  def _known(self, label):
    return label if label < len(self.label_names) else UNLABELLED

  def id_of(self, i: int) -> str:
    check_index(i, len(self))
    if self._ids is not None:
      return unescaped(self._ids[i])
    shard, number = self._place(i)
    return f"{os.path.basename(self._paths[shard])}__{number}"

  def label_of(self, i: int) -> int:
    check_index(i, len(self))
    if self._labels is not None:
      return int(self._labels[i])
    return self[i]["label"]

  def _place(self, i):
    shard = int(np.searchsorted(self._ends, i, side="right"))
    return shard, i - (int(self._ends[shard - 1]) if shard else 0)

  def _record(self, i):
    check_index(i, len(self))
    shard, number = self._place(i)
    try:
      if shard not in self._readers:
        self._readers[shard] = _reader(self._paths[shard])
      return self._readers[shard].read([number])[0]
    except Exception as error:  # ArrayRecord's have no names.
      words = next(iter(str(error).splitlines()), "damaged record")
      raise OSError(errno.EBADMSG, words[:200], self.id_of(i)) from None

  def __getstate__(self):
    return self.__dict__ | {"_readers": None, "_ids": None, "_labels": None}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()

  def __repr__(self) -> str:
    shards = len(self._paths)
    return f"ArrayRecords({shards} shards, {len(self)} images)"


def _reader(path):
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(path)


def _count(path):
  """Records of a shard; a damaged one is told by its name."""
  if files.is_url(path):
    raise errors.UserError(
      f"{path}: ArrayRecord shards are read from this machine's file systems"
      " only; copy them, or mount the bucket"
    )
  try:
    reader = _reader(path)
    if reader.ok():
      count = reader.num_records()
      reader.close()
      return count
  except ImportError:
    raise errors.UserError(
      "ArrayRecord shards need a library; run: pip install array_record"
    ) from None
  except Exception:
    pass  # Told below.
  raise errors.UserError(
    f"{path} is no whole ArrayRecord shard; it may have been cut short: copy or"
    " write it again"
  )


def _about(folder: str) -> dict[str, Any]:
  """What `pack` says of a folder of shards; empty for those of others."""
  path = os.path.join(folder, ABOUT)
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except ValueError as error:
    raise errors.UserError(f"{path} is damaged ({error}); pack again") from None


def _compare(about, paths, counts):
  """The shards must be those that were written."""
  wanted = about["shards"]
  found = dict(zip(map(os.path.basename, paths), counts, strict=True))
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise errors.UserError(
        f"{name} in {os.path.dirname(paths[0])} holds"
        f" {found.get(name, 'nothing: it is missing')},"
        f" {ABOUT} tells of {wanted.get(name, 'none')} images; copy the folder"
        " again, or pack it again"
      )


def escaped(name: str) -> bytes:
  """An id as a line: without ends of lines."""
  return os.fsencode(
    name.replace("%", "%25").replace("\n", "%0A").replace("\r", "%0D")
  )


def unescaped(line: bytes) -> str:
  """The id of a line."""
  name = os.fsdecode(line)
  return name.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")
