"""Every shipped config holds together, down to the shapes of one step."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from seer_jax import config as config_lib
from seer_jax import errors, optim, recipe, tasks
from seer_jax import step as step_lib

CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_resolves_and_its_step_keeps_the_shapes(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  here = recipe.Situation(
    images=50_000, side=64, devices=1, accelerated=False, cores=2
  )
  recipe.complete(config, here)
  config_lib.check(config)
  task = tasks.SwAV(config, jnp.float32)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size)
  before = jax.eval_shape(lambda: step_lib.init(task, tx, config.seed))
  batch = {
    "crops": tuple(
      jax.ShapeDtypeStruct((config.batch_size, count, size, size, 3), jnp.uint8)
      for count, size in zip(
        config.crops.counts, config.crops.sizes, strict=True
      )
    )
  }
  step = step_lib.train_step(task, tx, config)
  after, window = jax.eval_shape(step, before, batch)
  assert after == before
  assert window["loss"].shape == ()


@pytest.mark.parametrize(
  ("wrong", "near"),
  [
    ("batch_sise", "batch_size"),
    ("swav.epsilom", "swav.epsilon"),
    ("epsilon", "swav.epsilon"),
    ("data.train.pth", "data.train.path"),
    ("learning_rate_of_the_whole_thing", None),
  ],
)
def test_a_misspelt_key_has_a_nearest_one(wrong, near):
  assert config_lib.nearest_key(config_lib.base(), wrong) == near


def test_unknown_keys_and_wrong_types_raise():
  config = config_lib.base()
  config.lock()
  with pytest.raises(AttributeError):
    config.batchsize = 3
  with pytest.raises(TypeError):
    config.batch_size = "many"


def test_a_workdir_keeps_its_config_but_for_what_touches_no_result(tmp_path):
  config = config_lib.base()
  config_lib.claim(tmp_path, config)
  config.data.workers = 7
  config_lib.claim(tmp_path, config)
  config.seed = 1
  with pytest.raises(errors.UserError, match="seed was 0, is 1"):
    config_lib.claim(tmp_path, config)
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
