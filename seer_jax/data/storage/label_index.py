"""Labels of long lists: numbered once, and mapped into memory.

pyarrow reads them in a quarter of the time, but all together: 3 and 6 million
take 240 and 480 MiB, and both 240 MiB here.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from seer_jax.data.storage import filesystem, index_cache, line_index
from seer_jax.data.storage.example import UNLABELLED, numbered_classes
from seer_jax.runtime import errors, files

# Numbers or names; "" for none.
Part = list[bytes | int]
_AT_ONCE = 2**20
# Changes with the format of the index.
_VERSION = 3


class Labels:
  """The label of each entry of a list, from a file in the user's cache.

  Labels that are not whole numbers are names, numbered in sorted order; whole
  numbers below 0 and "" mean none. Raises UserError if they cannot be classes;
  see `numbered_classes`.
  """

  def __init__(self, path: str, parts: Callable[[], Iterable[Part]]):
    """Opens the labels of `path`; `parts` is called twice, or not at all."""
    self._kept = files.cached("labels", _VERSION, filesystem.stamp(path))
    index_cache.open_index(
      self._kept, lambda folder: _number(parts, path, folder), self._open
    )

  def _open(self):
    self.names = tuple(json.loads((self._kept / "names.json").read_text()))
    if self.names:  # An empty file cannot be mapped.
      self._numbers = np.memmap(self._kept / "numbers", np.int32, "r")
      filesystem.read_at_random(self._numbers)

  def __getitem__(self, i: int) -> int:
    return int(self._numbers[i]) if self.names else UNLABELLED

  def __getstate__(self):
    return {"_kept": self._kept}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._open()


def of_array(array: np.ndarray) -> Iterator[Part]:
  """The labels in an array of whole numbers or of strings.

  Raises UserError for other arrays.
  """
  if array.dtype.kind not in "SUiu":
    raise errors.UserError(
      f"labels are {array.dtype}; use whole numbers or strings"
    )
  for start in range(0, len(array), _AT_ONCE):
    part = array[start : start + _AT_ONCE].tolist()
    yield list(map(os.fsencode, part)) if array.dtype.kind == "U" else part


def after_tabs(text: line_index.Lines) -> Iterator[Part]:
  """The labels in a text; an entry without a tab has none."""
  if not text.has_tabs:
    return
  lines = text.in_order()
  for part in iter(lambda: list(itertools.islice(lines, _AT_ONCE)), []):
    yield [line.partition(b"\t")[2].strip() for line in part]


def numbering(
  labels: Collection[bytes | int], where: str
) -> tuple[list[str], dict[bytes | int, int]]:
  """Names of the classes, and the class of each distinct label.

  Raises UserError if they cannot be classes; see `numbered_classes`.
  """
  labels = set(labels) - {b""}
  if all(isinstance(label, int) or _is_number(label) for label in labels):
    number_of = {label: max(int(label), UNLABELLED) for label in labels}
    used = set(number_of.values()) - {UNLABELLED}
    names = list(map(str, range(numbered_classes(used, where))))
  else:
    ordered = sorted(labels)
    number_of = {label: number for number, label in enumerate(ordered)}
    names = list(map(os.fsdecode, ordered))
  return names, number_of | {b"": UNLABELLED}


def _number(parts, path, folder: pathlib.Path):
  seen = set()
  for part in parts():
    seen.update(part)
  names, number_of = numbering(seen, path)
  with (folder / "numbers").open("wb") as file:
    for part in parts():
      np.array([number_of[label] for label in part], np.int32).tofile(file)
  (folder / "names.json").write_text(json.dumps(names))


def _is_number(word: bytes) -> bool:
  return word.removeprefix(b"-").isdigit()
