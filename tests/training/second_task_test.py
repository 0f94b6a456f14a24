"""Another task than SwAV trains through the same step and loop.

How bright an image is, read off the trunk's features: labels that cost nothing,
a loss that is a mean over images, nothing kept between steps.
"""

import shutil

import jax
import jax.numpy as jnp
import runs

from configs import digits
from seer_jax.data import pipeline, preprocessing
from seer_jax.models import encoder
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import base
from seer_jax.training import optim, run
from seer_jax.training import step as step_lib


class Brightness(base.Task):
  """Mean squared error of the mean pixel, in standard deviations."""

  METRICS = ("loss", "offset")

  def __init__(self, config):
    self.dtype = jnp.float32
    self.totals = {"bright_2": (2,)}
    self._shape = (config.batch_size, *config.crops.sizes * 2, 3)
    self.encoder = encoder.of_images(config).clone(
      hidden=(), out=0, prototype_counts=(), classes=1
    )

  def init(self, key):
    variables = self.encoder.init(key, jnp.zeros(self._shape), train=True)
    return variables["params"], variables["batch_stats"], {}

  def view(self, batch):
    prepared = self.encoder.preprocessing
    return [
      preprocessing.normalize(
        batch["crops"][0][:, :1] / 255.0, prepared.mean, prepared.std
      )
    ]

  def loss(self, params, state, batch, targets=None):
    assert targets is None
    (x_Bx1xHxWx3,) = self.view(batch)
    found, changed = self.encoder.apply(
      {"params": params, "batch_stats": state.batch_stats},
      x_Bx1xHxWx3[:, 0],
      train=True,
      mutable=["batch_stats"],
    )
    wanted_B = x_Bx1xHxWx3.mean((1, 2, 3, 4))
    error_B = found["logits"][:, 0] - wanted_B
    metrics = {"loss": jnp.mean(error_B**2), "offset": jnp.mean(error_B)}
    bright = jnp.sum(wanted_B > -1)
    totals = {"bright_2": jnp.stack([len(wanted_B) - bright, bright])}
    return metrics["loss"], base.Aux(
      changed["batch_stats"], metrics, totals, None
    )

  def report(self, totals):
    dark, bright = totals["bright_2"]
    return {"share_bright": float(bright / (dark + bright))}


def settings(**changes):
  config = digits.get_config()
  config.update_from_flattened_dict(
    {
      "steps": 40,
      "batch_size": 16,
      "model.regnet": (1, 16, 16.0, 2.0, 8),
      "model.strides": (2,),
      "model.remat": "none",
      "optim.lr": 1.0,
      "checkpoint.every": 20,
      "eval.max_images": 100,
      "log.every": 5,
    }
    | changes
  )
  return config


def losses_of(workdir):
  return [line for line in runs.metrics_of(workdir) if "loss" in line]


def test_another_task_is_learned_evaluated_saved_and_resumed(tmp_path, capsys):
  run.run(settings(), tmp_path, Brightness)
  said = capsys.readouterr()
  lines = losses_of(tmp_path)
  assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
  assert lines[-1]["share_bright"] > 0.5
  assert "prototypes/entropy" not in lines[-1]
  assert "loss: first" in said.out and "ln K" not in said.out + said.err
  assert "knn/k=20" in said.out and "effective rank of features" in said.out

  shutil.rmtree(tmp_path / "checkpoints" / "40")
  run.run(settings(), tmp_path, Brightness)
  assert losses_of(tmp_path) == lines


def test_another_task_is_differentiated_in_parts():
  """It has no targets that its parts would share."""
  config = settings(accumulate=2)
  task = Brightness(config)
  tx, _ = optim.make(config.optim, config.steps, config.batch_size)
  before = jax.eval_shape(lambda: step_lib.init(task, tx, config))
  mesh = mesh_lib.make(1)
  with jax.set_mesh(mesh):
    batch = pipeline.abstract_batch(config, mesh)
    step = step_lib.train_step(task, tx, config)
    after, window = jax.eval_shape(step, before, batch)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
  assert {"loss", "offset", "bright_2"} <= window.keys()
