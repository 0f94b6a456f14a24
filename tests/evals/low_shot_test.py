import numpy as np
import pytest
from sklearn import metrics

from seer_jax.evals import features, low_shot
from seer_jax.runtime import errors


def clusters(count, seed, classes=3, spread=0.5):
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(99).normal(size=(classes, 8)) * 2
  labels = rng.integers(0, classes, count)
  x = centres[labels] + spread * rng.normal(size=(count, 8))
  return features.Features(x.astype(np.float32), labels)


def test_average_precision_of_a_worked_example():
  # Ranked: + - + - - +. Precision at the hits: 1/1, 2/3, 3/6. Recall reaches
  # 1/3, 2/3, 1; so of the eleven recalls 0 to 0.3 have 1, 0.4 to 0.6 have 2/3,
  # 0.7 to 1 have 1/2.
  scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
  positive = [1, 0, 1, 0, 0, 1]
  wanted = (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11
  assert low_shot.voc07_ap(scores, positive) == pytest.approx(wanted)


def test_average_precision_reaches_tenths_exactly():
  # Ten positives in front of ten negatives: every recall has precision 1.
  assert low_shot.voc07_ap(-np.arange(20), np.arange(20) < 10) == 1
  assert low_shot.voc07_ap(np.arange(3), np.zeros(3)) == 0


def test_average_precision_is_near_the_area_for_many_images():
  rng = np.random.default_rng(0)
  positive = rng.random(5000) < 0.2
  scores = positive + rng.normal(size=5000)
  area = metrics.average_precision_score(positive, scores)
  assert low_shot.voc07_ap(scores, positive) == pytest.approx(area, abs=0.03)


def test_draws_are_nested_balanced_and_of_a_seed():
  labels = np.repeat(np.arange(4), (100, 50, 10, 3))
  small, large = (
    low_shot.draw(labels, low_shot.percent(share), 1) for share in (0.1, 0.5)
  )
  assert set(small) <= set(large)
  assert np.bincount(labels[small]).tolist() == [10, 5, 1, 1]
  again = low_shot.draw(labels, low_shot.percent(0.1), 1)
  other = low_shot.draw(labels, low_shot.percent(0.1), 2)
  assert again.tolist() == small.tolist() != other.tolist()
  shots = low_shot.draw(labels, low_shot.shots(3), 0)
  assert np.bincount(labels[shots]).tolist() == [3, 3, 3, 3]


def test_more_shots_than_images_are_refused():
  with pytest.raises(errors.UserError, match="label 1 has 3; reduce"):
    low_shot.draw(np.repeat([0, 1], (9, 3)), low_shot.shots(4), 0)


def test_one_class_is_refused():
  bank, query = clusters(60, 0), clusters(30, 1)
  query.labels_N[:] = 2
  with pytest.raises(errors.UserError, match="test set has 1 class"):
    low_shot.accuracy(bank, query, low_shot.svm, low_shot.percent(1), 0)


@pytest.mark.parametrize("fit", [low_shot.logistic, low_shot.svm])
@pytest.mark.parametrize(
  "labels", [low_shot.shots(1), low_shot.shots(5), low_shot.percent(1)]
)
def test_separable_clusters_are_learned(fit, labels):
  bank, query = clusters(90, 0), clusters(200, 1)
  found = low_shot.accuracy(bank, query, fit, labels, 0)
  assert found > (0.8 if labels.shots == 1 else 0.95)


def test_the_test_set_does_not_choose_the_cost(monkeypatch):
  """Costs are tried on the labels that are learned from, on nothing else."""
  seen = []
  real = low_shot.model_selection.cross_val_score

  def spy(classifier, x, y, **others):
    seen.append(len(x))
    return real(classifier, x, y, **others)

  monkeypatch.setattr(low_shot.model_selection, "cross_val_score", spy)
  bank, query = clusters(90, 0), clusters(2000, 1)
  low_shot.accuracy(bank, query, low_shot.svm, low_shot.shots(6), 0)
  assert seen == [18] * len(low_shot.COSTS)


def test_voc_s_protocol_on_overlapping_labels():
  rng = np.random.default_rng(0)
  x, test = rng.normal(size=(2, 120, 6))
  targets, test_targets = (
    np.where(each[:, :3] + 0.3 * rng.normal(size=(120, 3)) > 0.5, 1, -1)
    for each in (x, test)
  )
  targets[:5, 0] = 0  # Difficult: left out of the first class.
  ap_L = low_shot.voc_svms(x, targets, test, test_targets, (0.1, 1.0))
  assert ap_L.shape == (3,) and (ap_L > 0.6).all()
  chance = (test_targets > 0).mean(0)
  assert (ap_L > 2 * chance).all()
