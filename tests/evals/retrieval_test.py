"""R-MAC, whitening and average precision against the published definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.data.published import copies
from seer_jax.evals.retrieval import average_precision, pooling, views
from seer_jax.evals.retrieval import whitening as whitening_lib
from seer_jax.runtime import errors

Answers = average_precision.Answers


def test_average_precision_equals_an_example_on_paper():
  """Right images at ranks 0 and 2: ((1 + 1) / 2 + (1/2 + 2/3) / 2) / 2."""
  found = average_precision.average_precision(np.array([0, 2]), 2)
  assert found == pytest.approx((1 + 7 / 12) / 2)
  # A right image that is never found counts as nothing.
  assert average_precision.average_precision(np.array([0]), 2) == pytest.approx(
    1 / 2
  )
  assert average_precision.precision_at(np.array([0, 2]), 5) == 2 / 3
  assert average_precision.precision_at(np.array([0, 2]), 2) == 1 / 2
  assert average_precision.precision_at(np.array([]), 2) == 0


def published_map(similarity_NxQ, right, junk):
  """The revisited protocol, by sorting everything, query by query."""
  found = []
  for q, (of_right, of_junk) in enumerate(zip(right, junk, strict=True)):
    ranking = np.argsort(-similarity_NxQ[:, q], kind="stable")
    ranking = [row for row in ranking if row not in set(of_junk)]
    places = [at for at, row in enumerate(ranking) if row in set(of_right)]
    ap = 0.0
    for found_before, place in enumerate(places):
      before = 1.0 if place == 0 else found_before / place
      ap += (before + (found_before + 1) / (place + 1)) / 2 / len(of_right)
    found.append(ap)
  return np.array(found)


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_ranks_in_chunks_equal_a_sort_of_everything(chunk):
  rng = np.random.default_rng(0)
  count, queries = 300, 9
  # Few different values, so that there are many ties.
  database = rng.integers(0, 3, (count, 4)).astype(np.float32)
  query = rng.integers(0, 3, (queries, 4)).astype(np.float32)
  order = rng.permutation(count)
  right = [order[30 * q : 30 * q + 5 + q] for q in range(queries)]
  junk = [order[30 * q + 20 : 30 * q + 20 + q] for q in range(queries)]
  answers = [Answers(*each) for each in zip(right, junk, strict=True)]

  def chunks():
    for first in range(0, count, chunk):
      rows = np.arange(first, min(count, first + chunk))
      yield rows, database[rows]

  ranks = average_precision.ranks(lambda x: query @ x.T, chunks, answers)
  found = [
    average_precision.average_precision(rank_P, len(of_right))
    for rank_P, of_right in zip(ranks, right, strict=True)
  ]
  wanted = published_map(database @ query.T, right, junk)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def published_regions(height, width, levels):
  """R-MAC's regions after Tolias et al., with their rounding."""
  wanted_overlap = 0.4
  short = min(height, width)
  best, extra = None, 0
  for number in range(2, 8):
    shift = (max(height, width) - short) / (number - 1)
    off = abs(
      (short * short - short * shift) / (short * short) - wanted_overlap
    )
    if best is None or off < best - 1e-12:
      best, extra = off, number - 1
  extra_h = extra if height > width else 0
  extra_w = extra if width > height else 0
  found = []
  for level in range(1, levels + 1):
    side = np.floor(2 * short / (level + 1))
    if side == 0:
      continue
    half = np.floor(side / 2 - 1)

    def centers(size, more, side=side, half=half, level=level):
      steps = level + more - 1
      shift = (size - side) / steps if steps > 0 else 0
      return [np.floor(half + shift * k) - half for k in range(steps + 1)]

    for top in centers(height, extra_h):
      for left in centers(width, extra_w):
        top, left = int(top), int(left)
        top -= max(0, int(top + side) - height)
        left -= max(0, int(left + side) - width)
        found.append((top, left, int(side)))
  return found


@pytest.mark.parametrize(
  "shape", [(7, 7), (7, 12), (12, 7), (1, 5), (24, 32), (3, 2), (5, 40)]
)
def test_rmac_equals_the_published_definition(shape):
  rng = np.random.default_rng(1)
  channels, components = 6, 4
  maps = rng.random((3, *shape, channels)).astype(np.float32)
  boxes = published_regions(*shape, 3)
  np.testing.assert_array_equal(pooling.regions(*shape, 3), boxes)
  whitening = {
    "mean": rng.random(channels).astype(np.float32),
    "projection": rng.normal(size=(channels, components)).astype(np.float32),
  }
  wanted = []
  for image in maps.astype(float):
    total = 0
    for top, left, side in boxes:
      part = image[top : top + side, left : left + side]
      vector = part.reshape(-1, channels).max(0)
      vector = vector / np.linalg.norm(vector)
      vector = (vector - whitening["mean"]) @ whitening["projection"]
      total = total + vector / np.linalg.norm(vector)
    wanted.append(total / np.linalg.norm(total))
  regional = pooling.Pooling("res5", "rmac", 3, 3.0).regional(jnp.asarray(maps))
  found = pooling.whitened_sum(regional, whitening)
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_gem_equals_its_definition():
  maps = np.random.default_rng(2).normal(size=(2, 3, 4, 5)).astype(np.float32)
  found = pooling.Pooling("res5", "gem", 3, 3.0).regional(jnp.asarray(maps))
  wanted = np.maximum(maps.astype(float), 1e-6) ** 3
  wanted = wanted.mean((1, 2)) ** (1 / 3)
  wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
  np.testing.assert_allclose(found[:, 0], wanted, atol=1e-6)


def test_whitening_equals_the_published_definition():
  """Eigenvectors of the scatter over the roots of its eigenvalues."""
  rng = np.random.default_rng(3)
  x = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))
  x[:, 7] = x[:, 6]  # One direction has no variance.
  parts = np.array_split(x.astype(np.float32), 7)
  found = whitening_lib.fit(parts, 5)
  y = x.astype(np.float32).astype(float)
  mean = y.mean(0)
  values, vectors = np.linalg.eigh((y - mean).T @ (y - mean))
  values = np.maximum(values, 1e-5 * values.max())
  order = np.argsort(-values)[:5]
  wanted = vectors[:, order] / np.sqrt(values[order])
  np.testing.assert_allclose(found["mean"], mean, atol=1e-6)
  signs = np.sign((found["projection"] * wanted).sum(0))
  np.testing.assert_allclose(found["projection"], wanted * signs, atol=1e-6)
  white = (y - mean) @ found["projection"].astype(float)
  np.testing.assert_allclose(white.T @ white, np.eye(5), atol=1e-4)


def test_whitening_by_too_few_images_is_refused():
  with pytest.raises(errors.UserError, match="gives 8; give more"):
    whitening_lib.fit([np.eye(8, dtype=np.float32)], 8)
  with pytest.raises(errors.UserError, match="have 8 numbers; give at most 8"):
    whitening_lib.fit([np.eye(8, dtype=np.float32)], 9)


def test_shapes_keep_proportions_up_to_rounding():
  assert views.fitted(480, 640, 1024, 1) == (768, 1024)
  assert views.fitted(640, 427, 1024, 1) == (1024, 683)
  assert views.fitted(640, 427, 1024, 32) == (1024, 672)
  assert views.fitted(10, 4000, 224, 32) == (32, 224)


def test_a_split_of_copydays_is_a_folder_and_not_a_part_of_its_name(tmp_path):
  """In VISSL jpegqual_3 is in the path of jpegqual_30 too."""
  for split, names in {
    "original": ["200000.jpg", "200100.jpg"],
    "strong": ["200001.jpg"],
    "jpegqual/3": ["200000.jpg"],
    "jpegqual/30": ["200000.jpg", "200100.jpg"],
    "crops/10": ["200100.jpg"],
  }.items():
    (tmp_path / split).mkdir(parents=True)
    for name in names:
      (tmp_path / split / name).touch()
  found = copies.copydays(tmp_path)
  splits = [row["split"] for row in found["queries"]]
  assert sorted(splits) == [
    *("crops_10", "jpegqual_3", "jpegqual_30", "jpegqual_30", "strong")
  ]
  assert [row["label"] for row in found["database"]] == ["2000", "2001"]
  assert copies.split_of(tmp_path / "jpegqual_5" / "1.jpg") == "jpegqual_5"
