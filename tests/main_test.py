"""The command as a user runs it: to the end, killed, stopped, mistaken."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from seer_jax import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40
# The digits run, shrunk until a step takes milliseconds.
TINY = (
  "--config=configs/digits.py",
  f"--config.steps={STEPS}",
  "--config.batch_size=16",
  "--config.model.numbers=(2,16,16.0,2.0,16)",
  "--config.model.strides=(2,2)",
  "--config.model.head.hidden=(16,)",
  "--config.swav.freeze_steps=4",
  "--config.swav.queue_length=32",
  "--config.swav.queue_start=3",
  "--config.checkpoint.every=5",
  "--config.eval.every=0",
  "--config.eval.max_images=100",
  "--config.log.every=2",
)
CLOCKED = ("images_per_second", "data_wait", "eval_seconds")


def start(*args, devices=1):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    [sys.executable, "-m", "seer_jax.main", *args],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def run(*args, devices=1):
  return finish(start(*args, devices=devices))


def lines_of(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_text().splitlines() if path.exists() else []


def wait_for_step(workdir, step):
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if any(f'"step": {step},' in line for line in lines_of(workdir)):
      return
    time.sleep(0.01)
  raise AssertionError(f"step {step} was never logged in {workdir}")


def state_of(workdir):
  with contextlib.closing(checkpoint.Checkpoints(workdir, keep=2)) as kept:
    return kept.read()


def metrics_of(workdir):
  lines = [json.loads(line) for line in lines_of(workdir)]
  return [
    {key: value for key, value in line.items() if key not in CLOCKED}
    for line in lines
  ]


def assert_same_run(one, other):
  jax.tree.map(np.testing.assert_array_equal, state_of(one), state_of(other))
  assert metrics_of(one) == metrics_of(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  code, out, err = run(*TINY, f"--workdir={workdir}")
  assert code == 0, err
  return workdir, out


def test_a_run_ends_with_knn_and_loss_of_the_untrained_and_the_trained(
  undisturbed,
):
  workdir, out = undisturbed
  assert "knn/k=20 top-1: untrained 0." in out
  assert "loss / ln K: first" in out
  steps = [line["step"] for line in metrics_of(workdir)]
  assert steps == [0, *range(2, STEPS + 1, 2), STEPS]
  assert list((workdir / "tensorboard").iterdir())


# Killed before anything is saved, the run starts over.
@pytest.mark.parametrize(("at", "every"), [(4, 1000), (12, 5)])
def test_killed_in_the_middle_it_goes_on_bit_for_bit(
  undisturbed, tmp_path, at, every
):
  process = start(
    *TINY, f"--workdir={tmp_path}", f"--config.checkpoint.every={every}"
  )
  wait_for_step(tmp_path, at)
  process.send_signal(signal.SIGKILL)
  assert finish(process)[0] == -signal.SIGKILL
  code, out, err = run(*TINY, f"--workdir={tmp_path}")
  assert code == 0, err
  assert ("resumed at step" in err) == (every < at)
  assert out == undisturbed[1]
  assert_same_run(tmp_path, undisturbed[0])


def test_stopped_by_a_signal_it_saves_exits_75_and_goes_on_bit_for_bit(
  undisturbed, tmp_path
):
  process = start(*TINY, f"--workdir={tmp_path}")
  wait_for_step(tmp_path, 12)
  process.send_signal(signal.SIGTERM)
  code, _, err = finish(process)
  assert code == 75, err
  assert "stopped by SIGTERM at step" in err
  code, _, err = run(*TINY, f"--workdir={tmp_path}")
  assert code == 0, err
  assert_same_run(tmp_path, undisturbed[0])


def test_a_finished_run_started_again_only_tells_its_result(undisturbed):
  workdir, out = undisturbed
  before = lines_of(workdir)
  code, again, _ = run(*TINY, f"--workdir={workdir}")
  assert (code, again, lines_of(workdir)) == (0, out, before)


def test_eight_devices_learn_what_one_does(undisturbed, tmp_path):
  code, _, err = run(*TINY, f"--workdir={tmp_path}", devices=8)
  assert code == 0, err
  for one, eight in zip(
    metrics_of(undisturbed[0])[1:6], metrics_of(tmp_path)[1:6], strict=True
  ):
    assert eight["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_workdir_of_another_config_is_refused_with_the_difference(
  undisturbed,
):
  workdir, _ = undisturbed
  before = lines_of(workdir)
  code, _, err = run(
    *TINY, f"--workdir={workdir}", "--config.swav.epsilon=0.04"
  )
  assert code == 2
  assert "swav.epsilon was 0.03, is 0.04" in err
  assert lines_of(workdir) == before


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((*TINY, "--config.batch_sise=3"), "did you mean config.batch_size?"),
    ((*TINY, "--config.swav.epsilom=3"), "did you mean config.swav.epsilon?"),
    ((*TINY, "--config.batch_size=many"), "batch_size"),
    (("--config=configs/nowhere.py",), "configs/nowhere.py"),
    ((), "give --config"),
    (("--config=configs/digits.py",), "give --workdir"),
    ((*TINY, "--workdirr=here"), "workdirr"),
  ],
)
def test_mistakes_on_the_command_line_exit_2_with_one_line(
  args, words, tmp_path
):
  del tmp_path
  code, out, err = run(*args)
  assert code == 2, err
  assert out == ""
  assert words in err
  assert "Traceback" not in err
  assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ("args", "words"),
  [
    ((), "give --topology"),
    (("--topology=b900:1x8",), "b900"),
    (("--topology=v100:1x3",), "cannot share"),
  ],
)
def test_plans_that_cannot_be_made_exit_2_with_one_line(args, words):
  code, _, err = run(*TINY, "--mode=plan", *args)
  assert code == 2, err
  assert words in err or "pip install" in err
  assert "Traceback" not in err
