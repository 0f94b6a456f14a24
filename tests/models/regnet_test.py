import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.models import architectures, encoder, regnet
from seer_jax.models.batch_norm import BatchNorm
from seer_jax.runtime import errors


def test_seer_256gf_rounds_to_whole_groups_and_no_further():
  made = architectures.MODELS["seer_256gf"]
  assert made.depths == (2, 7, 17, 1)
  assert made.widths == (746, 1492, 4103, 10444)


def test_squeeze_widths_round_half_to_even():
  arch = architectures.MODELS["seer_256gf"]
  variables = jax.eval_shape(
    lambda: regnet.RegNet(arch).init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )
  )
  params = variables["params"]
  assert params["stage1_block1"]["se"]["reduce"]["bias"].shape == (186,)
  assert params["stage3_block1"]["se"]["reduce"]["bias"].shape == (1026,)


@pytest.mark.parametrize(
  "numbers", [(4, 48, -1.0, 2.0, 8), (4, 50, 8.0, 2.0, 8), (4, 48, 8.0, 1, 8)]
)
def test_numbers_outside_the_rule_are_refused(numbers):
  with pytest.raises(ValueError, match="a RegNet needs"):
    architectures.from_numbers(*numbers)


def test_another_number_of_stages_than_strides_is_refused():
  with pytest.raises(ValueError, match="make 2 stages"):
    architectures.from_numbers(2, 16, 16.0, 2.0, 8)


def test_taps_have_the_published_strides():
  arch = architectures.MODELS["regnety_200mf"]
  taps = jax.eval_shape(
    lambda: regnet.RegNet(arch).init_with_output(
      jax.random.key(0), jnp.zeros((2, 64, 64, 3)), train=False
    )[0]
  )
  maps = ("conv1", "res2", "res3", "res4", "res5")
  sides = [taps[name].shape[1] for name in maps]
  assert sides == [32, 16, 8, 4, 2]
  assert taps["avgpool"].shape == (2, 368)


def batch_norm(x, groups=1, train=True):
  module = BatchNorm(groups)
  variables = module.init(jax.random.key(0), x, train=True)
  return module.apply(variables, x, train=train, mutable=["batch_stats"])


def test_batch_norm_keeps_its_precision_where_the_mean_is_large():
  x = 300 + jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
  module = BatchNorm()
  variables = module.init(jax.random.key(0), x, train=True)
  # Once the running mean is near, nothing cancels.
  stats = {"mean": jnp.full(3, 299.0), "var": jnp.ones(3)}
  y, _ = module.apply(
    variables | {"batch_stats": stats}, x, train=True, mutable=["batch_stats"]
  )
  wide = np.asarray(x, np.float64)
  expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-4)


def test_batch_norm_in_groups_is_batch_norm_of_each_part():
  x = jax.random.normal(jax.random.key(0), (8, 3, 3, 5))
  y, _ = batch_norm(x, groups=2)
  halves = [batch_norm(half)[0] for half in jnp.split(x, 2)]
  np.testing.assert_allclose(y, jnp.concatenate(halves), atol=1e-6)


def test_running_variance_is_the_unbiased_one():
  x = jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
  _, changed = batch_norm(x)
  wanted = 0.9 + 0.1 * np.var(x, axis=(0, 1, 2), ddof=1)
  np.testing.assert_allclose(changed["batch_stats"]["var"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
  "how",
  [
    {"remat": "block"},
    {"remat": "group", "groups": ((1,), (2, 3))},
    {"remat": "group", "groups": ((), (2,))},
    {"remat": "first-2"},
    {"scan": True},
    {"remat": "first-3", "scan": True},
    {"remat": "block", "scan": True},
  ],
)
def test_how_blocks_are_run_changes_nothing(how):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 0, 5e-5 * np.abs(b).max()),
    gradients(regnet.Execution(**how)),
    gradients(regnet.Execution()),
  )


@functools.cache
def gradients(execution):
  """Of stages of 1 and 3 blocks, and the statistics they leave."""
  arch = architectures.Architecture((1, 3), (16, 32), (8, 8), strides=(2, 1))
  x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
  trunk = regnet.RegNet(arch, execution=execution)
  init = functools.partial(regnet.RegNet(arch).init, train=True)
  variables = jax.jit(init)(jax.random.key(0), x)

  def loss(params):
    taps, changed = trunk.apply(
      variables | {"params": params}, x, train=True, mutable=["batch_stats"]
    )
    return jnp.sum(jnp.square(taps["avgpool"])), changed

  return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


@pytest.mark.parametrize(
  ("shape", "dtype", "hint"),
  [
    ((2, 3, 64, 64), "float32", "channels must come last: x.transpose"),
    ((2, 64, 64, 3), "uint8", "model.preprocessing.normalize"),
    ((64, 64, 3), "float32", r"x\[None\]"),
    ((2, 64, 64, 1), "float32", "model.preprocessing"),
    ((2, 64, 64, 3), "int32", "model.preprocessing"),
  ],
)
def test_what_are_no_images_of_the_network_is_said_in_words(shape, dtype, hint):
  network = encoder.Encoder(architectures.MODELS["regnety_200mf"])
  with pytest.raises(errors.UserError, match=f"shape NxHxWx3.*{hint}"):
    jax.eval_shape(lambda: network.apply({}, jnp.zeros(shape, dtype)))
