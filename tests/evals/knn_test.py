import itertools

import numpy as np
import pytest
from sklearn import neighbors

from seer_jax.evals import features, knn
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib


def labelled(count, seed, classes=4):
  rng = np.random.default_rng(seed)
  return features.Features(
    rng.normal(size=(count, 6)).astype(np.float32),
    rng.integers(0, classes, count),
  )


def similarities(bank, query, metric):
  """Of all pairs, in float64."""
  a, b = query.features_NxD.astype(float), bank.features_NxD.astype(float)
  if metric == "euclidean":
    return -((a[:, None] - b) ** 2).sum(-1)
  if metric == "cosine":
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
  return a @ b.T


def brute_force(bank, query, k, temperature, metric, top=1):
  """The protocol written out, one query at a time, in float64."""
  right = 0
  every = similarities(bank, query, metric)
  for row, label in zip(every, query.labels_N, strict=True):
    votes = np.zeros(1 + bank.labels_N.max())
    for i in np.argsort(-row, kind="stable")[:k]:
      votes[bank.labels_N[i]] += np.exp((row[i] - row.max()) / temperature)
    right += label in np.argsort(-votes, kind="stable")[:top]
  return right / len(query.labels_N)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_a_grid_equals_brute_force(metric):
  bank, query = labelled(90, 0, classes=8), labelled(300, 1, classes=8)
  ks, temperatures = (1, 5, 20, 500), (0.1, 1.0)
  found = knn.accuracies(bank, query, ks, temperatures, metric)
  for k, temperature in itertools.product(ks, temperatures):
    wanted = tuple(
      brute_force(bank, query, k, temperature, metric, top) for top in (1, 5)
    )
    assert found[k, temperature] == wanted


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_scikit_learn_s(metric):
  bank, query = labelled(500, 0).features_NxD, labelled(200, 1).features_NxD
  wanted = neighbors.NearestNeighbors(
    n_neighbors=20, metric=metric, algorithm="brute"
  )
  distance, index = wanted.fit(bank).kneighbors(query)
  similarity, found = knn.nearest(bank, query, 20, metric)
  np.testing.assert_array_equal(found, index)
  ours = 1 - similarity if metric == "cosine" else np.sqrt(-similarity)
  np.testing.assert_allclose(ours, distance, atol=1e-5)


def test_vote_of_one_neighbour_is_scikit_learn_s_classifier():
  bank, query = labelled(500, 0), labelled(200, 1)
  theirs = neighbors.KNeighborsClassifier(1, metric="cosine")
  theirs.fit(bank.features_NxD, bank.labels_N)
  wanted = theirs.score(query.features_NxD, query.labels_N)
  assert knn.accuracies(bank, query, (1,), (0.1,))[1, 0.1][0] == wanted


@pytest.mark.parametrize("devices", [1, 8])
def test_chunks_and_devices_change_no_neighbour(monkeypatch, devices):
  bank, query = labelled(333, 0).features_NxD, labelled(50, 1).features_NxD
  whole = knn.nearest(bank, query, 20)
  monkeypatch.setattr(knn, "_CHUNK", 40 * 6)
  monkeypatch.setattr(knn, "_QUERIES", 7)
  similarity, index = knn.nearest(bank, query, 20, mesh=mesh_lib.make(devices))
  np.testing.assert_array_equal(index, whole[1])
  np.testing.assert_allclose(similarity, whole[0], atol=1e-6)


def test_of_equal_rows_the_first_comes_first(monkeypatch):
  monkeypatch.setattr(knn, "_CHUNK", 6 * 8)
  bank = np.ones((100, 6), np.float32)
  _, index = knn.nearest(bank, bank[:3], 20, mesh=mesh_lib.make(4))
  np.testing.assert_array_equal(index, np.tile(np.arange(20), (3, 1)))


def test_unlabelled_images_are_left_out():
  bank, query = labelled(90, 0), labelled(40, 1)
  wanted = knn.accuracies(
    features.Features(bank.features_NxD[:50], bank.labels_N[:50]),
    features.Features(query.features_NxD[:30], query.labels_N[:30]),
    (5,),
    (0.1,),
  )
  bank.labels_N[50:] = -1
  query.labels_N[30:] = -1
  assert knn.accuracies(bank, query, (5,), (0.1,)) == wanted


def test_an_unknown_metric_is_refused():
  bank = labelled(9, 0).features_NxD
  with pytest.raises(errors.UserError, match="use cosine, dot or euclidean"):
    knn.nearest(bank, bank, 1, "manhattan")


@pytest.mark.parametrize("columns", [10, 4 * 128, 9 * 128 + 5])
def test_the_best_of_blocks_are_the_best_of_all(columns):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 30, (7, columns)).astype(np.float32)  # Many are equal.
  for k in (1, 3):
    value, index = knn._top(x, k)
    wanted = np.argsort(-x, 1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_array_equal(value, np.take_along_axis(x, wanted, 1))
