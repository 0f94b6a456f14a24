"""Runs that are stopped in and around evaluations."""

import os
import signal

import jax
import pytest
import runs
from photos import plant, tiny

from seer_jax.evals import suite
from seer_jax.runtime import errors
from seer_jax.training import loop, metrics
from seer_jax.training import run as run_lib

pytestmark = pytest.mark.usefixtures("shared_steps")


@pytest.fixture
def photos(tmp_path):
  return plant(tmp_path / "photos", 40)


def settings(photos, **changes):
  config = tiny(photos, **changes)
  config.eval.every = 4
  config.checkpoint.every = 4
  config.mesh.data = 2
  return config


class Killed(Exception):
  """Stands for kill -9: nothing more is written."""


def test_one_that_was_stopped_is_neither_lost_nor_doubled(
  photos, tmp_path, monkeypatch
):
  """Stopped in the evaluation of step 4; killed soon after it was repeated."""
  run_lib.run(settings(photos), tmp_path / "undisturbed")
  evaluate, advance = loop.Loop._evaluate, loop.Loop._take_step

  def stopped(self):
    if self._step == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    evaluate(self)

  def killed(self, batches):
    if self._step == 5:
      raise Killed
    advance(self, batches)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_evaluate", stopped)
    with pytest.raises(errors.Stopped):
      run_lib.run(settings(photos), tmp_path / "run")
  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_take_step", killed)
    with pytest.raises(Killed):
      run_lib.run(settings(photos), tmp_path / "run")
  run_lib.run(settings(photos), tmp_path / "run")
  runs.assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_lines_of_evaluations_that_will_be_done_again_are_dropped(tmp_path):
  writer = metrics.Writer(tmp_path, None)
  for step in (0, 4):
    writer.write(step, {"loss": 1.0})
    writer.write(step, {"eval_seconds": 1.0})
  writer.close()
  metrics.Writer(tmp_path, resumed_at=4, evaluated=0).close()
  lines = metrics.read_lines(tmp_path / "metrics.jsonl")
  assert [(x["step"], "loss" in x) for x in lines] == [
    (0, True),
    (0, False),
    (4, True),
  ]


def test_features_of_one_state_are_not_those_of_the_next(photos, tmp_path):
  """Two states of the same step, as before and after a rollback."""
  seen = []
  run = suite.Evaluation.run

  def twice(self, variables):
    seen.append(run(self, variables))
    params = jax.tree.map(lambda x: -2 * x, variables["params"])
    seen.append(run(self, variables | {"params": params}))
    return seen[0]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(suite.Evaluation, "run", twice)
    run_lib.run(settings(photos), tmp_path / "run")
  assert seen[0]["features/std"] != seen[1]["features/std"]


def test_a_best_metric_that_is_not_evaluated_is_a_user_error(photos, tmp_path):
  config = settings(photos, checkpoint__best=1)
  config.checkpoint.best_metric = "knn/k=19"
  with pytest.raises(errors.UserError, match="features/std"):
    run_lib.run(config, tmp_path / "run")
