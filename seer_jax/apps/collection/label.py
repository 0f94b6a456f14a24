"""A classifier of a collection, from a few examples of each category.

A linear classifier of frozen embeddings, with calibrated probabilities
(cross-validation and temperature scaling, Guo et al. 2017) and, for each
category, a threshold of acceptance chosen for a wanted precision.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from seer_jax.apps.collection import kmeans
from seer_jax.apps.collection.examples import Examples
from seer_jax.apps.embedding import vectors
from seer_jax.runtime import errors

# Folds of the examples, at most.
_FOLDS = 5
_BINS = 15
# Most images that `ask` chooses among.
_POOL = 50_000


class HeldOut(NamedTuple):
  """Accepted examples, weighted by the frequency of their categories."""

  count: int
  right: float  # Share that is right.
  low: float  # Wilson's 90 % interval of that share.
  high: float


class Predictions(NamedTuple):
  """Predictions of a classifier for a collection."""

  probability_NxL: np.ndarray  # Calibrated.
  # Least probability of an accepted prediction; infinite if none is accepted.
  threshold_L: np.ndarray
  held_out: HeldOut  # Of the examples accepted in cross-validation.
  held_out_accuracy: float  # Of all examples in cross-validation.
  held_out_ece: float  # Their expected calibration error.

  @property
  def confidence(self) -> np.ndarray:
    """Largest probability of each image: N."""
    return self.probability_NxL.max(1)

  @property
  def category(self) -> np.ndarray:
    """Number of the most probable category of each image: N."""
    return self.probability_NxL.argmax(1)

  @property
  def accepted(self) -> np.ndarray:
    """Whether the confidence reaches the category's threshold: N."""
    return self.confidence >= self.threshold_L[self.category]


def predict(
  examples: Examples,
  features_NxD: np.ndarray,
  precision: float = 0.95,
  shares_L: np.ndarray | None = None,
) -> Predictions:
  """Classifies vectors by examples.

  Raises UserError if the precision is not between 0 and 1.

  Args:
    examples: at least two of each category.
    features_NxD: of the collection.
    precision: wanted of the accepted predictions.
    shares_L: frequencies of the categories in the collection; None is as among
      the examples. Rare categories get lower probabilities.
  """
  if not 0 < precision < 1:
    raise errors.UserError(
      f"precision is {precision:g}; it must be above 0 and below 1, as 0.95"
    )
  from seer_jax.evals import low_shot

  # Unit length, as in search.
  x_ExD, labels_E = vectors.unit(examples.features_ExD), examples.labels_E
  classifier = low_shot.logistic(x_ExD, labels_E)
  held_out_ExL = _held_out(classifier, x_ExD, labels_E)
  temperature = _temperature(held_out_ExL, labels_E)
  held_out_ExL = _softmax(held_out_ExL / temperature)
  probability_NxL = _softmax(_logits(classifier, features_NxD) / temperature)
  before_L = np.bincount(labels_E) / len(labels_E)
  weights_L = (before_L if shares_L is None else shares_L) / before_L
  probability_NxL = _reweighted(probability_NxL, weights_L)
  # Examples are weighted by the frequency of their category.
  confidence_ExL = _reweighted(held_out_ExL, weights_L)
  threshold_L = np.array(
    [
      _threshold(
        probability_NxL,
        confidence_ExL,
        labels_E,
        weights_L[labels_E],
        number,
        precision,
      )
      for number in range(len(weights_L))
    ]
  )
  guess_E = confidence_ExL.argmax(1)
  sure_E = confidence_ExL.max(1) >= threshold_L[guess_E]
  return Predictions(
    probability_NxL,
    threshold_L,
    _held_out_ones(guess_E == labels_E, sure_E, weights_L[labels_E]),
    float(np.mean(held_out_ExL.argmax(1) == labels_E)),
    calibration_error(held_out_ExL, labels_E),
  )


def _held_out(classifier, x_ExD, labels_E):
  """Logits of each example by a classifier fitted without it."""
  from sklearn import base, model_selection

  folds = min(_FOLDS, int(np.bincount(labels_E).min()))
  split = model_selection.StratifiedKFold(folds, shuffle=True, random_state=0)
  logits_ExL = np.zeros((len(labels_E), labels_E.max() + 1))
  for inside, outside in split.split(x_ExD, labels_E):
    fitted = base.clone(classifier).fit(x_ExD[inside], labels_E[inside])
    logits_ExL[outside] = _logits(fitted, x_ExD[outside])
  return logits_ExL


def _logits(classifier, x_NxD, part=2**14):
  """Logits of vectors, in parts; two columns for two categories."""
  found = [
    classifier.decision_function(vectors.unit(x_NxD[first : first + part]))
    for first in range(0, len(x_NxD), part)
  ]
  logits = np.concatenate(found).astype(np.float64)
  if logits.ndim == 1:
    logits = np.stack([np.zeros_like(logits), logits], 1)
  return logits


def _temperature(logits_ExL, labels_E):
  """The divisor of logits that makes the labels most probable.

  Targets are smoothed: E correct examples justify odds of at most E + 1 to 1.
  """
  from scipy import optimize

  count, classes = logits_ExL.shape
  doubt = 1 / (count + 2)
  target_ExL = np.eye(classes)[labels_E] * (1 - doubt) + doubt / classes

  def loss(log_temperature):
    p_ExL = _softmax(logits_ExL / np.exp(log_temperature))
    return -np.mean(np.sum(target_ExL * np.log(np.maximum(p_ExL, 1e-12)), 1))

  return float(np.exp(optimize.minimize_scalar(loss, bounds=(-4, 4)).x))


def _softmax(logits_NxL):
  shifted = logits_NxL - logits_NxL.max(1, keepdims=True)
  exponential = np.exp(shifted)
  return exponential / exponential.sum(1, keepdims=True)


def _reweighted(probability_NxL, weights_L):
  p_NxL = probability_NxL * weights_L
  return p_NxL / p_NxL.sum(1, keepdims=True)


def _threshold(
  probability_NxL, held_out_ExL, labels_E, weight_E, number, precision
):
  """The least probability from which a category is precise enough.

  Both the probabilities of the collection and the held-out examples must reach
  the precision.
  """
  confidence_N = probability_NxL[probability_NxL.argmax(1) == number, number]
  order = np.sort(confidence_N)[::-1]
  means = np.cumsum(order) / np.arange(1, len(order) + 1)
  enough = np.flatnonzero(means >= precision)
  guessed = np.flatnonzero(held_out_ExL.argmax(1) == number)
  rank = guessed[np.argsort(-held_out_ExL[guessed, number], kind="stable")]
  share = np.cumsum(weight_E[rank] * (labels_E[rank] == number))
  share /= np.maximum(np.cumsum(weight_E[rank]), 1e-12)
  precise = np.flatnonzero(share >= precision)
  if not len(enough) or not len(precise):
    return np.inf
  return max(order[enough[-1]], held_out_ExL[rank[precise[-1]], number])


def _held_out_ones(right_E, sure_E, weight_E, z=1.645):
  weight = weight_E[sure_E]
  if not len(weight):
    return HeldOut(0, 0.0, 0.0, 1.0)
  share = float(np.average(right_E[sure_E], weights=weight))
  # Effective number of examples (Kish).
  count = weight.sum() ** 2 / np.square(weight).sum()
  square = z * z / count
  middle = (share + square / 2) / (1 + square)
  spread = share * (1 - share) / count + square / (4 * count)
  reach = z / (1 + square) * spread**0.5
  return HeldOut(
    len(weight), share, float(middle - reach), float(middle + reach)
  )


def calibration_error(
  probability_NxL: np.ndarray, labels_N: np.ndarray, bins: int = _BINS
) -> float:
  """Expected calibration error of the largest probability, equal bins."""
  confidence_N = probability_NxL.max(1)
  right_N = probability_NxL.argmax(1) == labels_N
  bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
  gaps = [
    abs(np.sum(right_N[bin_N == b]) - np.sum(confidence_N[bin_N == b]))
    for b in range(bins)
  ]
  return float(np.sum(gaps) / len(labels_N))


def ask(
  predictions: Predictions,
  features_NxD: np.ndarray,
  known_rows: Sequence[int],
  count: int,
) -> np.ndarray:
  """Rows of the images whose labels would help most.

  With few labels, typical images of uncovered regions help most (Hacohen et al.
  2022): of as many clusters as there will be labels, those without a label and
  with the most uncertainty give the image nearest to their centre. Uncertainty
  is one less the margin of the two most probable categories.
  """
  best_Nx2 = np.sort(predictions.probability_NxL, 1)[:, -2:]
  doubt_N = 1 - (best_Nx2[:, 1] - best_Nx2[:, 0])
  known = np.unique([row for row in known_rows if row >= 0]).astype(np.int64)
  rows = np.arange(len(doubt_N))
  if len(rows) > _POOL:
    some = np.random.default_rng(0).permutation(rows)[:_POOL]
    rows = np.union1d(some, known)
  count = min(count, len(rows) - len(known))
  if count < 1:
    return np.empty(0, np.int64)
  found = kmeans.spherical_kmeans(features_NxD[rows], len(known) + count)
  cluster_N, total = found.cluster_N, len(found.centre_KxD)
  # By cluster, the nearest to the centre first.
  order = np.lexsort((-found.similarity_N, cluster_N))
  first_K = order[np.searchsorted(cluster_N[order], np.arange(total))]
  doubt_K = np.bincount(cluster_N, doubt_N[rows], total)
  doubt_K[cluster_N[np.searchsorted(rows, known)]] = -1
  doubt_K[found.sizes == 0] = -1
  chosen = np.argsort(-doubt_K, kind="stable")[:count]
  return rows[first_K[chosen[doubt_K[chosen] >= 0]]]
