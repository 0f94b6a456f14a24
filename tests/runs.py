"""The command as a user runs it, in processes of their own."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

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
CLOCKED = ("images_per_second", "data_wait", "eval_seconds", "seconds")


def start(
  *args, devices=1, output=subprocess.PIPE, program=("-m", "seer_jax.main")
):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    [sys.executable, *program, *args],
    cwd=ROOT,
    env=environment,
    stdout=output,
    stderr=output,
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
  return checkpoint.Checkpoints(workdir / "checkpoints").read()


def metrics_of(workdir):
  lines = [json.loads(line) for line in lines_of(workdir)]
  return [
    {key: value for key, value in line.items() if key not in CLOCKED}
    for line in lines
  ]


def assert_same_run(one, other):
  jax.tree.map(np.testing.assert_array_equal, state_of(one), state_of(other))
  assert metrics_of(one) == metrics_of(other)
