import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seer_jax.config import batch, keys
from seer_jax.training import optim


@pytest.mark.parametrize(
  ("step", "rate"),
  [
    (0, 0.15),
    (1, 0.151664),
    (1000, 1.813637),
    (5499, 9.298341),
    (5500, 9.256395),
    (8000, 9.207906),
    (63004, 4.654650),
    (126007, 0.009300),
  ],
)
def test_rates_of_seer_10b_step_for_step(step, rate):
  schedule = optim.warmup_cosine(
    9.3, 126_008, 0.043648 * 126_008, start=0.15, end=0.0093
  )
  assert schedule(step) == pytest.approx(rate, abs=2e-6)


@pytest.mark.parametrize(
  ("step", "rate"),
  [
    (0, 0.15),
    (1000, 1.33125),
    (7999, 9.598819),
    (8000, 9.498725),
    (61035, 4.804800),
    (122069, 0.009600),
  ],
)
def test_rates_of_seer_256gf_step_for_step(step, rate):
  schedule = optim.warmup_cosine(9.6, 122_070, 8000, start=0.15, end=0.0096)
  assert schedule(step) == pytest.approx(rate, abs=2e-6)


def test_without_warm_up_the_cosine_starts_at_the_peak():
  assert optim.warmup_cosine(2.0, 10, 0, 0.0, 0.0)(0) == 2.0


def test_the_peak_grows_with_the_batch():
  options = keys.base().optim
  options.lr = 0.3
  assert batch.peak_rate(options, 4096) == pytest.approx(4.8)


def larc(grads, params, trust, weight_decay):
  tx = optim.scale_by_larc(trust, lambda path: weight_decay)
  return tx.update(grads, tx.init(params), params)[0]


def test_larc_gives_each_tensor_a_fixed_share_of_its_norm():
  params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[0.6], [0.8]])}
  grads = {"a": jnp.array([1e-3, 0.0]), "b": jnp.array([[1e3], [0.0]])}
  scaled = larc(grads, params, trust=0.001, weight_decay=0.0)
  assert jnp.linalg.norm(scaled["a"]) == pytest.approx(0.005, rel=1e-3)
  assert jnp.linalg.norm(scaled["b"]) == pytest.approx(0.001, rel=1e-3)


def test_larc_leaves_tensors_alone_that_are_zero_or_at_rest():
  params = {"zero": jnp.zeros(2), "rest": jnp.ones(2)}
  grads = {"zero": jnp.array([1.0, 2.0]), "rest": jnp.zeros(2)}
  scaled = larc(grads, params, trust=0.001, weight_decay=0.1)
  jax.tree.map(np.testing.assert_array_equal, scaled, grads)


@pytest.mark.parametrize("name", ["larc", "lars", "sgd", "adamw"])
def test_every_optimiser_goes_downhill(name):
  options = keys.base().optim
  options.name, options.lr, options.trust = name, 0.1, 0.1
  tx, _ = optim.make(options, total_steps=100, batch_size=256)
  params = {"w": jnp.array([1.0, -2.0, 3.0])}
  state = tx.init(params)

  def loss(params):
    return jnp.sum(jnp.square(params["w"]))

  first = loss(params)
  for step in range(20):
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params, step=step)
    params = optax.apply_updates(params, updates)
  assert loss(params) < first
