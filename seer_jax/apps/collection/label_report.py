"""Reports of classified images: tables, sentences, and measured accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from seer_jax.apps.collection import label
from seer_jax.apps.collection.examples import Examples
from seer_jax.apps.collection.label import Predictions
from seer_jax.apps.embedding import embeddings

# The group of images without an accepted category.
_NOT_SURE = "not sure"


def rows_of(
  found: embeddings.Embeddings, examples: Examples, predictions: Predictions
) -> list[dict[str, Any]]:
  """A row for each image: by category, the most certain first."""
  confidence_N, category_N = predictions.confidence, predictions.category
  accepted_N = predictions.accepted
  given = {
    int(row): examples.names[label]
    for row, label in zip(examples.rows_E, examples.labels_E, strict=True)
    if row >= 0
  }
  order = np.lexsort((-confidence_N, category_N))
  paths = found.column("path")
  return [
    {
      "id": found.ids[row],
      "path": paths[row],
      "category": examples.names[category_N[row]],
      "confidence": f"{confidence_N[row]:.4f}",
      "accepted": int(accepted_N[row]),
      "given": given.get(int(row), ""),
    }
    | {
      f"p({name})": f"{probability:.4f}"
      for name, probability in zip(
        examples.names, predictions.probability_NxL[row], strict=True
      )
    }
    for row in order
  ]


def members(
  examples: Examples, predictions: Predictions
) -> dict[str, np.ndarray]:
  """Accepted rows of each category, the most certain first; others apart."""
  order = np.argsort(-predictions.confidence, kind="stable")
  is_sure = predictions.accepted[order]
  groups = {
    name: order[is_sure & (predictions.category[order] == number)]
    for number, name in enumerate(examples.names)
  }
  return groups | {_NOT_SURE: order[~is_sure]}


class Measured(NamedTuple):
  """Accuracy of predictions for images with labels of the same names."""

  accuracy: float
  ece: float
  coverage: float
  precision: float
  images: int


def measured(
  found: embeddings.Embeddings, examples: Examples, predictions: Predictions
) -> Measured | None:
  """Accuracy of predictions, without the examples; None without labels."""
  label_N = _truth(found, examples)
  rows = np.flatnonzero(label_N >= 0)
  if not len(rows):
    return None
  right = predictions.category[rows] == label_N[rows]
  accepted = predictions.accepted[rows]
  return Measured(
    float(right.mean()),
    label.calibration_error(predictions.probability_NxL[rows], label_N[rows]),
    float(accepted.mean()),
    float(right[accepted].mean()) if accepted.any() else float("nan"),
    len(rows),
  )


def _truth(found, examples):
  """Category numbers of a collection's own labels; -1 if unknown.

  Examples are unknown too: the classifier was fitted to them.
  """
  number = {name: at for at, name in enumerate(examples.names)}
  labels = found.labels if found.labels is not None else [None] * len(found)
  label_N = np.array([number.get(name, -1) for name in labels])
  label_N[examples.rows_E[examples.rows_E >= 0]] = -1
  return label_N


def questions(
  found: embeddings.Embeddings, rows: Sequence[int]
) -> list[dict[str, str]]:
  """Rows of a table to fill in, as `examples.of_table` reads it."""
  paths = found.column("path")
  return [
    {"id": found.ids[row], "label": "", "path": paths[row]} for row in rows
  ]


def table(
  found: embeddings.Embeddings, examples: Examples, predictions: Predictions
) -> list[list[str]]:
  """A header and a row for each category.

  With precision and recall of accepted predictions, where the collection has
  labels of the same names.
  """
  label_N = _truth(found, examples)
  has_labels = bool((label_N >= 0).any())
  head = ["category", "examples", "predicted", "accepted"]
  rows = [head + ["precision", "recall"] * has_labels]
  for number, name in enumerate(examples.names):
    predicted = predictions.category == number
    accepted = predicted & predictions.accepted
    given = np.sum(examples.labels_E == number)
    cells = [name, *map(str, (given, predicted.sum(), accepted.sum()))]
    if has_labels:
      right = np.sum(accepted & (label_N == number))
      for count in (accepted & (label_N >= 0), label_N == number):
        cells.append(f"{right / count.sum():.3f}" if count.any() else "-")
    rows.append(cells)
  return rows


def sentences(
  found: embeddings.Embeddings,
  examples: Examples,
  predictions: Predictions,
  precision: float,
) -> Iterator[str]:
  """What to expect of the predictions, with measured values if possible."""
  count = len(examples.labels_E)
  yield (
    f"in cross-validation of the {count} examples: accuracy"
    f" {predictions.held_out_accuracy:.3f}, calibration error"
    f" {predictions.held_out_ece:.3f}"
  )
  accepted = predictions.accepted.sum()
  if accepted:
    yield (
      f"{accepted} of {len(found)} images are accepted, for a precision of"
      f" {precision:g} in each category"
    )
    held_out = predictions.held_out
    yield (
      f"of {held_out.count} examples accepted in cross-validation,"
      f" {held_out.right:.1%} are right (90 % interval {held_out.low:.0%} to"
      f" {held_out.high:.0%}); this holds for images like the examples only"
    )
  else:
    yield (
      f"no image is accepted for a precision of {precision:g}: give more"
      " examples (--ask 20 lists the most useful), or a lower precision"
    )
  known = measured(found, examples, predictions)
  if known:
    yield (
      f"against the labels of {known.images} other images: accuracy"
      f" {known.accuracy:.3f}, calibration error {known.ece:.3f}; accepted"
      f" {known.coverage:.1%}, precision {known.precision:.3f}"
    )
