"""What the page shows and writes: images, clusters, labels and names."""

import csv
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from seer_jax.apps.collection import examples, kmeans, label, search
from seer_jax.apps.embedding import embeddings, vectors
from seer_jax.apps.view import gallery, projection
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib

LABELS, NAMES = "labels.csv", "cluster_names.json"
# Most clusters to compute where the folder has none.
_CLUSTERS = 40
_LARGE = 1024  # Pixels of the longer side.
_LONGEST = 100  # Characters of a name.


class CollectionView:
  """A collection with a map, clusters, and labels given by hand."""

  def __init__(self, found: embeddings.Embeddings, method: str):
    """Reads or computes the map and the clusters.

    Raises UserError as `projection.plane`, or if clusters or labels cannot be
    read.
    """
    self.found = found
    self.method, self.position_Nx2 = projection.plane(found, method)
    self._index = search.Index(found.features)
    self.cluster_N = self._clusters()
    self._writing = threading.Lock()
    self._labels_path = found.folder / LABELS
    self._names_path = found.folder / NAMES
    self.given = self._read_labels()
    self.names = self._read_names()

  def _clusters(self):
    """Those of `seer-jax cluster`, or else a few."""
    path = self.found.folder / "clusters" / "clusters.csv"
    if path.exists():
      try:
        with path.open(newline="", errors="surrogateescape") as file:
          lines = [int(line["cluster"]) for line in csv.DictReader(file)]
      except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise errors.UserError(
          f"{path} cannot be read ({error!r}); run seer-jax cluster again, or"
          " remove it"
        ) from error
      if len(lines) == len(self.found):
        return np.array(lines, np.int32)
    k = max(1, min(_CLUSTERS, round((len(self.found) / 2) ** 0.5)))
    return kmeans.spherical_kmeans(
      self.found.features, k, mesh=mesh_lib.make()
    ).cluster_N

  def _read_labels(self) -> dict[int, str]:
    if not self._labels_path.exists():
      return {}
    named = examples.read_table(str(self._labels_path))
    rows = {self.found.row_of(name): text for name, text in named.items()}
    return {row: text for row, text in rows.items() if row is not None and text}

  def _read_names(self) -> dict[str, str]:
    """Names of clusters, if they were given to these clusters."""
    try:
      kept = json.loads(self._names_path.read_text())
      if kept["clusters"] == self._fingerprint():
        return dict(kept["names"])
    except (OSError, ValueError, KeyError, TypeError):
      pass
    return {}

  def _fingerprint(self):
    return np.bincount(np.maximum(self.cluster_N, 0)).tolist()

  def about(self) -> dict[str, Any]:
    """What the page needs first, except the arrays."""
    sizes = np.bincount(self.cluster_N[self.cluster_N >= 0])
    names = sorted({each for each in self._folders() if each is not None})
    return {
      "title": self.found.folder.name,
      "count": len(self.found),
      "map": self.method,
      "clusters": [
        {"size": int(size), "name": self.names.get(str(number), "")}
        for number, size in enumerate(sizes)
      ],
      "folders": names,
      "given": {str(row): text for row, text in self.given.items()},
    }

  def _folders(self):
    return () if self.found.labels is None else self.found.labels

  def arrays(self) -> bytes:
    """position_Nx2 float32, cluster_N int32, folder_N int32, concatenated."""
    names = {name: at for at, name in enumerate(self.about()["folders"])}
    folder_N = np.full(len(self.found), -1, np.int32)
    for row, name in enumerate(self._folders()):
      folder_N[row] = names.get(name, -1)
    parts = self.position_Nx2, self.cluster_N.astype(np.int32), folder_N
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)

  def row(self, number: int) -> dict[str, Any]:
    """The facts of an image."""
    columns = ("id", "width", "height", "label")
    about = {name: self.found.column(name)[number] for name in columns}
    about["width"], about["height"] = int(about["width"]), int(about["height"])
    return about | {"row": number}

  def picture(self, number: int, large: bool) -> bytes | None:
    """A JPEG of an image; None if it cannot be read any more."""
    side = _LARGE if large else gallery.SIDE
    return gallery.thumbnail(self.found, number, side)

  def near(self, rows: Sequence[int], k: int) -> list[dict[str, Any]]:
    """The images most similar to one, or to the centroid of several."""
    query_D = vectors.centroid(np.asarray(self.found.features[rows]))
    cosine, found = self._index.search(query_D, k, without=rows)
    return [
      self.row(int(row)) | {"cosine": round(float(value), 4)}
      for row, value in zip(found[0], cosine[0], strict=True)
    ]

  def ask(self, count: int) -> list[dict[str, Any]]:
    """The images whose labels would help most.

    Raises UserError if there are too few labels.
    """
    known = examples.of_labels(self.found, dict(self.given))
    predictions = label.predict(known, self.found.features)
    rows = label.ask(predictions, self.found.features, known.rows_E, count)
    names = np.array(known.names)
    return [
      self.row(int(row)) | {"guess": str(names[predictions.category[row]])}
      for row in rows
    ]

  def give(self, rows: Sequence[int], text: str) -> None:
    """Labels images, durably; "" removes labels.

    Raises UserError for an unknown image or too long a label, and Lost if the
    disk is full.
    """
    text = _name(text)
    for row in rows:
      if not 0 <= row < len(self.found):
        raise errors.UserError(f"there is no image {row}")
    with self._writing:
      try:
        with self._labels_path.open("a+", newline="") as file:
          is_new = not _whole_lines(file)
          writer = csv.writer(file, lineterminator="\n")
          if is_new:
            writer.writerow(["id", "label"])
          writer.writerows([[self.found.ids[row], text] for row in rows])
          file.flush()
          os.fsync(file.fileno())
      except OSError as error:
        raise errors.of_disk(
          error, f"cannot write {self._labels_path}: {error.strerror}"
        ) from error
      for row in rows:
        self.given[row] = text
        if not text:
          del self.given[row]

  def rename(self, number: int, text: str) -> None:
    """Names a cluster, durably.

    Raises UserError for an unknown cluster or too long a name, and Lost if the
    disk is full.
    """
    if not 0 <= number <= self.cluster_N.max():
      raise errors.UserError(f"there is no cluster {number}")
    with self._writing:
      self.names[str(number)] = _name(text)
      kept = {"clusters": self._fingerprint(), "names": self.names}
      files.write_text(self._names_path, json.dumps(kept, indent=1) + "\n")


def _whole_lines(file):
  """Ends a file in a whole line; returns whether it has any.

  The part of a line that a killed process left is removed; a complete line
  without its end may come from an editor, and stays.
  """
  file.seek(0)
  text = file.read()
  rest = text[text.rfind("\n") + 1 :]
  if rest and ("," not in rest or rest.count('"') % 2):
    file.truncate(len(text[: len(text) - len(rest)].encode()))
  elif rest:
    file.write("\n")
  return text != rest or "," in rest


def _name(text):
  text = " ".join(str(text).split())
  if len(text) > _LONGEST:
    raise errors.UserError(
      f"a name has {len(text)} characters; use at most {_LONGEST}"
    )
  return text
