"""Accuracy under common corruptions, and the mean corruption error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seer_jax.evals import accuracy, context, features, knn
from seer_jax.evals.robustness import corruptions
from seer_jax.runtime import errors

# Error of AlexNet on ImageNet-C in percent, the mean over strengths, by which
# the mean corruption error divides (Hendrycks & Dietterich 2019, appendix).
ALEXNET = {
  "gaussian_noise": 88.6,
  "shot_noise": 89.4,
  "impulse_noise": 92.3,
  "defocus_blur": 82.0,
  "glass_blur": 82.6,
  "motion_blur": 78.6,
  "zoom_blur": 79.8,
  "snow": 86.7,
  "frost": 82.7,
  "fog": 81.9,
  "brightness": 56.5,
  "contrast": 85.3,
  "elastic_transform": 64.6,
  "pixelate": 71.8,
  "jpeg_compression": 60.7,
}

# (variables, images) -> (index of each image, whether it is recognized)
Judge = Callable[[Any, features.ImageSet], tuple[np.ndarray, np.ndarray]]


class CorruptionError:
  """Accuracy of a classifier, or of kNN with a clean bank, by corruption."""

  def __init__(self, ctx: context.Context, truth: Any = None):
    """Raises UserError if there is no such corruption."""
    self._ctx = ctx
    self._kinds = ctx.config.eval.corruptions or tuple(corruptions.KINDS)
    unknown = [each for each in self._kinds if each not in corruptions.KINDS]
    if unknown:
      raise errors.UserError(
        f"config.eval.corruptions has {unknown[0]!r}, which does not exist; use"
        f" {', '.join(corruptions.KINDS)}"
      )
    self._severities = ctx.config.eval.severities
    is_classifier = bool(getattr(ctx.encoder, "classes", 0))
    self._judge = _by_logits(ctx, truth) if is_classifier else _by_knn(ctx)

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields `corruptions/clean`, `corruptions/fog`, the mean over strengths.

    `corruptions/fog/5` is of one strength. `summary` has the means over kinds.
    """
    ctx, found = self._ctx, {}
    query = ctx.images.query
    index_N, right_N = self._judge(variables, query)
    found["corruptions/clean"] = float(right_N.mean())
    yield "corruptions/clean", found["corruptions/clean"]
    yield from ctx.split("corruptions/clean", index_N, right_N)
    for kind in self._kinds:
      by_severity = []
      for severity in self._severities:
        view = corruptions.Corrupted(
          query.view_for(ctx.encoder), kind, severity
        )
        images = features.ImageSet(query.source, query.indices, view)
        index_N, right_N = self._judge(variables, images)
        by_severity.append(right_N)
        yield f"corruptions/{kind}/{severity}", float(right_N.mean())
      mean_N = np.mean(by_severity, 0)
      found[f"corruptions/{kind}"] = float(mean_N.mean())
      yield f"corruptions/{kind}", found[f"corruptions/{kind}"]
      yield from ctx.split(f"corruptions/{kind}", index_N, mean_N)
    if len(self._kinds) > 1:
      is_same = is_imagenet(ctx.encoder, query, self._severities)
      yield from summary(found, is_same).items()


def summary(
  figures: Mapping[str, float], as_published: bool
) -> dict[str, float]:
  """Means over the kinds that figures have: {name: value}.

  `corruptions/mean` is accuracy, `corruptions/kept` its share of the clean one.
  If the test is the published one (`is_imagenet`) and all 15 kinds are there,
  `corruptions/mce` is the mean corruption error, each kind's error divided by
  AlexNet's.
  """
  by_kind = {
    kind: figures[f"corruptions/{kind}"]
    for kind in corruptions.KINDS
    if f"corruptions/{kind}" in figures
  }
  mean = float(np.mean(list(by_kind.values())))
  found = {"corruptions/mean": mean}
  if figures.get("corruptions/clean"):
    found["corruptions/kept"] = mean / figures["corruptions/clean"]
  if as_published and len(by_kind) == len(corruptions.KINDS):
    found["corruptions/mce"] = mce(by_kind)
  return found


def mce(accuracy_by_kind: Mapping[str, float]) -> float:
  """The mean corruption error, where 1 is AlexNet's."""
  return float(
    np.mean(
      [100 * (1 - accuracy_by_kind[k]) / error for k, error in ALEXNET.items()]
    )
  )


def is_imagenet(
  encoder: features.Encoder,
  images: features.ImageSet,
  severities: Sequence[int],
) -> bool:
  """Whether the published errors of AlexNet are of the same test."""
  return (
    getattr(encoder, "classes", 0) == 1000
    and len(images.source.label_names) == 1000
    and sorted(severities) == [1, 2, 3, 4, 5]
  )


def _by_logits(ctx, truth) -> Judge:
  of_logits = accuracy.Accuracy(
    ctx.encoder, ctx.mesh, ctx.images.query, truth=truth, **ctx.options
  )

  def judge(variables, images):
    found = of_logits.hits(variables, images)
    return found.index_N, found.top1_HxN[0]

  return judge


def _by_knn(ctx) -> Judge:
  options = ctx.config.eval

  def judge(variables, images):
    bank = ctx.extract(variables, ctx.images.bank)
    if images is ctx.images.query:
      query = ctx.extract(variables, images)
    else:
      # Not kept on disk: 75 sets of features would fill it.
      query = ctx.extract.of_rows(variables, images)
    found = knn.hits(
      bank,
      query,
      options.knn_k[:1],
      options.knn_temperature[:1],
      options.knn_metric[0],
      ctx.mesh,
    )
    ((right_N, _),) = found.values()
    return query.labelled().index_N, right_N

  return judge
