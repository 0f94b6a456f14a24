"""What is told of sorted images: tables, sentences, and what was measured."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from seer_jax.apps.collection import label
from seer_jax.apps.collection.examples import Examples
from seer_jax.apps.collection.label import Predictions
from seer_jax.apps.embedding import embeddings

# The group of those that no category has.
_NOT_SURE = "not sure"


def rows_of(
  found: embeddings.Embeddings,
  examples: Examples,
  predictions: Predictions,
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
  """Accepted rows of each category, the most certain first; the rest apart."""
  order = np.argsort(-predictions.confidence, kind="stable")
  is_sure = predictions.accepted[order]
  groups = {
    name: order[is_sure & (predictions.category[order] == number)]
    for number, name in enumerate(examples.names)
  }
  return groups | {_NOT_SURE: order[~is_sure]}


class Measured(NamedTuple):
  """Of predictions, where the collection has labels of the same names."""

  accuracy: float
  ece: float
  coverage: float
  precision: float
  images: int


def measured(
  found: embeddings.Embeddings,
  examples: Examples,
  predictions: Predictions,
) -> Measured | None:
  """How good predictions are, without the examples; None without labels."""
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
  """Numbers of the categories that a collection's own labels name, else -1.

  Of examples too: what a classifier has seen says nothing about it.
  """
  number = {name: at for at, name in enumerate(examples.names)}
  labels = found.labels if found.labels is not None else [None] * len(found)
  label_N = np.array([number.get(name, -1) for name in labels])
  label_N[examples.rows_E[examples.rows_E >= 0]] = -1
  return label_N


def questions(
  found: embeddings.Embeddings, rows: Sequence[int]
) -> list[dict[str, str]]:
  """Rows of a table to be filled in, as `examples.of_table` reads it."""
  paths = found.column("path")
  return [
    {"id": found.ids[row], "label": "", "path": paths[row]} for row in rows
  ]


def table(
  found: embeddings.Embeddings,
  examples: Examples,
  predictions: Predictions,
) -> list[list[str]]:
  """What there is of each category: a head, and a row each.

  With precision and recall of what is accepted, where the collection has labels
  of the same names.
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
  """What to expect of the predictions, and what was measured if that can be."""
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
      f"of {held_out.count} examples that would be accepted"
      f" {held_out.right:.1%} were right when held out ({held_out.low:.0%} to"
      f" {held_out.high:.0%}, by their number); so it is for images like the"
      " examples, not for others"
    )
  else:
    yield (
      f"no image is certain enough for a precision of {precision:g}: give more"
      " examples (--ask 20 names the most useful), or ask for less"
    )
  known = measured(found, examples, predictions)
  if known:
    yield (
      f"against the labels of {known.images} other images: accuracy"
      f" {known.accuracy:.3f}, calibration error {known.ece:.3f}; accepted"
      f" {known.coverage:.1%}, precision {known.precision:.3f}"
    )
