"""Corruptions, shifted sets and their scores."""

import json
import math

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.data import preprocessing, sources
from seer_jax.data.published import imagenet, shifted
from seer_jax.evals import accuracy, classes
from seer_jax.evals.robustness import corruption_error, corruptions, shifts
from seer_jax.runtime import errors


def picture(side):
  rng = np.random.default_rng(side)
  coarse = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
  return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("side", [32, 96, 224])
@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_corruption_is_the_same_each_time_and_grows(kind, side):
  image = picture(side)
  before = image.copy()
  strengths = (1, 5) if side > 64 else (1, 2, 3, 4, 5)
  found = [corruptions.corrupt(image, kind, each) for each in strengths]
  again = corruptions.corrupt(image, kind, strengths[-1])
  np.testing.assert_array_equal(image, before)
  np.testing.assert_array_equal(found[-1], again)
  assert all(x.shape == image.shape and x.dtype == np.uint8 for x in found)
  off = [np.abs(x.astype(float) - image).mean() for x in found]
  assert off[0] > 0 and off[-1] < 140
  # Strengths of elastic are of different natures; frost and fog hide more of
  # the image, which may be nearer to its colors.
  if kind not in ("elastic_transform", "frost", "fog"):
    assert off[0] < off[-1]


def test_constants_are_the_published_ones_on_paper():
  """Contrast 0.4 of 100 about a mean of 150 is 130; brightness adds 0.1."""
  image = np.full((224, 224, 3), 100, np.uint8)
  image[::2] = 200
  found = corruptions.corrupt(image, "contrast", 1)
  assert set(np.unique(found)) <= {129, 130, 170}
  grey = np.full((224, 224, 3), 100, np.uint8)
  assert set(np.unique(corruptions.corrupt(grey, "brightness", 1))) == {125}
  # 32 pixels have the milder constants: 0.05.
  small = np.full((32, 32, 3), 100, np.uint8)
  assert set(np.unique(corruptions.corrupt(small, "brightness", 1))) == {112}
  noisy = corruptions.corrupt(grey, "gaussian_noise", 1)
  assert noisy.std() / 255 == pytest.approx(0.08, rel=0.02)
  # A share of 0.03 becomes black or white, halves of each.
  hit = corruptions.corrupt(grey, "impulse_noise", 1)
  assert (hit != 100).mean() == pytest.approx(0.03, rel=0.1)
  assert (hit == 255).mean() == pytest.approx(0.015, rel=0.15)
  assert [len(each[0]) for each in corruptions.KINDS.values()] == [5] * 15


def test_an_unknown_corruption_is_refused():
  with pytest.raises(ValueError, match=r"no corruption 'fogg' of strength 1"):
    corruptions.corrupt(picture(32), "fogg", 1)


def test_the_mean_corruption_error_divides_by_alexnet():
  """An error of half of AlexNet's in each kind is 0.5."""
  half = {k: 1 - e / 200 for k, e in corruption_error.ALEXNET.items()}
  assert corruption_error.mce(half) == pytest.approx(0.5)
  figures = {f"corruptions/{kind}": value for kind, value in half.items()}
  figures["corruptions/clean"] = 0.9
  found = corruption_error.summary(figures, as_published=True)
  assert found["corruptions/mce"] == pytest.approx(0.5)
  mean = np.mean(list(half.values()))
  assert found["corruptions/mean"] == pytest.approx(mean)
  assert found["corruptions/kept"] == pytest.approx(mean / 0.9)
  assert "corruptions/mce" not in corruption_error.summary(figures, False)


def test_masks_and_several_right_classes_equal_an_example_on_paper():
  """Logits 3, 2, 1, 0 of cat, dog, cow, pig; labels dog|cow and cow.

  Unmasked, cat is predicted and both are wrong. With only dog and cow allowed,
  dog is predicted: the first label has it, the second has not.
  """
  logits = jnp.array([[[3.0, 2.0, 1.0, 0.0]] * 2])
  names = ("cat", "dog", "cow", "pig")
  for masked, top1 in ((False, [0, 0]), (True, [1, 0])):
    truth = classes.of_labels(("dog|cow", "cow"), names, masked)
    found = accuracy.judged(logits, jnp.array([0, 1]), truth)
    np.testing.assert_array_equal(found[0], [np.array(top1, bool)])
    p = np.exp([3.0, 2.0, 1.0, 0.0])
    p = np.where([not masked, 1, 1, not masked], p, 0)
    p /= p.sum()
    wanted = [-math.log(p[1] + p[2]), -math.log(p[2])]
    np.testing.assert_allclose(found[2][0], wanted, rtol=1e-5)
  with pytest.raises(errors.UserError, match="'cow' , but|'horse', but it is"):
    classes.of_labels(("horse",), names)


def test_folders_named_by_numbers_are_classes_by_number():
  """Sorted as text they are 0, 1, 10, 2."""
  names = tuple(f"n{i:08d}" for i in range(12))
  truth = classes.of_labels(("0", "1", "10", "2"), names)
  assert [row.argmax() for row in truth.right_LxC] == [0, 1, 10, 2]


def test_effective_robustness_equals_an_example_on_paper():
  """With a slope of 1 and an intercept of 0, 0.7 is expected of 0.7."""
  assert shifts.effective(0.7, 0.75, (1.0, 0.0)) == pytest.approx(0.05)
  # Odds of 3 to 1, doubled in log odds, are 9 to 1.
  assert shifts.effective(0.75, 0.9, (2.0, 0.0)) == pytest.approx(0.0)
  line = shifts.fitted(np.array([0.5, 0.75]), np.array([0.5, 0.9]))
  np.testing.assert_allclose(line, (2.0, 0.0), atol=1e-12)


def test_a_baseline_is_a_table_of_other_models(tmp_path):
  path = tmp_path / "baseline.csv"
  path.write_text("shift,clean,shifted\nimagenet_v2,0.5,0.5\n"
                  "imagenet_v2,0.75,0.9\n")  # fmt: skip
  found = shifts.read_baseline(str(path))
  np.testing.assert_allclose(found["imagenet_v2"], (2.0, 0.0), atol=1e-12)
  for text, words in (
    ("shift,clean,shifted\nimagenet_v2,50,40\n", "not from 0 to 1"),
    ("shift,clean\nimagenet_v2,0.5\n", "'shifted'"),
    ("shift,clean,shifted\nimagenet_v2,0.5,0.4\n", "models of two or more"),
  ):
    path.write_text(text)
    with pytest.raises(errors.UserError, match=words):
      shifts.read_baseline(str(path))


def planted(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), picture(16))
  return folder


def labels(rows):
  return [row["label"] for row in rows]


def test_folders_as_published_become_tables(tmp_path):
  ids = imagenet.classes()
  assert len(ids) == 1000 and ids[0] == "n01440764" and ids[999] == "n15075141"
  a = planted(tmp_path / "a", f"{ids[6]}/x.jpg", f"{ids[11]}/y.jpg")
  assert labels(shifted.table("imagenet_a", a)) == [ids[6], ids[11]]
  # By name as text 10 comes before 2.
  v2 = planted(tmp_path / "v2", "0/a.jpeg", "10/b.jpeg", "2/c.jpeg")
  assert labels(shifted.table("imagenet_v2", v2)) == [ids[0], ids[10], ids[2]]
  with pytest.raises(errors.UserError, match="no folders named 0 to 999"):
    shifted.table("imagenet_v2", a)


def test_real_labels_images_by_their_number(tmp_path):
  """Not by position: of 50,000 images only three are here."""
  ids = imagenet.classes()
  val = planted(
    tmp_path / "val",
    *(f"x/ILSVRC2012_val_0000000{n}.JPEG" for n in (2, 1, 4)),
  )
  path = tmp_path / "real.json"
  path.write_text(json.dumps([[5], [7, 8], [9], []]))
  clean = sources.open_source({"path": str(val)})
  found = shifted.table("imagenet_real", path, clean)
  assert labels(found) == [ids[5], f"{ids[7]}|{ids[8]}"]
  other = planted(tmp_path / "other", "a.jpg")
  with pytest.raises(errors.UserError, match=r"a\.jpg is not from ILSVRC"):
    shifted.table("imagenet_real", path, sources.open_source({"path": other}))


def test_objectnet_has_several_classes_and_a_border(tmp_path):
  ids = imagenet.classes()
  folder = planted(
    tmp_path, "images/chair/a.png", "images/pen/b.png", "images/spoon/c.png"
  )
  (folder / "mappings").mkdir()
  for name, content in {
    "folder_to_objectnet_label.json": {
      "chair": "Chair",
      "pen": "Pen",
      "spoon": "Spoon",
    },
    "objectnet_to_imagenet_1k.json": {
      "Chair": "barber chair; rocking chair, rocker",
      "Pen": "fountain pen",
    },
    "pytorch_to_imagenet_2012_id.json": {"423": 1, "765": 2, "563": 3},
  }.items():
    (folder / "mappings" / name).write_text(json.dumps(content))
  (folder / "mappings" / "imagenet_to_label_2012_v2").write_text(
    "barber chair\nrocking chair, rocker\nfountain pen\n"
  )
  found = shifted.table("objectnet", folder)
  assert labels(found) == [f"{ids[423]}|{ids[765]}", ids[563]]
  view = preprocessing.CleanView(preprocessing.Preprocessing(12, 12))
  bordered = np.zeros((16, 16, 3), np.uint8)
  bordered[2:-2, 2:-2] = 200
  found = shifts.WithoutBorder(view, 2)(bordered, 0)
  assert found.shape == (12, 12, 3) and (found == 200).all()
