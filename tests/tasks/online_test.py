"""The classifier that watches pre-training changes nothing of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ten_steps

from seer_jax.data import pipeline
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import swav
from seer_jax.training import optim
from seer_jax.training import step as step_lib


def trained(rate, steps=1):
  """(state, last window) after some steps on random crops."""
  config = ten_steps.make_config("one-head")
  config.online.lr, config.classes = rate, 3
  mesh = mesh_lib.make(1)
  with jax.set_mesh(mesh):
    task = swav.SwAV(config, jnp.float32)
    tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
    programs = step_lib.build(task, tx, config, mesh)
    now = programs.init()
    rng = np.random.default_rng(0)
    for _ in range(steps):
      batch = jax.tree.map(
        lambda x: rng.integers(0, 3 if x.ndim == 1 else 256, x.shape).astype(
          x.dtype
        ),
        pipeline.abstract_batch(config, mesh),
      )
      batch["replacements"] = np.zeros(config.batch_size, np.float32)
      now, window = programs.step(now, mesh_lib.to_global(mesh, batch))
  return now, window


@pytest.fixture(scope="module")
def with_and_without():
  return trained(0.1), trained(0.0)


def test_the_network_learns_what_it_would_without(with_and_without):
  (watched, _), (alone, _) = with_and_without
  params = dict(watched.params)
  assert set(params.pop("online")) == {"kernel", "bias"}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    params,
    dict(alone.params),
  )


def test_no_gradient_reaches_the_features():
  config = ten_steps.make_config("one-head")
  config.online.lr, config.classes = 0.1, 3
  task = swav.SwAV(config, jnp.float32)
  features_BxD = jax.random.normal(jax.random.key(0), (4, 8))
  params = {
    "online": task.online.init(jax.random.key(1), features_BxD)["params"]
  }
  labels_B = jnp.array([0, 1, 2, -1])
  slope = jax.grad(lambda x: task._online(params, x, labels_B)[0])
  assert (np.asarray(slope(features_BxD)) == 0).all()


def test_the_classifier_learns_and_is_reported(with_and_without):
  (watched, window), _ = with_and_without
  assert {"online/loss", "online/accuracy"} <= set(window)
  assert float(np.abs(watched.params["online"]["bias"]).max()) > 0
