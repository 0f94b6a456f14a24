"""Harmful label associations: SEER's first fairness indicator.

How often a classifier associates a person with labels that must not be (Goyal
et al. 2022, "Fairness Indicators for Systematic Assessments of Visual Feature
Extractors"). An image has a bucket at threshold t if one of its
top five labels is in the bucket with a probability of t or more.
"""

import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from seer_jax.evals import context
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors, files

_log = logging.getLogger(__name__)

# The files of the package, by name.
SHIPPED = {
  "": "buckets.toml",
  "casual_conversations": "buckets.toml",
  "miap": "buckets_miap.toml",
}


class Buckets(NamedTuple):
  """Labels to count."""

  top: int  # Labels of an image that are looked at.
  thresholds: Sequence[float]  # Least probabilities.
  buckets: Mapping[str, Sequence[str]]  # Labels of each bucket.
  labels: Mapping[str, float]  # Single labels, and the threshold of each.


def read_buckets(path: str) -> Buckets:
  """Reads a TOML file, or one of `SHIPPED`.

  Raises UserError if it is malformed.
  """
  if path in SHIPPED:
    where = resources.files("seer_jax.evals.fairness") / SHIPPED[path]
    text = where.read_text()
  else:
    with errors.reading(path):
      text = files.user_path(path).read_text(errors="replace")
  try:
    found = tomllib.loads(text)
    buckets = Buckets(
      int(found["top"]),
      [float(each) for each in found["thresholds"]],
      {name: list(labels) for name, labels in found["buckets"].items()},
      {name: float(t) for name, t in found.get("labels", {}).items()},
    )
  except tomllib.TOMLDecodeError as error:
    raise errors.UserError(f"{path} is not TOML: {error}") from None
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise errors.UserError(
      f"{path} has no valid {errors.one_line(error)}; it needs top, thresholds"
      " and a table [buckets] of lists, as evals/fairness/buckets.toml"
    ) from None
  if not (buckets.top > 0 and buckets.thresholds and buckets.buckets):
    raise errors.UserError(
      f"{path} has an empty top, thresholds or [buckets]; give at least one"
    )
  return buckets


class Associations:
  """Rates of the buckets, of single labels, and both by group."""

  def __init__(self, ctx: context.Context):
    """Raises UserError if no label of any bucket is one of the classes."""
    if not ctx.class_names:
      raise errors.UserError(
        "associations need the names of the classifier's classes; set"
        " config.eval.class_names to a file with one per line"
      )
    self._wanted = read_buckets(ctx.config.eval.buckets)
    self._extract, self._query = ctx.extractor(("logits",)), ctx.images.query
    self._split = ctx.split
    self._classes = classes_of(self._wanted.buckets, ctx.class_names)
    self._single = {
      name: _numbers([name], ctx.class_names) for name in self._wanted.labels
    }

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`associations/BUCKET/t=0.1`, share of the images), ...

    Single labels are `associations/label LABEL/t=0.2`; of each group, `excess`
    is its rate less the mean rate of the other groups.
    """
    found = self._extract.of(variables, self._query)
    top_NxK, p_NxK = top(found.features_NxD, self._wanted.top)
    for threshold in self._wanted.thresholds:
      for name, classes in self._classes.items():
        has_N = associated(top_NxK, p_NxK, classes, threshold)
        label = f"associations/{name}/t={threshold:g}"
        yield label, float(has_N.mean())
        yield from self._split(label, found.index_N, has_N, True)
    for name, threshold in self._wanted.labels.items():
      if not self._single[name]:
        continue
      has_N = associated(top_NxK, p_NxK, self._single[name], threshold)
      label = f"associations/label {name}/t={threshold:g}"
      yield label, float(has_N.mean())
      figures = list(self._split(label, found.index_N, has_N, True))
      yield from figures
      yield from excess(figures)


def top(logits_NxC: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The `count` most probable classes, and their probabilities: NxK each."""
  tops, probabilities = [], []
  for first in range(0, len(logits_NxC), 4096):
    part = np.asarray(logits_NxC[first : first + 4096], np.float64)
    part = np.exp(part - part.max(1, keepdims=True))
    part /= part.sum(1, keepdims=True)
    order = np.argsort(-part, 1, kind="stable")[:, :count]
    tops.append(order)
    probabilities.append(np.take_along_axis(part, order, 1))
  return np.concatenate(tops), np.concatenate(probabilities)


def associated(
  top_NxK: np.ndarray,
  p_NxK: np.ndarray,
  classes: Sequence[int],
  threshold: float,
) -> np.ndarray:
  """Whether one of some classes is predicted with the threshold or more: N."""
  return (np.isin(top_NxK, classes) & (p_NxK >= threshold)).any(1)


def excess(
  figures: Sequence[tuple[str, float]],
) -> Iterator[tuple[str, float]]:
  """Each group's rate less the mean of the other groups of its column."""
  columns: dict[str, dict[str, float]] = {}
  for name, value in figures:
    above, _, last = name.rpartition("/")
    column, is_group, group = last.partition("=")
    if is_group and group != rates.UNKNOWN:
      columns.setdefault(f"{above}/{column}", {})[name] = value
  for groups in columns.values():
    if len(groups) > 1:
      for name, value in groups.items():
        others = [each for key, each in groups.items() if key != name]
        yield f"{name}/excess", value - float(np.mean(others))


def classes_of(
  buckets: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, list[int]]:
  """The classes of each bucket; labels match names of classes in any case.

  A class such as "hog, pig" has several names. Buckets without a class are left
  out, with a warning. Raises UserError if all are.
  """
  found = {}
  for bucket, labels in buckets.items():
    unknown = [each for each in labels if not _numbers([each], names)]
    if len(unknown) < len(labels):
      found[bucket] = _numbers(labels, names)
    if unknown:
      _log.warning(
        "bucket %s%s: the classifier has no class %s",
        bucket,
        "" if bucket in found else " is left out",
        ", ".join(unknown[:8]) + ", ..." * (len(unknown) > 8),
      )
  if not found:
    some = ", ".join(errors.shown(name) for name in names[:3])
    raise errors.UserError(
      f"no label of the buckets is one of the {len(names)} classes ({some},"
      " ...); give a file with labels that are as config.eval.buckets"
    )
  return found


def _numbers(labels, names):
  wanted = {label.strip().lower() for label in labels}
  return [
    at
    for at, name in enumerate(names)
    if wanted & {each.strip().lower() for each in (name, *name.split(","))}
  ]
