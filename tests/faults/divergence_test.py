"""What is not finite in data, gradients or scale; going back; replaying."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from photos import plant, tiny

from seer_jax.data import pipeline
from seer_jax.runtime import errors
from seer_jax.tasks import swav
from seer_jax.training import divergence, loop, run, run_log
from seer_jax.training import step as step_lib

POISON = np.array([255, 0, 255], np.uint8)

pytestmark = pytest.mark.usefixtures("shared_steps")
view, gradient = swav.SwAV.view, step_lib.gradient


@pytest.fixture
def photos(tmp_path):
  return plant(tmp_path / "photos", 40)


def settings(photos, **changes):
  config = tiny(photos, **changes)
  config.log.every = changes.get("log__every", 1)
  config.checkpoint.every = 3
  config.mesh.data = 2
  config.rollback.after = changes.get("rollback__after", 2)
  return config


def poisoned_view(self, batch):
  return [
    jnp.where(
      jnp.all(crops == POISON, axis=(2, 3, 4), keepdims=True), jnp.nan, x
    )
    for crops, x in zip(batch["crops"], view(self, batch), strict=True)
  ]


@pytest.fixture
def poisoned(monkeypatch):
  """Lets images of one colour be NaN, and samples of some numbers be those."""
  numbers = set()
  crop = pipeline._MultiCrop.__call__

  def poison(self, number, read):
    found = crop(self, number, read)
    if number in numbers:
      views = tuple(np.broadcast_to(POISON, x.shape) for x in found["crops"])
      found = found | {"crops": views}
    return found

  monkeypatch.setattr(pipeline._MultiCrop, "__call__", poison)
  monkeypatch.setattr(swav.SwAV, "view", poisoned_view)
  return numbers


def spoiled_gradient(task, config, now, batch):
  grads, aux = gradient(task, config, now, batch)
  factor = jnp.where(now.step >= 6, jnp.nan, 1.0)
  return jax.tree.map(lambda g: g * factor, grads), aux


@pytest.fixture
def bad_gradients(monkeypatch):
  """Makes the gradients of all steps from the seventh on NaN."""
  monkeypatch.setattr(step_lib, "gradient", spoiled_gradient)


def place_of(workdir, step=16):
  path = workdir / "checkpoints" / str(step) / "progress.json"
  return json.loads(path.read_text())


def finite(workdir):
  return all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(runs.state_of(workdir))
  )


def test_nan_in_data_sends_the_run_back_and_past_it(
  photos, tmp_path, poisoned, caplog
):
  poisoned.update(range(6 * 8 + 3, 9 * 8))
  for name in ("one", "again"):
    run.run(settings(photos), tmp_path / name)
  assert "Going back to step 6, and leaving out the" in caplog.text
  place = place_of(tmp_path / "one")
  (jump,) = place["jumps"]
  assert jump["from"] == 6
  assert 8 <= jump["to"] <= 9
  # The samples of the steps from 6 on were used twice: for nothing, and never.
  assert place["samples"] == (16 + jump["to"] - 6) * 8
  steps = [line["step"] for line in runs.metrics_of(tmp_path / "one")]
  assert steps == [0, *range(1, 17), 16]
  assert finite(tmp_path / "one")
  runs.assert_same_run(tmp_path / "one", tmp_path / "again")


def test_one_bad_step_is_left_out_and_told(photos, tmp_path, poisoned, caplog):
  poisoned.update(range(6 * 8, 7 * 8))
  run.run(settings(photos), tmp_path / "run")
  assert "not finite; they were not applied" in caplog.text
  assert place_of(tmp_path / "run")["jumps"] == []
  skipped = [
    line["step"]
    for line in runs.metrics_of(tmp_path / "run")
    if line.get("skipped")
  ]
  assert skipped == [7]


def stop_at(step, config, workdir, monkeypatch):
  """A run up to a signal at this step."""
  news = loop.Loop._news

  def stopping(self):
    _, *others = news(self)
    return signal.SIGTERM if self._step == step else 0, *others

  with monkeypatch.context() as patch:
    patch.setattr(loop.Loop, "_news", stopping)
    with pytest.raises(errors.Stopped):
      run.run(config, workdir)


def test_a_signal_changes_nothing_of_a_later_rollback(
  photos, tmp_path, poisoned, monkeypatch
):
  """No rollback returns to its checkpoint, which is not of a regular step."""
  poisoned.update(range(8 * 8, 10 * 8))
  run.run(settings(photos), tmp_path / "undisturbed")
  (jump,) = place_of(tmp_path / "undisturbed")["jumps"]
  assert jump["from"] == 6
  stop_at(7, settings(photos), tmp_path / "run", monkeypatch)
  assert place_of(tmp_path / "run", 7)["jumps"] == []
  run.run(settings(photos), tmp_path / "run")
  runs.assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_without_rollback_a_single_bad_step_between_logs_ends_it(
  photos, tmp_path, poisoned
):
  poisoned.update(range(6 * 8, 7 * 8))
  config = settings(photos, rollback__after=0, log__every=5)
  with pytest.raises(errors.UserError, match="diverged at step 7"):
    run.run(config, tmp_path / "run")


def test_a_bad_step_between_logs_is_told(photos, tmp_path, poisoned, caplog):
  poisoned.update(range(6 * 8, 7 * 8))
  run.run(settings(photos, log__every=5), tmp_path / "run")
  assert "1 of the last steps up to 10 had a loss" in caplog.text


def test_data_that_stays_bad_ends_the_run_and_is_replayed(
  photos, tmp_path, poisoned
):
  # Two images of every batch.
  poisoned.update(n for n in range(48, 4000) if n % 8 in (2, 5))
  with pytest.raises(errors.UserError, match="seer-jax replay") as caught:
    run.run(settings(photos), tmp_path / "run")
  assert "\n" not in str(caught.value)
  (step,) = (path.name for path in (tmp_path / "run" / "divergence").iterdir())
  found = list(run.replay(settings(photos), tmp_path / "run"))
  assert f"step {int(step) + 1} repeated: the same, not finite" in found
  kept = json.loads(
    (tmp_path / "run" / "divergence" / step / "progress.json").read_text()
  )
  blamed = next(line for line in found if "images whose features" in line)
  assert ": 2 of 8: " in blamed
  for row in (2, 5):
    assert kept["ids"][row] in blamed
  # Once mended, it says so.
  poisoned.clear()
  found = list(run.replay(settings(photos), tmp_path / "run"))
  assert f"step {int(step) + 1} repeated: it is finite here" in found


@pytest.mark.slow
def test_nan_in_gradients_ends_the_run_at_the_second_time(
  photos, tmp_path, bad_gradients, caplog
):
  with pytest.raises(errors.UserError, match="diverged at step 7"):
    run.run(settings(photos), tmp_path / "run")
  assert caplog.text.count("Going back to step 6") == 1
  found = list(run.replay(settings(photos), tmp_path / "run"))
  assert any("the same, not finite" in line for line in found)
  assert any("features are not finite: 0 of 8" in line for line in found)
  gradients = next(line for line in found if line.startswith("gradients"))
  assert not gradients.endswith(": 0")
  # What was saved is untouched, and the same command meets the same end.
  assert finite(tmp_path / "run")
  with pytest.raises(errors.UserError, match="diverged at step 7"):
    run.run(settings(photos), tmp_path / "run")


@pytest.mark.slow
def test_without_rollback_it_ends_at_once(photos, tmp_path, bad_gradients):
  config = settings(photos, rollback__after=0)
  with pytest.raises(errors.UserError, match="diverged at step 7"):
    run.run(config, tmp_path / "run")


def fp16(photos):
  return settings(photos, precision="fp16", loss_scale__first=2.0**24)


def test_an_overflowing_loss_scale_finds_its_size_without_a_rollback(
  photos, tmp_path, caplog, capsys
):
  run.run(fp16(photos), tmp_path / "run")
  lines = [x for x in runs.metrics_of(tmp_path / "run") if "skipped" in x]
  assert lines[0]["skipped"] == 1
  assert lines[-1]["skipped"] == 0
  # Where no step was applied there is no loss to report.
  assert "loss" not in lines[0] and "grad_norm" not in lines[0]
  assert all(x["loss"] > 0 for x in lines if not x["skipped"])
  shown = capsys.readouterr()
  assert "step 1/16, no step was finite, " in shown.err
  first = next(x["loss_over_lnk"] for x in lines if not x["skipped"])
  assert f"loss / ln K: first {first:.3f}" in shown.out
  assert "lack" not in caplog.text
  assert lines[-1]["loss_scale"] < 2.0**24
  assert "diverged" not in caplog.text
  assert finite(tmp_path / "run")


def test_the_clock_of_a_resumed_run_goes_on(photos, tmp_path, monkeypatch):
  """An hour before the stop is an hour after it, pauses not counted."""
  with monkeypatch.context() as patch:
    total = run_log.Clock.total
    patch.setattr(run_log.Clock, "total", lambda self: total(self) + 3600)
    stop_at(12, settings(photos), tmp_path / "run", monkeypatch)
  run.run(settings(photos), tmp_path / "run")
  lines = [json.loads(each) for each in runs.lines_of(tmp_path / "run")]
  seconds = [line["seconds"] for line in lines if "seconds" in line]
  assert len(seconds) == 16
  assert sorted(seconds) == seconds
  assert 3600 < seconds[-1] < 3900


def test_a_resumed_run_goes_on_with_its_loss_scale(
  photos, tmp_path, monkeypatch
):
  run.run(fp16(photos), tmp_path / "undisturbed")
  stop_at(12, fp16(photos), tmp_path / "run", monkeypatch)
  run.run(fp16(photos), tmp_path / "run")
  runs.assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_that_exploded_are_blamed_instead_of_the_images(
  photos, tmp_path, monkeypatch, precision
):
  """Above 1e3 before the step: whatever image is shown, it overflows."""
  init = step_lib.init

  def exploded(*args):
    now = init(*args)
    return now.replace(params=jax.tree.map(lambda x: x * 1e27, now.params))

  monkeypatch.setattr(step_lib, "init", exploded)
  config = settings(photos, precision=precision, rollback__after=0)
  config.loss_scale.first = 0.5
  config.eval.evals = ()
  config.seed = 1  # Not the program of the other tests.
  with pytest.raises(errors.UserError, match="diverged at step 1:"):
    run.run(config, tmp_path / "run")
  *_, last = run.replay(config, tmp_path / "run")
  assert "had grown to" in last and "config.optim.lr" in last
  assert "images" not in last


@pytest.mark.parametrize(
  ("precision", "bad", "words"),
  [
    ("fp32", 0, "backward pass overflowed; try a lower config.optim.lr"),
    ("bf16", 0, "backward pass overflowed; try a lower config.optim.lr"),
    (
      "fp16",
      0,
      "backward pass overflowed; try config.precision=fp32, or a lower",
    ),
    (
      "fp16",
      8,
      "forward pass overflowed; try config.precision=fp32, or a lower",
    ),
    ("fp16", 2, "check these images"),
    ("fp32", 8, "check these images"),
  ],
)
def test_advice_suits_the_precision(precision, bad, words):
  assert words in divergence._verdict(precision, bad, 8, 0.5, "params/a")


@pytest.mark.slow
def test_a_loss_scale_that_keeps_falling_is_divergence(
  photos, tmp_path, bad_gradients
):
  config = settings(photos, precision="fp16", loss_scale__first=8.0)
  with pytest.raises(errors.UserError, match="diverged at step 7"):
    run.run(config, tmp_path / "run")
  found = list(run.replay(config, tmp_path / "run"))
  assert any("the same, not finite" in line for line in found)


def test_nothing_to_replay_is_a_user_error(photos, tmp_path):
  with pytest.raises(errors.UserError, match="no step to replay"):
    list(run.replay(settings(photos), tmp_path / "run"))
