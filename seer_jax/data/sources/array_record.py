"""Images in ArrayRecord shards, written by `data.pack` or by others."""

import collections
import errno
import json
import os
import threading
from typing import Any

import numpy as np

from seer_jax.data.storage import filesystem, line_index, tf_example
from seer_jax.data.storage.example import UNLABELLED, Example, check_index
from seer_jax.runtime import errors, files

ENDING = ".array_record"
# What `pack` lays beside its shards.
ABOUT, IDS, LABELS = "images.json", "ids.txt", "labels.npy"
ORIGINALS = "originals.npy"  # SHA-256 of the files that were packed, N x 32.
PLAN = os.path.join("parts", "plan.json")  # Of a pack that is under way.
# Files held open at once: a billion images are more shards than a process may.
_OPEN = 64


class ArrayRecords:
  """The records of all shards, in the order of their names.

  A record is an encoded image, or a `tf.train.Example` that holds one. In a
  folder that `seer-jax pack` wrote, ids and labels are read from the files
  beside the shards; elsewhere an id is the shard's name and the number in it,
  `label_of` reads the record, whose label counts if `labels` names it.

  Args:
    path: a folder, a file, or a pattern.
    labels: a text file of the names of labels, a line each, for shards that
      `seer-jax pack` did not write.

  Raises:
    UserError: there are no shards, or one is damaged or cut short.
  """

  def __init__(self, path: str, labels: str = ""):
    if filesystem.is_url(path):
      raise errors.UserError(
        f"{path}: ArrayRecord shards are read from this machine's file systems"
        " only; copy them, or mount the bucket. Tar shards are read from URLs"
      )
    self._paths = filesystem.matching(path, ENDING)
    folder = os.path.dirname(self._paths[0])
    about = _about(folder)
    if about:
      # By sizes alone: to open each of a hundred thousand would take minutes.
      _compare(about, self._paths)
      shards = [about["shards"][os.path.basename(p)] for p in self._paths]
      counts = [shard["images"] for shard in shards]
    else:
      counts = [_count(each) for each in self._paths]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise errors.UserError(f"the shards of {path} hold no record")
    self.label_names = tuple(about.get("label_names", _names(labels)))
    self._beside = folder if about else ""
    contents = [
      (os.path.basename(each), count, filesystem.size(each))
      for each, count in zip(self._paths, counts, strict=True)
    ]
    # Two packs of equal sizes may hold other images.
    beside = [
      filesystem.fingerprint(os.path.join(folder, n)) for n in _said(about)
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
    """SHA-256 of the file that was packed; None where nobody wrote it down."""
    check_index(i, len(self))
    return None if self._originals is None else self._originals[i].tobytes()

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
      return self._reader_of(shard).read([number])[0]
    except Exception as error:  # ArrayRecord's have no names.
      filesystem.raise_if_away(self._paths[shard])
      words = next(iter(str(error).splitlines()), "damaged record")
      raise OSError(errno.EBADMSG, words[:200], self.id_of(i)) from None

  def _reader_of(self, shard):
    """Of those used last, which threads may be reading from at this moment."""
    with self._lock:
      reader = self._readers.pop(shard, None) or _reader(self._paths[shard])
      self._readers[shard] = reader
      if len(self._readers) > _OPEN:
        # Not closed here: whoever still reads from it holds it.
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


def _said(about):
  return (IDS, LABELS, ORIGINALS) if about else ()


def _names(path):
  if not path:
    return ()
  try:
    return tuple(
      filesystem.read(filesystem.absolute(path)).decode().splitlines()
    )
  except (OSError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"cannot read the names of labels in {path}: {error}"
    ) from None


def _count(path):
  """Records of a shard; a damaged one is told by its name."""
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
    if os.path.exists(os.path.join(folder, PLAN)):
      raise errors.UserError(
        f"{folder} is half packed; finish it with the same"
        " seer-jax pack command"
      )
    return {}
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except ValueError as error:
    raise errors.UserError(f"{path} is damaged ({error}); pack again") from None


def _compare(about, paths):
  """The shards must be those that were written."""
  wanted = {name: shard["bytes"] for name, shard in about["shards"].items()}
  found = {os.path.basename(each): filesystem.size(each) for each in paths}
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      raise errors.UserError(
        f"{name} in {os.path.dirname(paths[0])} has"
        f" {found.get(name, 'no (it is missing)')} bytes, {ABOUT} tells of"
        f" {wanted.get(name, 'none')}; copy the folder again, or pack it again"
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
