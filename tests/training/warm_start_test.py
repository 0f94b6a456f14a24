"""What training takes from weights, and what it begins anew."""

import types

import jax
import numpy as np
import pytest

import seer_jax
from seer_jax import config as config_lib
from seer_jax import tasks
from seer_jax.config import auto
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.training import optim
from seer_jax.training import step as step_lib
from seer_jax.weights import warm_start


def config_of(weights, task, **changes):
  config = config_lib.labelled()
  config.task, config.weights, config.classes = task, str(weights), 10
  config.batch_size, config.steps = 8, 4
  config.update_from_flattened_dict(changes)
  warm_start.decide(config)
  here = auto.RunContext(100, 8, 1, "cpu", ("fp32", "a test"), 2, labels=10)
  auto.complete(config, here)
  return config


def begun(config, mesh=None):
  mesh = mesh or mesh_lib.make(1)
  with jax.set_mesh(mesh):
    task = tasks.create(config)
    tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
    programs = step_lib.build(task, tx, config, mesh)
    return task, warm_start.begin(programs.init(), task, config, mesh)


def equal(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(scope="module")
def weights(tiny):
  return seer_jax.load(tiny)


def test_the_network_and_its_preprocessing_follow_from_the_weights(
  tiny, weights
):
  model, _ = weights
  config = config_of(tiny, "probe")
  task = tasks.create(config)
  assert task.network.architecture == model.architecture
  assert task.network.preprocessing == model.preprocessing
  assert config.crops.sizes == (model.preprocessing.size,)
  larger = config_of(tiny, "probe", **{"eval.size": 24, "eval.resize": 28})
  assert (larger.eval.size, larger.eval.resize) == (24, 28)
  assert larger.crops.sizes == (24,)


def test_fine_tuning_takes_the_trunk_and_has_a_new_classifier(tiny, weights):
  _, variables = weights
  task, state = begun(config_of(tiny, "finetune", **{"finetune.ema": 0.9}))
  equal(state.params["trunk"], variables["params"]["trunk"])
  equal(state.batch_stats["trunk"], variables["batch_stats"]["trunk"])
  assert set(state.params) == {"trunk", "classifier"}
  average = task.variables(state)
  equal(average["params"], state.params)
  assert average["params"] is not state.params


def test_the_swav_head_takes_the_first_layer_of_the_projection(tiny, weights):
  _, variables = weights
  config = config_of(tiny, "finetune", **{"finetune.head": "swav"})
  _, state = begun(config)
  equal(state.params["head"]["linear0"], variables["params"]["head"]["linear0"])
  assert "linear1" not in state.params["head"]


def test_a_probe_takes_the_whole_network_over_a_mesh(tiny, weights):
  _, variables = weights
  config = config_of(tiny, "probe", **{"probe.rates": (1.0,)})
  _, state = begun(config, mesh_lib.make(2, 2))
  found = jax.device_get(state.extra["network"])
  wanted = {"params": variables["params"], "batch_stats": found["batch_stats"]}
  for kind, tree in wanted.items():
    for name in ("trunk", "head"):
      equal(found[kind][name], tree[name])


def test_a_head_that_the_weights_lack_is_told(tiny, weights, monkeypatch):
  bare = weights[0].clone(hidden=(), out=0, prototype_counts=())
  monkeypatch.setattr(
    warm_start.load,
    "open_weights",
    lambda name: types.SimpleNamespace(model=bare),
  )
  with pytest.raises(errors.UserError, match="no projection"):
    config_of(tiny, "finetune", **{"finetune.head": "swav"})
