"""Features compared with raw pixels, on a sample of images."""

from typing import NamedTuple

import numpy as np

from seer_jax.apps.report.sample import Sample
from seer_jax.evals import features, knn

# Cost of logistic regression; an evaluation would choose among several.
_COST = 0.01


class Accuracy(NamedTuple):
  """Top-1 accuracy of a classifier, on features and on pixels."""

  name: str
  features: float
  pixels: float


class Worth(NamedTuple):
  """Accuracies, kNN first, and the number of test images."""

  rows: list[Accuracy]
  queries: int


def measure(sample: Sample) -> Worth | None:
  """Accuracy of kNN and of a linear classifier; None if labels are missing."""
  bank, query = sample.bank.labels_N, sample.query.labels_N
  if len(np.unique(bank[bank >= 0])) < 2 or (query < 0).all():
    return None
  sets = [
    [part.as_features().labelled() for part in (sample.bank, sample.query)],
    [part.as_pixels().labelled() for part in (sample.bank, sample.query)],
  ]
  return Worth(
    [
      Accuracy("kNN (k = 20)", *(_knn(*each) for each in sets)),
      Accuracy("Linear classifier", *(_linear(*each) for each in sets)),
    ],
    int((query >= 0).sum()),
  )


def _knn(bank: features.Features, query: features.Features) -> float:
  ((top1, _),) = knn.accuracies(bank, query, (20,), (0.1,)).values()
  return top1


def _linear(bank: features.Features, query: features.Features) -> float:
  # scikit-learn takes a second to import; a page without pictures needs none.
  from seer_jax.evals import low_shot

  def fit(features_NxD, labels_N):
    return low_shot.logistic(features_NxD, labels_N, (_COST,))

  return low_shot.accuracy(bank, query, fit, low_shot.percent(1.0), 0)
