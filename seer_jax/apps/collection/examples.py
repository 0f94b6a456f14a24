"""A few labelled examples of each category: from folders, or from a table."""

import csv
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from seer_jax.apps.collection import search
from seer_jax.apps.embedding import embeddings
from seer_jax.data import sources
from seer_jax.runtime import errors, files


class Examples(NamedTuple):
  """Labelled vectors."""

  features_ExD: np.ndarray
  labels_E: np.ndarray  # Numbers of their categories.
  names: tuple[str, ...]  # Of the categories, sorted.
  rows_E: np.ndarray  # In the collection; -1 for other images.


def of_folder(
  folder: str, found: embeddings.Embeddings, weights: str | None
) -> Examples:
  """Examples in a folder with a subfolder for each category.

  Raises UserError if there are fewer than two categories, a category has only
  one example, or the weights are not those of the collection.
  """
  source = sources.Folder(files.user_path(folder))
  labelled = [i for i in range(len(source)) if source.label_of(i) >= 0]
  x_NxD = search.of_images(found, source, weights)
  usable = [i for i in labelled if np.isfinite(x_NxD[i]).all()]
  at = {digest: row for row, digest in enumerate(found.column("sha256"))}
  rows = [at.get(files.fingerprint(source[i]["image"]), -1) for i in usable]
  labels = [source.label_names[source.label_of(i)] for i in usable]
  return _checked(x_NxD[usable], labels, rows, folder)


def of_table(path: str, found: embeddings.Embeddings) -> Examples:
  """Examples listed in a CSV file, as `read_table` reads it.

  Raises UserError as `of_folder`, and if the file cannot be read, or lists no
  image of the collection.
  """
  labels = read_table(path)
  rows = {found.row_of(name): text for name, text in labels.items() if text}
  rows.pop(None, None)
  if not rows:
    raise errors.UserError(
      f"{path} has no id of {found.folder}, such as {found.ids[0]!r}"
    )
  return of_labels(found, rows, path)


def read_table(path: str) -> dict[str, str]:
  """Labels by id, from a CSV file with these columns; the last one counts.

  An empty label removes an earlier one, and an incomplete last line is ignored.
  Raises UserError if the file cannot be read.
  """
  try:
    with open(files.user_path(path), newline="") as file:
      return {
        line["id"]: line["label"]
        for line in csv.DictReader(file)
        if line["label"] is not None
      }
  except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"{path} is not a CSV file with columns id and label ({error!r})"
    ) from error


def of_labels(
  found: embeddings.Embeddings, labels: Mapping[int, str], where: str = "labels"
) -> Examples:
  """Examples among the images of a collection, by row.

  Raises UserError as `of_folder`.
  """
  at = list(labels)
  vectors = np.asarray(found.features[at], np.float32)
  return _checked(vectors, list(labels.values()), at, where)


def _checked(features_ExD, labels, rows, where):
  names, labels_E, counts = np.unique(
    labels, return_inverse=True, return_counts=True
  )
  if len(names) < 2:
    raise errors.UserError(
      f"{where} has {len(names)} categories with usable examples; give at least"
      " two, each a folder (one may be everything else)"
    )
  if counts.min() < 2:
    raise errors.UserError(
      f"category {str(names[counts.argmin()])!r} of {where} has one usable"
      " example; give at least two, and better five"
    )
  return Examples(
    np.asarray(features_ExD, np.float32),
    labels_E,
    tuple(map(str, names)),
    np.asarray(rows, np.int64),
  )


def shares_of(text: str, examples: Examples) -> np.ndarray:
  """Reads "harmful=0.01,other=0.99"; other categories share the rest.

  Raises UserError for an unknown category or bad shares.
  """
  shares_L = np.full(len(examples.names), np.nan)
  for each in text.split(","):
    name, _, share = each.rpartition("=")
    if name not in examples.names:
      raise errors.UserError(
        f"--shares {each}: no such category; use {', '.join(examples.names)}"
      )
    try:
      shares_L[examples.names.index(name)] = float(share)
    except ValueError:
      raise errors.UserError(f"--shares {each}: give NAME=0.01") from None
  left = 1 - np.nansum(shares_L)
  open_L = np.isnan(shares_L)
  if open_L.any():
    counts_L = np.bincount(examples.labels_E) * open_L
    shares_L = np.where(open_L, left * counts_L / counts_L.sum(), shares_L)
  if not (shares_L > 0).all() or abs(shares_L.sum() - 1) > 1e-6:
    raise errors.UserError(
      f"--shares {text}: shares must be positive and add up to 1"
    )
  return shares_L
