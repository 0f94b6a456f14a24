import numpy as np
import pytest

from seer_jax.evals import features, knn


def labelled(count, seed):
  rng = np.random.default_rng(seed)
  return features.Features(
    rng.normal(size=(count, 6)).astype(np.float32),
    rng.integers(0, 4, count),
  )


def brute_force(bank, query, k, temperature):
  """The protocol written out, one query at a time, in float64."""

  def unit(x):
    return x / np.linalg.norm(x)

  right = 0
  for feature, label in zip(query.features_NxD, query.labels_N, strict=True):
    cosines = [unit(row) @ unit(feature) for row in bank.features_NxD]
    votes = np.zeros(4)
    for i in np.argsort(cosines)[::-1][:k]:
      votes[bank.labels_N[i]] += np.exp(cosines[i] / temperature)
    right += votes.argmax() == label
  return right / len(query.labels_N)


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_accuracy_equals_brute_force(k):
  bank, query = labelled(90, 0), labelled(300, 1)
  found = knn.accuracy(bank, query, (k,), 0.1)
  assert found[k] == pytest.approx(brute_force(bank, query, k, 0.1))


def test_unlabelled_images_are_left_out():
  bank, query = labelled(90, 0), labelled(40, 1)
  wanted = knn.accuracy(
    features.Features(bank.features_NxD[:50], bank.labels_N[:50]),
    features.Features(query.features_NxD[:30], query.labels_N[:30]),
    (5,),
    0.1,
  )
  bank.labels_N[50:] = -1
  query.labels_N[30:] = -1
  assert knn.accuracy(bank, query, (5,), 0.1) == wanted
