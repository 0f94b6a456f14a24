"""What a network sees, as pictures: neighbours, prototypes, a map."""

import base64
from typing import NamedTuple

import cv2
import numpy as np

from seer_jax.apps.report.first_batch import FirstBatch
from seer_jax.apps.report.sample import Sample, Seen
from seer_jax.apps.view import gallery, projection
from seer_jax.evals import knn

# Neighbours of a query, members of a prototype, shown in a row.
_ACROSS = 8
# Cells of the map along a side, and pixels of one.
_CELLS, _CELL = 28, 36
_WEBP_QUALITY = 70
# Points of the scatter plot: more would hide each other.
_POINTS = 1500


class Picture(NamedTuple):
  """An image on the page."""

  source: str  # A `data:` URL.
  alt: str  # Text for screen readers.
  caption: str = ""  # Below it; "" for none.
  # `good` for the same label, `bad` for another; "" for neither.
  mark: str = ""


class Strip(NamedTuple):
  """Pictures in a row, under a title; the first may be set apart."""

  title: str
  pictures: list[Picture]
  lead: Picture | None = None


class Neighbours(NamedTuple):
  """Query images with their nearest neighbours."""

  strips: list[Strip]  # One per query.
  # Share of neighbours with the query's label, over all queries; None without
  # labels.
  precision: float | None
  chance: float  # The same for images drawn at random.
  queries: int  # Number of queries that have a label.


def neighbours(sample: Sample, count: int) -> Neighbours:
  """The images most similar to some queries, by the cosine of features."""
  bank, query = sample.bank, sample.query
  similarity_QxK, row_QxK = knn.nearest(
    bank.features_NxD, query.features_NxD, min(_ACROSS, len(bank))
  )
  strips = []
  for at in _varied(query, count):
    label = _label(sample, query, at)
    pictures = []
    for row, similarity in zip(row_QxK[at], similarity_QxK[at], strict=True):
      same = "good" if _label(sample, bank, row) == label else "bad"
      mark = same if label else ""
      pictures.append(_thumb(sample, bank, row, f"{similarity:.2f}", mark))
    strips.append(Strip(label, pictures, _thumb(sample, query, at)))
  known = (query.labels_N >= 0) & (bank.labels_N >= 0).any()
  if not known.any():
    return Neighbours(strips, None, 0.0, 0)
  wanted_Qx1 = query.labels_N[known][:, None]
  return Neighbours(
    strips,
    float((bank.labels_N[row_QxK[known]] == wanted_Qx1).mean()),
    float((bank.labels_N == wanted_Qx1).mean()),
    int(known.sum()),
  )


def _varied(seen: Seen, count: int) -> list[int]:
  """Rows of each label in turn, or evenly spaced."""
  if (seen.labels_N < 0).all():
    return np.linspace(0, len(seen) - 1, min(count, len(seen))).astype(int)
  turns = [
    np.flatnonzero(seen.labels_N == label)
    for label in np.unique(seen.labels_N[seen.labels_N >= 0])
  ]
  rows = [
    rows[turn] for turn in range(count) for rows in turns if turn < len(rows)
  ]
  return rows[:count]


class Prototypes(NamedTuple):
  """The prototypes of the first head."""

  most: list[Strip]  # Those nearest to most images.
  least: list[Strip]  # Those nearest to fewest images, but to some.
  closest: list[Strip]  # Pairs that are nearly the same.
  unused: int  # How many are nearest to no image of the sample.
  count: int  # K.


def prototypes(sample: Sample, count: int) -> Prototypes | None:
  """Pictures of prototypes by their nearest images; None without prototypes."""
  if sample.prototypes_PxK is None or not len(sample.bank):
    return None
  kernel_PxK = sample.prototypes_PxK
  size_K = np.bincount(sample.bank.prototype_N, minlength=kernel_PxK.shape[1])
  order = np.argsort(-size_K, kind="stable")
  used = order[size_K[order] > 0]
  least = [k for k in used[::-1] if k not in used[:count]][:count]
  return Prototypes(
    [_members(sample, k, size_K) for k in used[:count]],
    [_members(sample, k, size_K) for k in least],
    _closest(sample, used, kernel_PxK, size_K, max(1, count // 2)),
    int((size_K == 0).sum()),
    len(size_K),
  )


def _members(sample, k, size_K, across=_ACROSS, words=""):
  """The images of a prototype, the most typical first."""
  bank = sample.bank
  rows = np.flatnonzero(bank.prototype_N == k)
  labels = [
    each for each in (_label(sample, bank, row) for row in rows) if each
  ]
  names, counts = np.unique(labels or [""], return_counts=True)
  title = f"Prototype {k}: {size_K[k]} of {len(bank):,} images"
  if labels:
    title += f", most often {names[counts.argmax()]} ({counts.max()})"
  rows = rows[np.argsort(-bank.score_N[rows])][:across]
  pictures = [_thumb(sample, bank, row) for row in rows]
  return Strip(title + words, pictures)


def _closest(sample, used, kernel_PxK, size_K, count):
  """Pairs of used prototypes with the highest cosine, half a row each."""
  some = used[:4096]
  if len(some) < 2:
    return []
  cosine = np.triu(kernel_PxK[:, some].T @ kernel_PxK[:, some], 1)
  cosine[np.tril_indices(len(some))] = -2
  found = []
  for flat in np.argsort(-cosine, axis=None)[:count]:
    one, other = np.unravel_index(flat, cosine.shape)
    first, second = (
      _members(sample, some[each], size_K, _ACROSS // 2)
      for each in (one, other)
    )
    found.append(
      Strip(
        f"Prototypes {some[one]} and {some[other]}: cosine"
        f" {cosine[one, other]:.2f}. First those of {some[one]}, then those"
        f" of {some[other]}",
        first.pictures + second.pictures,
      )
    )
  return found


class Map(NamedTuple):
  """Features on a plane."""

  mosaic: Picture  # The images, at their positions.
  method: str  # "UMAP" or "PCA".
  # X, y, label and name of some images; empty without labels.
  points: list[tuple[float, float, str, str]]


def feature_map(sample: Sample, scale: float) -> Map | None:
  """A map on which similar images are close; None for less than three.

  Args:
    scale: factor of the number of cells, for smaller pages.
  """
  bank = sample.bank
  if len(bank) < 3:
    return None
  method = projection.best_for(len(bank))
  position_Nx2 = projection.positions(bank.features_NxD, method)
  cells = max(8, round(_CELLS * scale))
  alt = f"images in a grid, similar ones close, after {method.upper()}"
  points = []
  if (bank.labels_N >= 0).any():
    rows = np.linspace(0, len(bank) - 1, min(_POINTS, len(bank))).astype(int)
    points = [
      (
        round(float(position_Nx2[row, 0]), 4),
        round(float(position_Nx2[row, 1]), 4),
        _label(sample, bank, row) or "no label",
        bank.ids_N[row],
      )
      for row in rows
    ]
  mosaic = Picture(_mosaic(bank.thumbs_NxSxSx3, position_Nx2, cells), alt)
  return Map(mosaic, method.upper(), points)


def _mosaic(thumbs_NxSxSx3, position_Nx2, cells):
  """A full grid of images, each as close to its position as possible."""
  from scipy import optimize  # As scikit-learn: slow to import.

  cells = min(cells, int(len(position_Nx2) ** 0.5))
  some = np.linspace(0, len(position_Nx2) - 1, cells**2).astype(int)
  low, high = position_Nx2[some].min(0), position_Nx2[some].max(0)
  spread_Nx2 = (position_Nx2[some] - low) / np.maximum(high - low, 1e-9)
  column, line = np.divmod(np.arange(cells**2), cells)
  middle_Cx2 = (np.stack([column, line], 1) + 0.5) / cells
  far_NxC = ((spread_Nx2[:, None] - middle_Cx2) ** 2).sum(-1)
  rows, cell_N = optimize.linear_sum_assignment(far_NxC)
  canvas = np.zeros((cells * _CELL, cells * _CELL, 3), np.uint8)
  for row, cell in zip(some[rows], cell_N, strict=True):
    # Lines count from the bottom, as in the plot.
    left, top = column[cell] * _CELL, (cells - 1 - line[cell]) * _CELL
    canvas[top : top + _CELL, left : left + _CELL] = cv2.resize(
      thumbs_NxSxSx3[row], (_CELL, _CELL), interpolation=cv2.INTER_AREA
    )[..., ::-1]
  quality = cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY
  data = cv2.imencode(".webp", canvas, quality)[1].tobytes()
  return _address(data, "webp")


def crops(first: FirstBatch) -> list[Strip]:
  """A row per image: the whole image, then its crops."""
  strips = []
  for whole, views, name in zip(*first, strict=True):
    height, width = whole.shape[:2]
    lead = Picture(
      _address(gallery.shrunk(whole)),
      f"the image {name}",
      f"{width} x {height}",
    )
    pictures = [
      Picture(
        _address(gallery.shrunk(view)),
        f"crop {at} of {name}, augmented",
        f"{len(view)} px",
      )
      for at, view in enumerate(views, 1)
    ]
    strips.append(Strip(name, pictures, lead))
  return strips


def _thumb(sample, seen, row, caption="", mark=""):
  name, label = seen.ids_N[row], _label(sample, seen, row)
  alt = f"{label}: {name}" if label else name
  if mark:
    alt += ", the same label" if mark == "good" else ", another label"
  data = gallery.shrunk(seen.thumbs_NxSxSx3[row])
  return Picture(_address(data), alt, caption, mark)


def _label(sample, seen, row):
  label = seen.labels_N[row]
  return sample.label_names[label] if label >= 0 else ""


def _address(data, kind="jpeg"):
  return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
