"""Features on disk: computed once for weights, data and preprocessing.

A set is a folder: a file of float32 rows per tap, the labels, the indices of
the images, and a note of how many images they cover. It grows batch by batch,
and a pass that was killed resumes after the last row that the note covers. Rows
are returned as memory maps, so a set may be larger than memory.
"""

import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from seer_jax.evals import features
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib

_NOTE, _LABELS, _LOCK = "done.json", "labels.i64", "lock"
_INDICES = "indices.i64"
# Changes with the files of a set.
_VERSION = 2


class FeatureStore:
  """A folder of sets of features."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._known: tuple[Any, str] = (None, "")

  def get(
    self,
    variables: Any,
    images: features.ImageSet,
    about: object,
    rows: Callable[[int], Iterator[features.Rows]],
  ) -> dict[str, features.Features]:
    """Features by tap; computes and keeps what is missing.

    Raises UserError if the disk refuses and Lost if it is full.

    Args:
      variables: of the encoder; their content is part of the key.
      images: likewise, by the fingerprint of the source.
      about: everything else that features depend on.
      rows: computes, from an index of the set on.
    """
    indices = np.asarray(images.indices, np.int64)
    folder = self._folder / files.key(
      self._fingerprint(variables),
      images.source.fingerprint,
      files.fingerprint(indices.tobytes()),
      images.view,
      about,
      _VERSION,
    )
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with open(folder / _LOCK, "w") as lock:
        # Another evaluation may be computing the same features: wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = self._read_note(folder)
        if note["done"] < len(indices):
          note = self._extend(folder, note, rows)
      return {
        tap: _mapped(folder, note, tap, width)
        for tap, width in note["widths"].items()
      }
    except OSError as error:
      raise errors.of_disk(
        error,
        f"cannot keep features in {folder}: {error.strerror or error}; make"
        " room, or set XDG_CACHE_HOME to another folder",
      ) from error

  def _fingerprint(self, variables):
    """The fingerprint of variables; the same ones are hashed once."""
    if self._known[0] is not variables:
      self._known = variables, fingerprint(variables)
    return self._known[1]

  def _read_note(self, folder):
    try:
      return json.loads((folder / _NOTE).read_text())
    except (FileNotFoundError, ValueError):
      return {"done": 0, "rows": 0, "widths": {}}

  def _extend(self, folder, note, rows):
    """Appends what is missing, over a partial end that a kill left."""
    for part in rows(note["done"]):
      widths = {tap: x.shape[1] for tap, x in part.taps.items()}
      arrays = {_file_of(tap): x for tap, x in part.taps.items()}
      arrays[_LABELS] = part.labels_B.astype(np.int64)
      arrays[_INDICES] = part.index_B.astype(np.int64)
      for name, x in arrays.items():
        width = x.shape[1] if x.ndim == 2 else 1
        with open(folder / name, "ab") as file:
          file.truncate(note["rows"] * width * x.itemsize)
          file.write(np.ascontiguousarray(x).tobytes())
          # The note, which is written next, covers it.
          file.flush()
          os.fsync(file.fileno())
      note = {
        "done": part.done,
        "rows": note["rows"] + len(part.labels_B),
        "widths": widths,
      }
      files.write_text(folder / _NOTE, json.dumps(note))
    return note


def fingerprint(variables: Any) -> str:
  """SHA-256 of all arrays with their paths."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(variables):
    array = np.asarray(leaf)
    digest.update(f"{mesh_lib.path_of(path)} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def _file_of(tap):
  return f"{tap.replace(':', '_')}.f32"


def _mapped(folder, note, tap, width):
  count = note["rows"]
  labels_N, index_N = (
    np.fromfile(folder / name, np.int64, count) for name in (_LABELS, _INDICES)
  )
  features_NxD = np.memmap(
    folder / _file_of(tap), np.float32, "r", shape=(count, width)
  )
  return features.finite(features_NxD, labels_N, index_N)
