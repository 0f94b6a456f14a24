import re

import pytest

from configs import folder, seer_rg10b
from seer_jax.config import auto, keys, validate
from seer_jax.runtime import errors


def situation(**changes):
  usual = {
    "images": 50_000,
    "side": 375,
    "devices": 1,
    "platform": "cpu",
    "precision": ("fp32", "a test"),
    "cores": 2,
  }
  return auto.RunContext(**(usual | changes))


def completed(here, **changes):
  config = folder.get_config()
  for key, value in changes.items():
    keys.put(config, key.replace("__", "."), value)
  choices = auto.complete(config, here)
  return config, choices


@pytest.mark.parametrize("images", [64, 334, 5_000, 1_281_167, 10**9])
@pytest.mark.parametrize("side", [8, 32, 64, 375])
@pytest.mark.parametrize(
  ("devices", "platform", "cores"),
  [(1, "cpu", 2), (8, "cpu", 8), (8, "tpu", 96), (4, "gpu", 16)],
)
def test_every_situation_gives_a_config_that_passes_the_check(
  images, side, devices, platform, cores
):
  here = situation(
    images=images,
    side=side,
    devices=devices,
    platform=platform,
    cores=cores,
  )
  config, choices = completed(here)
  validate.check_each(config)
  validate.check_together(config)
  assert all(value is not None for _, value in keys.flatten(config))
  assert all(choice.reason for choice in choices)
  assert config.batch_size % devices == 0
  assert config.crops.sizes[0] <= max(16, side)


@pytest.mark.parametrize(
  ("batch", "scale"), [(8, 2**14), (256, 2**19), (8192, 2**24)]
)
def test_the_first_loss_scale_suits_the_batch(batch, scale):
  config, _ = completed(situation(), batch_size=batch)
  assert config.loss_scale.first == scale


def test_as_few_images_as_devices_still_make_a_batch():
  config, _ = completed(situation(images=8, devices=8))
  assert config.batch_size == 8


def test_a_batch_that_devices_cannot_share_comes_with_one_that_they_can():
  """RG-10B, of 62 groups of 128 images, on 512 devices; with a queue."""
  config = seer_rg10b.get_config()
  config.swav.queue_length = 2 * 7936
  with pytest.raises(errors.UserError) as caught:
    auto.complete(config, situation(images=10**9, devices=512))
  words = str(caught.value)
  assert (
    "config.batch_size is 7936, which cannot be split evenly over 512 devices"
    in words
  )
  for key, value in re.findall(r"--config\.(\S+)=(\d+)", words):
    keys.put(config, key, int(value))
  # 60 groups would be of 128 images as before, but of 8.5 devices each.
  assert (config.batch_size, config.model.bn_groups) == (7680, 64)
  validate.check_together(config)
  assert "7,680 images a step instead of 7,936" in words
  assert "a peak rate of 9 instead of 9.3" in words
  assert config.steps == -(-126_008 * 7936 // 7680)
  assert "norms over 120 images instead of 128" in words


def test_fewer_images_than_devices_or_clusters_are_refused():
  with pytest.raises(errors.UserError, match="--config.mesh.data=9"):
    completed(situation(images=9, devices=16))
  with pytest.raises(errors.UserError, match="only 3 images"):
    completed(situation(images=3))


def test_numbers_of_a_trunk_need_no_name():
  config, _ = completed(situation(), model__regnet=(2, 16, 16.0, 2.0, 8))
  assert config.model.trunk is None


def test_what_the_config_sets_is_left_alone():
  config, choices = completed(
    situation(), batch_size=24, model__trunk="seer_10b"
  )
  assert config.batch_size == 24
  assert config.model.trunk == "seer_10b"
  assert not {"batch_size", "model.trunk"} & {c.key for c in choices}


def test_large_collections_on_accelerators_get_the_published_settings():
  config, _ = completed(
    situation(images=10**9, devices=512, platform="gpu", cores=96)
  )
  assert config.crops.sizes == (224, 96)
  assert config.crops.counts == (2, 4)
  assert config.model.prototypes == (16_000,)
  assert config.optim.lr == 0.3
  assert config.swav.queue_length == 0
  assert config.eval.resize == 256


def test_short_runs_tell_images_apart_as_well():
  def chosen(here, **changes):
    config, _ = completed(here, **changes)
    values = config.swav.instance_weight, config.swav.epsilon
    return *values, config.augment.strength

  few = situation(images=1000)
  assert chosen(few) == (4.0, 0.03, 0.5)
  assert chosen(few, swav__assign_crops=(0,))[0] == 0.0
  assert chosen(few, task="probe", crops__counts=(1,)) == (0.0, 0.05, 1.0)
  many = situation(images=10**9, devices=512, platform="gpu")
  assert chosen(many) == (0.0, 0.05, 1.0)


def test_a_small_batch_gets_a_queue_of_whole_batches():
  config, _ = completed(situation(images=200_000))
  assert config.batch_size < config.model.prototypes[0]
  assert config.swav.queue_length >= config.model.prototypes[0]
  assert config.swav.queue_length % config.batch_size == 0


def test_a_batch_larger_than_the_data_is_refused():
  with pytest.raises(errors.UserError, match="only 16 images"):
    completed(situation(images=16), batch_size=32)


def test_a_batch_that_devices_cannot_share_is_refused_with_one_they_can():
  with pytest.raises(errors.UserError, match="--config.batch_size=24"):
    completed(situation(devices=8), batch_size=30)
