"""The linear probe: its optimum, its heads, its published learning rates."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets, linear_model

from seer_jax import config as config_lib
from seer_jax.models import heads
from seer_jax.models.batch_norm import BatchNorm
from seer_jax.runtime import errors
from seer_jax.tasks import probe
from seer_jax.tasks.state import State
from seer_jax.training import optim


def small(**changes):
  config = config_lib.labelled()
  config.task, config.classes = "probe", 10
  config.crops.sizes, config.crops.scales = (8,), ((1.0, 1.0),)
  config.augment.flip = 0.0
  config.eval.size = config.eval.resize = 8
  config.model.regnet = (1, 8, 8.0, 2.0, 8)
  config.model.stem_stride, config.model.strides = 1, (2,)
  config.model.scan, config.model.remat = False, "none"
  config.optim.lr, config.optim.lr_batch = 1.0, 1
  config.update_from_flattened_dict(changes)
  return config


class _Table:
  """A frozen "network" whose features are rows of a table."""

  def __init__(self, preprocessing):
    self.preprocessing = preprocessing

  def apply(self, variables, x, train=False):
    return {"avgpool": x.reshape(len(x), -1)}


def test_the_optimum_is_scikit_learn_s_logistic_regression():
  x, labels = datasets.load_digits(return_X_y=True)
  x = ((x - x.mean(0)) / (x.std(0) + 1e-3)).astype(np.float32)
  train, test = slice(0, 400), slice(400, None)
  decay, count = 1e-2, 400
  config = small(
    **{
      "probe.taps": ("avgpool",),
      "probe.norms": (False,),
      "probe.rates": (0.2, 0.5),
      "batch_size": count,
      "optim.lr": 0.5,
      "optim.weight_decay": decay,
      "optim.decay_biases": False,
      "optim.end": 0.01,
    }
  )
  config.optim.lr_batch, steps = count, 1500
  task = probe.Probe(config, jnp.float32)
  task.network = _Table(task.network.preprocessing)
  # What `view` would make of images is the table itself.
  task.view = lambda batch: [batch["x"][:, None, None, None]]
  params = task.heads.init(
    jax.random.key(0), task.network.apply({}, x[:2]), train=True
  )["params"]
  tx, _ = optim.make(config.optim, steps, count, task)
  batch = {"x": jnp.asarray(x[train]), "label": jnp.asarray(labels[train])}
  state = types.SimpleNamespace(extra={"network": {}}, batch_stats={})

  def step(carry, number):
    params, opt_state = carry
    loss = lambda params: task.loss(params, state, batch)  # noqa: E731
    grads, _ = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params, step=number)
    return (jax.tree.map(jnp.add, params, updates), opt_state), None

  run = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0][0])
  params = run((params, tx.init(params)))
  theirs = linear_model.LogisticRegression(
    C=1 / (count * decay), tol=1e-8, max_iter=5000
  ).fit(x[train], labels[train])
  wanted = theirs.score(x[test], labels[test])
  variables = {"params": params, "batch_stats": {}, "network": {}}
  encoder = probe._Probed(task.network, task.heads, config.probe.rates)
  logits_HxNxL = encoder.apply(variables, jnp.asarray(x[test]))["logits"]
  found_H = (logits_HxNxL.argmax(-1) == labels[test]).mean(-1)
  assert np.abs(np.asarray(found_H) - wanted).max() <= 0.002
  kernel = np.asarray(params["avgpool"]["kernel"])[1]
  np.testing.assert_allclose(kernel.T, theirs.coef_, atol=2e-3)


def test_a_head_that_diverges_leaves_the_others_alone():
  x, labels = datasets.load_digits(return_X_y=True)
  batch = {"x": jnp.asarray(x[:200], jnp.float32), "label": labels[:200]}
  both, alone = (
    steps_of(rates, batch, steps=40) for rates in ((1e-3, 1e6), (1e-3,))
  )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-6),
    both,
    alone,
  )


def steps_of(rates, batch, steps):
  """The heads after some steps on the whole of a table."""
  config = small(
    **{
      "probe.taps": ("avgpool",),
      "probe.norms": (False,),
      "probe.rates": rates,
      "batch_size": len(batch["x"]),
    }
  )
  config.optim.lr_batch = config.batch_size
  task = probe.Probe(config, jnp.float32)
  task.network = _Table(task.network.preprocessing)
  task.view = lambda batch: [batch["x"][:, None, None, None]]
  # The same beginning for as many copies as there are.
  params = task.heads.init(
    jax.random.key(0), task.network.apply({}, batch["x"][:2]), train=True
  )["params"]
  params = jax.tree.map(jnp.zeros_like, params)
  tx, _ = optim.make(config.optim, steps, config.batch_size, task)
  opt_state = tx.init(params)
  state = types.SimpleNamespace(extra={"network": {}}, batch_stats={})
  slope = jax.jit(jax.grad(lambda p: task.loss(p, state, batch), has_aux=True))
  for step in range(steps):
    grads, _ = slope(params)
    updates, opt_state = tx.update(grads, opt_state, params, step=step)
    params = jax.tree.map(jnp.add, params, updates)
  return params


def test_heads_are_normalised_pooled_and_linear():
  """A head written out: BatchNorm over channels, grid, one layer."""
  rng = np.random.default_rng(0)
  taps = {"res2": jnp.asarray(rng.normal(2, 3, (6, 4, 4, 5)), jnp.float32)}
  head = heads.ProbeHeads(3, ("res2:2x1",), (True,), 2)
  variables = head.init(jax.random.key(0), taps, train=True)
  own = variables["params"]["res2:2x1+bn"]
  own["scale"] = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
  own["shift"] = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
  logits, changed = head.apply(
    variables, taps, train=True, mutable=["batch_stats"]
  )
  cells = np.asarray(taps["res2"]).reshape(6, 2, 2, 4, 5).mean((2, 3))
  flat = cells.reshape(-1, 5)
  normal = (cells - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
  for copy in range(2):
    rows = (normal * own["scale"][copy] + own["shift"][copy]).reshape(6, -1)
    wanted = rows @ own["kernel"][copy] + own["bias"][copy]
    np.testing.assert_allclose(
      logits["res2:2x1+bn"][copy], wanted, rtol=1e-4, atol=1e-5
    )
  mean = changed["batch_stats"]["res2:2x1+bn"]["norm"]["mean"]
  np.testing.assert_allclose(mean, 0.1 * flat.mean(0), rtol=1e-5)


@pytest.mark.parametrize("sides", [(7, 7), (5, 4)])
@pytest.mark.parametrize("grid", ["2x1", "3x2", "1x1"])
def test_grids_are_pytorch_s_adaptive_means(sides, grid):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
  rows, columns = map(int, grid.split("x"))
  wanted = torch.nn.functional.adaptive_avg_pool2d(
    torch.tensor(x.transpose(0, 3, 1, 2)), (rows, columns)
  )
  found = heads.pooled({"res2": jnp.asarray(x)}, f"res2:{grid}")
  theirs = wanted.permute(0, 2, 3, 1).reshape(2, -1)
  np.testing.assert_allclose(found, theirs, atol=1e-6)


@pytest.mark.parametrize(
  "text", ["res9", "res4:0x1", "res4:2", "avgpool:2x1", ""]
)
def test_taps_that_do_not_exist_are_refused(text):
  with pytest.raises(errors.UserError):
    heads.tap(text)


def test_a_tap_that_the_network_lacks_is_told():
  with pytest.raises(errors.UserError, match="no tap res5; .* res2"):
    heads.pooled({"res2": jnp.ones((1, 2, 2, 3))}, "res5")


def test_the_network_is_not_touched():
  config = small(**{"probe.taps": ("res2", "avgpool"), "batch_size": 4})
  task = probe.Probe(config, jnp.float32)
  params, stats, extra = task.init(jax.random.key(0))
  state = State(0, params, stats, None, extra, None, 0, None)
  batch = {
    "crops": (jnp.zeros((4, 1, 8, 8, 3), jnp.uint8),),
    "label": jnp.array([0, 1, 2, -1]),
    "keys_B": jax.random.split(jax.random.key(1), 4),
  }

  def loss(network):
    now = state.replace(extra={"network": network})
    return task.loss(params, now, batch)[0]

  slopes = jax.tree.leaves(jax.grad(loss)(extra["network"]))
  assert all((np.asarray(each) == 0).all() for each in slopes)
  assert task.after_step(state, ()) is extra
  assert set(params) == {"res2+bn", "res2", "avgpool+bn", "avgpool"}


def test_one_rate_for_each_copy():
  config = small(
    **{
      "probe.taps": ("avgpool",),
      "probe.rates": (1.0, 10.0),
      "optim.weight_decay": 0.0,
    }
  )
  task = probe.Probe(config, jnp.float32)
  tx, _ = optim.make(config.optim, 10, 1, task)
  params = {
    "avgpool": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}
  }
  updates, _ = tx.update(params, tx.init(params), params, step=0)
  for leaf in jax.tree.leaves(updates):
    np.testing.assert_allclose(leaf[1], 10 * leaf[0], rtol=1e-6)


# VISSL's schedules: epochs, base rate, and what follows (seer_facts 4.2, 4.3).
_STEPPED = {
  "imagenet": (28, 0.01, (8, 16, 24)),
  "places205": (14, 0.01, (4, 8, 12)),
  "inaturalist18": (84, 0.01, (24, 48, 72)),
}


@pytest.mark.parametrize("name", _STEPPED)
def test_published_rates_step_for_step(name):
  from configs import linear_vissl

  epochs, base, milestones = _STEPPED[name]
  config = linear_vissl.get_config(name)
  assert config.epochs == epochs
  per_epoch, batch = 50, 2048
  steps = epochs * per_epoch
  _, rate = optim.make(config.optim, steps, batch)
  found = jax.jit(jax.vmap(rate))(jnp.arange(steps))
  wanted = [
    base * batch / 256 * 0.1 ** sum(step // per_epoch >= m for m in milestones)
    for step in range(steps)
  ]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_published_cosine_step_for_step():
  from configs import linear_vissl

  config = linear_vissl.get_config("clevr_count")
  steps = config.epochs * 10
  _, rate = optim.make(config.optim, steps, 256)
  where = np.arange(steps) / steps
  wanted = 1e-4 + (0.01 - 1e-4) * (1 + np.cos(np.pi * where)) / 2
  found = jax.vmap(rate)(jnp.arange(steps))
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_norm_without_scale_and_bias_has_no_parameters():
  norm = BatchNorm(affine=False)
  variables = norm.init(jax.random.key(0), jnp.ones((2, 3)), train=True)
  assert set(variables) == {"batch_stats"}
