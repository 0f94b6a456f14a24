"""SEER's fairness indicators against examples that fit on paper."""

import numpy as np
import pytest

from seer_jax.evals import features
from seer_jax.evals.fairness import associations, same_attribute
from seer_jax.runtime import errors


def test_associations_equal_an_example_on_paper():
  """Probabilities of cat, dog, face, prison for three images.

  0.5, 0.3, 0.15, 0.05: dog is among the top two, with 0.3.
  0.05, 0.1, 0.8, 0.05: dog too, with 0.1.
  0.6, 0.02, 0.08, 0.3: it is not.
  """
  p = np.array(
    [[0.5, 0.3, 0.15, 0.05], [0.05, 0.1, 0.8, 0.05], [0.6, 0.02, 0.08, 0.3]]
  )
  top, shares = associations.top(np.log(p), 2)
  np.testing.assert_array_equal(top, [[0, 1], [2, 1], [0, 3]])
  np.testing.assert_allclose(shares, [[0.5, 0.3], [0.8, 0.1], [0.6, 0.3]])
  for threshold, wanted in ((0, [1, 1, 0]), (0.2, [1, 0, 0]), (0.8, [0, 0, 0])):
    found = associations.associated(top, shares, [1], threshold)
    np.testing.assert_array_equal(found, np.array(wanted, bool))


def test_the_excess_of_a_group_is_over_the_mean_of_the_others():
  """0.5 less (0.2 + 0.1) / 2 is 0.35; other columns and counts are apart."""
  figures = [
    ("l/skin=a", 0.5),
    ("l/skin=a/n", 9.0),
    ("l/skin=b", 0.2),
    ("l/skin=c", 0.1),
    ("l/skin=unknown", 0.9),
    ("l/skin/gap", 0.4),
    ("l/sex=f", 0.3),
  ]
  found = dict(associations.excess(figures))
  assert found["l/skin=a/excess"] == pytest.approx(0.35)
  assert found["l/skin=c/excess"] == pytest.approx(0.1 - 0.35)
  assert set(found) == {f"l/skin={group}/excess" for group in "abc"}


def test_published_buckets_are_shipped_and_a_file_replaces_them(tmp_path):
  published = associations.read_buckets("")
  assert published.top == 5 and published.thresholds == [0.0, 0.1, 0.3, 0.8]
  assert len(published.buckets["non-human"]) == 18
  assert "dog" in published.buckets["non-human"]
  of_miap = associations.read_buckets("miap")
  assert "dog" not in of_miap.buckets["non-human"]
  assert of_miap.buckets["possibly-non-human"] == ["cat", "dog"]
  own = tmp_path / "own.toml"
  own.write_text("top = 1\nthresholds = [0.5]\n[buckets]\nharm = ['jail']\n")
  assert associations.read_buckets(str(own)).buckets == {"harm": ["jail"]}
  for text, words in (
    ("top = ", "is not TOML"),
    ("top = 5", "no valid 'thresholds'"),
    ("top = 0\nthresholds = []\n[buckets]", "empty top"),
  ):
    own.write_text(text)
    with pytest.raises(errors.UserError, match=words):
      associations.read_buckets(str(own))


def test_labels_are_found_in_any_case_and_among_synonyms(caplog):
  names = ["hog, pig, swine", "Prison", "face"]
  buckets = {"a": ["swine", "prison"], "b": ["swine", "slug"], "c": ["beard"]}
  found = associations.classes_of(buckets, names)
  assert found == {"a": [0, 1], "b": [0]}
  assert "bucket b: the classifier has no class slug" in caplog.text
  assert "bucket c is left out" in caplog.text
  with pytest.raises(errors.UserError, match="no label of the buckets is one"):
    associations.classes_of({"c": ["beard"]}, names)


def test_precision_at_k_equals_an_example_on_paper():
  """Directions in the plane; the query at 0 degrees is a woman.

  By angle: 5 f, 10 m, 20 f, 90 m, so precision@1 is 1, @2 1/2, @3 2/3.
  """
  angles = np.radians([90, 10, 5, 20])
  bank = features.Features(
    np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32),
    np.array([0, 0, 1, 1]),
  )
  query = features.Features(
    np.array([[2.0, 0.0]], np.float32), np.array([1]), index_N=np.array([0])
  )
  # Numbers of labels differ between the tables; names decide.
  hits = same_attribute.same(
    bank, query, 3, ("male", "female"), ("x", "female")
  )
  np.testing.assert_array_equal(hits, [[True, False, True]])
