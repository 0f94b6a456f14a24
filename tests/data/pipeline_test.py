import cv2
import numpy as np
import pytest

from configs import digits
from seer_jax.config import keys
from seer_jax.data import pipeline, preprocessing, sources
from seer_jax.runtime import errors, mesh


class Numbers:
  """Images that are their own number: an 8 x 8 PNG of one grey value."""

  label_names = ()

  def __init__(self, count, bad=()):
    self._count, self._bad = count, set(bad)

  def __len__(self):
    return self._count

  def __getitem__(self, i):
    grey = np.full((8, 8), i, np.uint8)
    data = b"" if i in self._bad else cv2.imencode(".png", grey)[1].tobytes()
    return {"image": data, "label": -1, "id": self.id_of(i)}

  def id_of(self, i):
    return f"number {i} \udcff"  # As a name that is not UTF-8 is decoded.

  def label_of(self, i):
    return -1


class Offset(Numbers):
  """Of the grey values from 50 on."""

  def __getitem__(self, i):
    return super().__getitem__(50 + i)


def settings(**changes):
  config = digits.get_config()
  config.batch_size = 8
  config.crops.sizes = (8,)
  config.data.workers = 0
  config.eval.size = config.eval.resize = 8
  config.eval.batch_size = 8
  for key, value in changes.items():
    keys.put(config, key.replace("__", "."), value)
  return config


def batches_of(source, tmp_path, start=0, count=4, max_bad=0.5, **changes):
  config, here = settings(**changes), mesh.make(8)
  bad = pipeline.BadImages(source, tmp_path, max_bad, 1_000)
  stream = pipeline.train_batches(
    source, config, here, start * config.batch_size, bad
  )
  return [
    np.asarray(next(stream)["crops"][0])[:, :, 4, 4, 0] for _ in range(count)
  ]


def test_every_image_comes_once_an_epoch(tmp_path):
  seen = np.concatenate(batches_of(Numbers(20), tmp_path, count=5))[:, 0]
  assert sorted(seen[:20]) == list(range(20))
  assert sorted(seen[20:40]) == list(range(20))
  assert seen[:20].tolist() != seen[20:40].tolist()


def test_both_crops_are_of_one_image(tmp_path):
  for batch in batches_of(Numbers(20), tmp_path):
    np.testing.assert_array_equal(batch[:, 0], batch[:, 1])


def test_starting_at_a_step_continues_the_same_sequence(tmp_path):
  whole = batches_of(Numbers(50), tmp_path, count=6)
  rest = batches_of(Numbers(50), tmp_path, start=3, count=3)
  np.testing.assert_array_equal(whole[3:], rest)


def test_workers_change_nothing(tmp_path):
  threads = batches_of(Numbers(30), tmp_path)
  processes = batches_of(Numbers(30), tmp_path, data__workers=2)
  np.testing.assert_array_equal(threads, processes)


def test_another_seed_is_another_order(tmp_path):
  one = batches_of(Numbers(50), tmp_path)
  assert not np.array_equal(one, batches_of(Numbers(50), tmp_path, seed=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_has_the_same_stand_in_every_time(tmp_path, workers):
  changes = {"data__workers": workers}
  source = Numbers(20, bad={3, 7})
  one = batches_of(source, tmp_path, count=5, **changes)
  good = batches_of(Numbers(20), tmp_path, count=5)
  np.testing.assert_array_equal(one, batches_of(source, tmp_path, count=5))
  moved = np.concatenate(one)[:, 0] != np.concatenate(good)[:, 0]
  assert set(np.concatenate(good)[moved, 0]) == {3, 7}
  listed = (tmp_path / "bad_images.txt").read_bytes().splitlines()
  assert sorted(listed) == [b"number 3 \xff", b"number 7 \xff"]


def test_replacements_keep_to_the_weights_of_a_mixture(tmp_path):
  """Half of the small part is bad; it is drawn as often all the same."""
  small = Numbers(20, bad=range(0, 20, 2))
  small.fingerprint = "small"
  large = Offset(200)
  large.fingerprint = "large"
  mixed = sources.Mixture([small, large], (1, 1))
  seen = np.concatenate(batches_of(mixed, tmp_path, count=40))[:, 0]
  assert abs(np.mean(seen < 20) - 0.5) < 0.08


def test_past_the_limit_the_run_stops(tmp_path):
  source = Numbers(20, bad=range(11))
  with pytest.raises(errors.UserError, match="more than config.data.max_bad"):
    batches_of(source, tmp_path, count=5)


def test_the_limit_is_the_configs_and_nothing_else(tmp_path):
  source = Numbers(20, bad=range(14))
  seen = np.concatenate(batches_of(source, tmp_path, count=5, max_bad=0.8))
  assert set(seen.ravel()) <= set(range(14, 20))


def test_mended_images_are_forgiven(tmp_path):
  with pytest.raises(errors.UserError):
    batches_of(Numbers(20, bad=range(11)), tmp_path, count=5)
  batches_of(Numbers(20), tmp_path, count=5)


def test_a_folder_of_nothing_usable_says_so(tmp_path):
  with pytest.raises(errors.UserError, match="in a row"):
    batches_of(Numbers(20, bad=range(20)), tmp_path, max_bad=1.0)


def test_clean_batches_hold_every_image_once_and_padding_is_masked():
  source = Numbers(20, bad={5})
  chosen = list(range(20))
  seen = []
  prepared = preprocessing.Preprocessing(resize=8, size=8)
  batches = pipeline.clean_batches(
    source,
    chosen,
    preprocessing.CleanView(prepared),
    mesh.make(8),
    batch_size=8,
    max_pixels=2**20,
  )
  for batch in batches:
    assert batch["image"].shape == (8, 8, 8, 3)
    mask = np.asarray(batch["mask"])
    seen += np.asarray(batch["image"])[mask, 0, 0, 0].tolist()
  assert seen == [i for i in chosen if i != 5]
