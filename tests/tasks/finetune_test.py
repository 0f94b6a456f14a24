"""Fine-tuning: what is mixed, which rate a layer has, what is averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune_vissl
from seer_jax import config as config_lib
from seer_jax.models import regnet
from seer_jax.tasks import finetune, labelled
from seer_jax.training import optim


def small(**finetune_keys):
  config = config_lib.labelled()
  config.task, config.classes, config.precision = "finetune", 3, "fp32"
  config.batch_size, config.steps = 4, 10
  config.crops.sizes = (16,)
  config.eval.size = config.eval.resize = 16
  config.model.regnet = (3, 8, 8.0, 2.0, 8)
  config.model.stem_stride, config.model.strides = 1, (1, 2, 2)
  config.model.scan, config.model.remat = False, "none"
  config.optim.lr = 0.1
  for key, value in finetune_keys.items():
    config.finetune[key] = value
  return config


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  x = rng.random((8, 12, 12, 3), np.float32)
  targets = labelled.targets(jnp.array([0, 1, 2, 0, 1, 2, 0, -1]), 3)
  return x, targets, jax.random.split(jax.random.key(0), 8)


def test_smoothed_targets_are_probabilities(images):
  found = labelled.targets(jnp.array([1, -1]), 4, 0.2)
  np.testing.assert_allclose(found, [[0.05, 0.85, 0.05, 0.05], [0] * 4])


def test_mixup_blends_images_and_targets_alike(images):
  x, targets, keys = images
  mixed, wanted = finetune.mixed(x, targets, keys, 0.8, 0.0)
  other = x.reshape(4, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
  share = (mixed - other) / np.where(x == other, 1, x - other)
  share_B = np.median(share.reshape(8, -1), axis=1)
  np.testing.assert_allclose(
    mixed, share_B[:, None, None, None] * (x - other) + other, atol=1e-4
  )
  partner = np.asarray(targets).reshape(4, 2, 3)[:, ::-1].reshape(8, 3)
  np.testing.assert_allclose(
    wanted,
    share_B[:, None] * targets + (1 - share_B[:, None]) * partner,
    atol=1e-3,
  )


def test_cutmix_pastes_a_box_and_counts_its_pixels(images):
  x, targets, keys = images
  mixed, wanted = finetune.mixed(x, targets, keys, 0.0, 1.0)
  own = (np.asarray(mixed) == x).all(-1)
  other = x.reshape(4, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
  assert ((np.asarray(mixed) == other).all(-1) | own).all()
  np.testing.assert_allclose(wanted[0, 0], own[0].mean(), atol=1e-6)
  for each in ~own:  # A box: the outer product of a row and a column.
    box = np.outer(each.any(1), each.any(0))
    np.testing.assert_array_equal(each, box)
  assert 0 < own.mean() < 1


def test_nothing_is_mixed_by_default(images):
  x, targets, keys = images
  assert finetune.mixed(x, targets, keys, 0.0, 0.0) == (x, targets)


def test_rates_fall_towards_the_input_and_the_head_has_its_own():
  task = finetune.FineTune(
    small(layer_decay=0.5, head_rate=10.0, head_decay=0.3), jnp.float32
  )
  depths = task.encoder.architecture.depths
  last = f"trunk/stage{len(depths)}_block{depths[-1] - 1}/a/kernel"
  assert task.rate("classifier/kernel") == 10
  assert task.rate(last) == 0.5
  assert task.rate("trunk/stage1_block0/bn_a/scale") == 0.5**3
  assert task.rate("trunk/stem/kernel") == 0.5**4
  assert task.weight_decay("classifier/kernel") == 0.3e-6
  assert task.weight_decay("trunk/stem/kernel") == 1e-6


def test_an_update_uses_the_rates():
  config = small(layer_decay=0.5, head_rate=10.0)
  config.optim.weight_decay = 0.0
  task = finetune.FineTune(config, jnp.float32)
  tx, _ = optim.make(config.optim, 10, 256, task)
  params = {
    "trunk": {"stem": {"kernel": jnp.ones(3)}},
    "classifier": {"kernel": jnp.ones(3)},
  }
  updates, _ = tx.update(params, tx.init(params), params, step=0)
  trunk, head = jax.tree.leaves(updates["trunk"])[0], updates["classifier"]
  # Nesterov: the first step is 1.9 gradients.
  np.testing.assert_allclose(trunk, -0.1 * 1.9 / 16, rtol=1e-6)
  np.testing.assert_allclose(head["kernel"], -0.1 * 1.9 * 10, rtol=1e-6)


def test_norms_and_biases_decay_only_if_they_are_to():
  config = small()
  config.optim.weight_decay, config.optim.decay_biases = 0.5, False
  tx, _ = optim.make(config.optim, 10, 256)
  params = {
    "bn_a": {"scale": jnp.ones(1), "bias": jnp.ones(1)},
    "a": {"kernel": jnp.ones(1), "bias": jnp.ones(1)},
  }
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params, step=0)
  moved = {
    path: float(leaf[0]) != 0
    for path, leaf in zip(
      ("bias", "kernel", "bn bias", "scale"),
      jax.tree.leaves(updates),
      strict=True,
    )
  }
  assert moved == {
    "bias": False,
    "kernel": True,
    "bn bias": False,
    "scale": False,
  }


def test_stochastic_depth_keeps_the_mean_and_the_first_block():
  keys = jax.random.split(jax.random.key(1), 4000)
  keep = np.asarray(regnet.drawn_depth(keys, 0.4, 3))
  assert keep.shape == (3, 4000)
  assert (keep[0] == 1).all()
  np.testing.assert_allclose(keep.mean(1), 1, atol=0.05)
  np.testing.assert_allclose((keep == 0).mean(1), [0, 0.2, 0.4], atol=0.03)


def test_an_image_that_skips_a_block_has_its_shortcut():
  task = finetune.FineTune(small(), jnp.float32)
  x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  variables = task.encoder.init(jax.random.key(1), x)
  blocks = sum(task.encoder.architecture.depths)
  plain = task.encoder.apply(variables, x)
  kept = task.encoder.apply(variables, x, False, jnp.ones((blocks, 2)))
  np.testing.assert_array_equal(plain["logits"], kept["logits"])
  one = jnp.ones((blocks, 2)).at[-1, 0].set(0)
  skipped = task.encoder.apply(variables, x, False, one)
  assert (skipped["avgpool"][0] != plain["avgpool"][0]).any()
  np.testing.assert_array_equal(skipped["avgpool"][1], plain["avgpool"][1])


def test_the_swav_head_keeps_the_first_layer_of_the_projection():
  config = small(head="swav")
  config.model.head.hidden = (24, 16)
  task = finetune.FineTune(config, jnp.float32)
  params, stats, _ = task.init(jax.random.key(0))
  assert set(params["head"]) == {"linear0", "bn0"} and "bn0" in stats["head"]
  assert params["head"]["linear0"]["kernel"].shape[1] == 24
  assert params["classifier"]["kernel"].shape == (24, 3)


def test_seer_s_rates_step_for_step():
  config = finetune_vissl.get_config("seer")
  per_epoch, epochs = 20, 35
  assert config.epochs == epochs
  _, rate = optim.make(config.optim, epochs * per_epoch, config.batch_size)
  found = jax.vmap(rate)(jnp.arange(epochs * per_epoch))
  wanted = np.repeat([0.0125, 0.00125], [30 * per_epoch, 5 * per_epoch])
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_swav_s_rates_of_trunk_and_head():
  config = finetune_vissl.get_config("swav_1percent")
  steps = 200
  _, rate = optim.make(config.optim, steps, config.batch_size)
  found = [float(rate(step)) for step in (0, 119, 120, 160)]
  np.testing.assert_allclose(found, [0.02, 0.02, 0.004, 0.0008], rtol=1e-6)
  assert found[0] * config.finetune.head_rate == pytest.approx(5)
