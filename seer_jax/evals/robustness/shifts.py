"""Accuracy on shifted versions of ImageNet, and effective robustness.

ImageNet-A, -R and ObjectNet are scored over the classes that they have, V2,
Sketch and ReaL over all; ReaL and ObjectNet have several right classes for an
image (VISSL, `robustness_out_of_distribution`). Images are seen as the weights
expect, as in timm's tables, or with VISSL's views (`eval.published_views`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from seer_jax.data import preprocessing
from seer_jax.data.published import rows as published
from seer_jax.data.published import shifted
from seer_jax.evals import accuracy, classes, context, features
from seer_jax.runtime import errors, files


class Shift(NamedTuple):
  """How a set is scored, and what standard models reach on it."""

  masked: bool  # Only classes of the set may be predicted.
  resize: int  # VISSL's shorter side, for a crop of 224.
  interpolation: str  # VISSL's.
  border: int  # Pixels to cut off at each side.
  # logit(shifted) = slope * logit(clean) + intercept, fitted to timm's results
  # of 845 or 846 models trained on ImageNet alone (docs/robustness.md).
  line: tuple[float, float] | None


SHIFTS = {
  "imagenet_a": Shift(True, 256, "bilinear", 0, (2.0733, -7.6112)),
  "imagenet_r": Shift(True, 256, "bilinear", 0, (0.7136, -2.2797)),
  "imagenet_sketch": Shift(False, 256, "bilinear", 0, (1.1236, -2.4134)),
  "imagenet_v2": Shift(False, 224, "bilinear", 0, (0.9074, -0.4749)),
  "imagenet_real": Shift(False, 224, "bilinear", 0, (1.006, 0.3852)),
  # Images have a red border of a pixel or two.
  "objectnet": Shift(True, 224, "bicubic", 2, None),
}


@dataclasses.dataclass(frozen=True)
class WithoutBorder:
  """A view of the image without some pixels at each side."""

  view: preprocessing.View
  border: int

  @property
  def shape(self) -> tuple[int, int]:
    return self.view.shape

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    border = self.border
    if min(image_HxWx3.shape[:2]) > 2 * border:
      image_HxWx3 = image_HxWx3[border:-border, border:-border]
    return self.view(image_HxWx3, index)


class Shifts:
  """Accuracy on shifted sets, and on clean images of the same classes."""

  def __init__(self, ctx: context.Context):
    """Opens the sets of `config.eval.shifts`.

    Raises UserError if there is none, or one cannot be read.
    """
    self._ctx = ctx
    if not ctx.config.eval.shifts:
      raise errors.UserError(
        "no shifted set is given; set config.eval.shifts, such as"
        f" ('imagenet_a=~/imagenet-a',), of {', '.join(SHIFTS)}"
      )
    if not ctx.class_names:
      raise errors.UserError(
        "shifted sets need the names of the classifier's classes; set"
        " config.eval.class_names to a file with one per line"
      )
    self._lines = read_baseline(ctx.config.eval.baseline)
    self._sets = {}
    for text in ctx.config.eval.shifts:
      name, _, folder = text.partition("=")
      if name not in SHIFTS or not folder:
        raise errors.UserError(
          f"config.eval.shifts has {text!r}; give NAME=FOLDER, with a name of"
          f" {', '.join(SHIFTS)}"
        )
      self._sets[name] = self._opened(name, folder)

  def _opened(self, name, folder):
    source = shifted.source(name, folder, self._ctx.images.query.source)
    images = features.ImageSet(
      source, range(len(source)), self._view(SHIFTS[name])
    )
    truth = classes.of_labels(
      source.label_names, self._ctx.class_names, SHIFTS[name].masked
    )
    return images, truth

  def _view(self, shift):
    prepared = self._ctx.encoder.preprocessing
    if self._ctx.config.eval.published_views:
      side = prepared.size
      at_224 = side <= 224
      prepared = dataclasses.replace(
        prepared,
        # At 384 VISSL resizes to 384 with "bicubic", whatever the set.
        resize=side * shift.resize // 224 if at_224 else side,
        interpolation=shift.interpolation if at_224 else "bicubic",
      )
    view = preprocessing.CleanView(prepared)
    return WithoutBorder(view, shift.border) if shift.border else view

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields `shift/NAME`, `/top5`, `/clean`, `/gap` and `/effective`.

    `clean` is the accuracy on clean images of the set's classes, masked in the
    same way, and `gap` what is lost. Effective robustness is the accuracy above
    what standard models with this clean accuracy have (Taori et al. 2020).
    """
    for name, (images, truth) in self._sets.items():
      shift = self._hits(variables, images, truth)
      clean = self._clean(variables, name, truth)
      yield f"shift/{name}", shift[0]
      yield f"shift/{name}/top5", shift[1]
      yield f"shift/{name}/clean", clean
      yield f"shift/{name}/gap", clean - shift[0]
      line = self._lines.get(name, SHIFTS[name].line)
      if line:
        yield f"shift/{name}/effective", effective(clean, shift[0], line)

  def _clean(self, variables, name, truth):
    """Accuracy on the test images whose class the shifted set has."""
    ctx = self._ctx
    source = ctx.images.query.source
    clean = classes.of_labels(source.label_names, ctx.class_names)
    indices = ctx.images.query.indices
    if SHIFTS[name].masked:
      clean = clean._replace(allowed_C=truth.allowed_C)
      is_shared_L = (clean.right_LxC & truth.allowed_C).any(1)
      indices = [i for i in indices if is_shared_L[source.label_of(i)]]
    if not len(indices):
      raise errors.UserError(
        f"no clean test image has a class of {name}; give ImageNet's validation"
        " images as --test"
      )
    images = features.ImageSet(source, indices)
    return self._hits(variables, images, clean)[0]

  def _hits(self, variables, images, truth):
    of_logits = accuracy.Accuracy(
      self._ctx.encoder,
      self._ctx.mesh,
      images,
      truth=truth,
      **self._ctx.options,
    )
    found = of_logits.hits(variables, images)
    return float(found.top1_HxN[0].mean()), float(found.top5_HxN[0].mean())


def effective(clean: float, shift: float, line: tuple[float, float]) -> float:
  """Accuracy under a shift, less that of the line at the clean accuracy.

  The line is one of log odds: (slope, intercept).
  """
  clean = min(max(clean, 1e-6), 1 - 1e-6)
  odds = line[0] * np.log(clean / (1 - clean)) + line[1]
  return float(shift - 1 / (1 + np.exp(-odds)))


def fitted(clean_M: np.ndarray, shift_M: np.ndarray) -> tuple[float, float]:
  """The least-squares line through the log odds of several models."""
  odds = [
    np.log(x / (1 - x)) for x in np.clip((clean_M, shift_M), 1e-6, 1 - 1e-6)
  ]
  slope, intercept = np.polyfit(*odds, 1)
  return float(slope), float(intercept)


def read_baseline(path: str) -> dict[str, tuple[float, float]]:
  """Lines through the models of a CSV with columns shift, clean, shifted.

  Accuracies are from 0 to 1. "" gives no lines. Raises UserError if it is
  malformed, or a shift has fewer than two models.
  """
  if not path:
    return {}
  rows = published.read_csv(files.user_path(path))
  points: dict[str, list[tuple[float, float]]] = {}
  try:
    for row in rows:
      point = float(row["clean"]), float(row["shifted"])
      if not all(0 <= each <= 1 for each in point):
        raise ValueError(f"accuracies {point}, not from 0 to 1")
      points.setdefault(row["shift"], []).append(point)
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"{path} is no baseline ({errors.one_line(error)}); it needs the columns"
      " shift, clean and shifted, with accuracies from 0 to 1"
    ) from None
  for name, found in points.items():
    if len({clean for clean, _ in found}) < 2:
      raise errors.UserError(
        f"{path}: a line needs models of two or more clean accuracies, but"
        f" {name} has one"
      )
  return {name: fitted(*np.array(found).T) for name, found in points.items()}
