"""Classifiers from few labels, on frozen features, by scikit-learn.

Logistic regression and one-against-rest linear SVMs (VISSL's `low_shot_test`
and `train_svm`; Goyal et al. 2019, section 4). Their costs are chosen by
cross-validation within the labels that they learn from; VISSL's own script
chooses them on the test set.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn import (
  exceptions,
  linear_model,
  model_selection,
  pipeline,
  preprocessing,
)
from sklearn import svm as sklearn_svm

from seer_jax.evals import features
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors

# Of logistic regression. VISSL's are larger by the number of images, which
# hardly regularizes with few labels.
LOGISTIC_COSTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Of SVMs: VISSL's for VOC07.
COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
_FOLDS = 3
# Most labels to choose a cost by; more would not change it.
_CHOOSE_BY = 4_000

# (features_NxD, labels_N) -> something with `predict`.
Fit = Callable[[np.ndarray, np.ndarray], Any]


class Labels(NamedTuple):
  """How many labels to learn from."""

  name: str  # For people: "1%" or "5-shot".
  share: float = 0.0  # Of all labels; 0 if `shots` is set.
  shots: int = 0  # Of each label.


def percent(share: float) -> Labels:
  """A share of all labels, the same for each class."""
  return Labels(f"{100 * share:g}%", share=share)


def shots(count: int) -> Labels:
  """So many of each class."""
  return Labels(f"{count}-shot", shots=count)


class LowShot:
  """Accuracy of a classifier on frozen features, for numbers of labels."""

  def __init__(
    self,
    extract: features.Extractor,
    bank: features.ImageSet,
    query: features.ImageSet,
    name: str,
    fit: Fit,
    wanted: Sequence[Labels],
    seeds: int,
    tap: str | None = None,
    split: rates.Split = rates.no_split,
  ):
    """Takes labels from `bank`, and tests on all of `query`."""
    self._split = split
    self._extract, self._bank, self._query = extract, bank, query
    self._name, self._fit, self._tap = name, fit, tap
    self._wanted, self._seeds = wanted, seeds

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`logistic/1%`, mean accuracy over seeds), ...

    With several seeds, `logistic/1%/std` is their standard deviation. All
    labels together are drawn only once.
    """
    bank, query = (
      self._extract(variables, images, self._tap).labelled()
      for images in (self._bank, self._query)
    )
    for labels in self._wanted:
      seeds = 1 if labels.share == 1 else self._seeds
      found = []
      for seed in range(seeds):
        self._extract.between()
        found.append(hits(bank, query, self._fit, labels, seed))
      name = f"{self._name}/{labels.name}"
      means = [float(np.mean(hits_Q)) for hits_Q in found]
      yield name, float(np.mean(means))
      if seeds > 1:
        yield f"{name}/std", float(np.std(means, ddof=1))
      yield from self._split(name, query.index_N, np.mean(found, 0))


def accuracy(
  bank: features.Features,
  query: features.Features,
  fit: Fit,
  labels: Labels,
  seed: int,
) -> float:
  """Top-1 accuracy, the mean of `hits`."""
  return float(np.mean(hits(bank, query, fit, labels, seed)))


def hits(
  bank: features.Features,
  query: features.Features,
  fit: Fit,
  labels: Labels,
  seed: int,
) -> np.ndarray:
  """Whether a classifier fitted to some labels of the bank is right, by query.

  Raises UserError if there are too few images, or fewer than two classes.
  """
  _check_classes(query.labels_N, "the test set")
  rows = draw(bank.labels_N, labels, seed)
  some = bank.only(rows)
  _check_classes(some.labels_N, f"{labels.name} of the labels")
  classifier = fit(some.features_NxD, some.labels_N)
  return classifier.predict(query.features_NxD) == query.labels_N


def draw(labels_N: np.ndarray, labels: Labels, seed: int) -> np.ndarray:
  """Rows of a sample of labels, in rising order, by a seed.

  Each class gives its share, and at least one. A larger share with the same
  seed contains a smaller one. Raises UserError if a class has too few images.
  """
  rng = np.random.default_rng(seed)
  chosen = []
  for label in np.unique(labels_N[labels_N >= 0]):
    rows = rng.permutation(np.flatnonzero(labels_N == label))
    count = labels.shots or max(1, round(labels.share * len(rows)))
    if count > len(rows):
      raise errors.UserError(
        f"{labels.name} needs {count} images of each label, but label {label}"
        f" has {len(rows)}; reduce config.eval.shots"
      )
    chosen.append(rows[:count])
  if not chosen:
    raise errors.UserError(
      "no image to learn from has a label; give labelled images"
    )
  return np.sort(np.concatenate(chosen))


def _check_classes(labels_N, where):
  classes = np.unique(labels_N)
  if len(classes) < 2:
    raise errors.UserError(
      f"{where} has {len(classes)} class, but accuracy needs 2 or more; put the"
      " images of each class into a folder of its own"
    )


def logistic(
  features_NxD: np.ndarray,
  labels_N: np.ndarray,
  costs: Sequence[float] = LOGISTIC_COSTS,
) -> Any:
  """Multinomial logistic regression on standardized features, L2."""

  def of(cost):
    return pipeline.make_pipeline(
      preprocessing.StandardScaler(),
      linear_model.LogisticRegression(C=cost, max_iter=200),
    )

  return _best(of, costs, features_NxD, labels_N)


def svm(features_NxD: np.ndarray, labels_N: np.ndarray) -> Any:
  """One-against-rest linear SVMs on L2-normalized features, as in VISSL."""

  def of(cost):
    return pipeline.make_pipeline(preprocessing.Normalizer(), _linear_svc(cost))

  return _best(of, COSTS, features_NxD, labels_N)


def _linear_svc(cost, **others):
  return sklearn_svm.LinearSVC(
    C=cost, dual=True, tol=1e-4, max_iter=2000, random_state=0, **others
  )


def _best(of, values, features_NxD, labels_N):
  """Fits with the value that is best in cross-validation of the labels.

  With one image of a class nothing can be held out, and the middle value is
  used.
  """
  features_NxD = np.asarray(features_NxD, np.float32)
  counts = np.unique(labels_N, return_counts=True)[1]
  folds = min(_FOLDS, int(counts.min()))
  value = values[len(values) // 2]
  with warnings.catch_warnings():
    # A cost that needs more steps than allowed has a worse score.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    if folds > 1 and len(values) > 1:
      split = model_selection.StratifiedKFold(
        folds, shuffle=True, random_state=0
      )
      order = np.random.default_rng(0).permutation(len(labels_N))
      some = order[:_CHOOSE_BY]
      scores = [
        model_selection.cross_val_score(
          of(each), features_NxD[some], labels_N[some], cv=split
        ).mean()
        for each in values
      ]
      value = values[int(np.argmax(scores))]
    return of(value).fit(features_NxD, labels_N)


def voc_svms(
  features_NxD: np.ndarray,
  targets_NxL: np.ndarray,
  test_features_MxD: np.ndarray,
  test_targets_MxL: np.ndarray,
  costs: Sequence[float] = COSTS,
) -> np.ndarray:
  """VOC07's protocol: an SVM per class; the average precisions, ap_L.

  Features are divided by their norm + 1e-5; a positive weighs twice; the cost
  of each class is the best in 3-fold cross-validation of its AP (VISSL,
  `tools/train_svm.py`). Targets are 1 if the class is in the image, -1 if not,
  and 0 if that is difficult to say, which leaves the image out. The mean of
  ap_L is the published figure. Raises UserError if a class has fewer than three
  positives or negatives.
  """
  train, test = (
    x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)
    for x in (features_NxD, test_features_MxD)
  )
  found = []
  for label, (target_N, test_target_M) in enumerate(
    zip(targets_NxL.T, test_targets_MxL.T, strict=True)
  ):
    x, y = train[target_N != 0], target_N[target_N != 0] > 0
    if min(y.sum(), (~y).sum()) < _FOLDS:
      raise errors.UserError(
        f"class {label} has {y.sum()} positives and {(~y).sum()} negatives; a"
        f" cross-validated cost needs {_FOLDS} of each"
      )
    cost = max(costs, key=lambda cost: _cross_validated_ap(x, y, cost))
    machine = _fit_quietly(_linear_svc(cost, class_weight={1: 2, 0: 1}), x, y)
    known = test_target_M != 0
    scores = machine.decision_function(test[known])
    found.append(voc07_ap(scores, test_target_M[known] > 0))
  return np.array(found)


def _cross_validated_ap(x, y, cost):
  split = model_selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
  found = []
  for inside, outside in split.split(x, y):
    machine = _linear_svc(cost, class_weight={1: 2, 0: 1})
    _fit_quietly(machine, x[inside], y[inside])
    found.append(voc07_ap(machine.decision_function(x[outside]), y[outside]))
  return np.mean(found)


def _fit_quietly(machine, x, y):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    return machine.fit(x, y)


def voc07_ap(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
  """VOC 2007's average precision: over the recalls 0, 0.1, ..., 1.

  The mean of the highest precision at each of these recalls or beyond
  (Everingham et al. 2010, section 4.2). Of equal scores the first ranks first.
  """
  positive_N = np.asarray(positive_N, bool)
  if not positive_N.any():
    return 0.0
  order = np.argsort(-np.asarray(scores_N), kind="stable")
  hits = np.cumsum(positive_N[order])
  recall = hits / positive_N.sum()
  precision = hits / np.arange(1, len(hits) + 1)
  # Recalls are ratios of whole numbers, so 3 / 10 must reach 0.3.
  return float(
    np.mean(
      [
        precision[recall >= level / 10 - 1e-12].max(initial=0)
        for level in range(11)
      ]
    )
  )
