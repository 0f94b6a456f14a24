"""Runs in which nothing moves, or that lose what they stand on."""

import os
import re
import signal
import sys
import time

import pytest
import runs

sys.path.insert(0, str(runs.ROOT / "tests" / "faults"))
import campaign

# Stops in the middle of training: a batch that never comes.
STUCK = """
import sys, time
from seer_jax import main, pipeline
batches = pipeline._Batches.__next__
count = 0
def stuck(self):
  global count
  count += 1
  if count > 5:
    time.sleep(1000)
  return batches(self)
pipeline._Batches.__next__ = stuck
main.cli()
"""


def test_a_run_that_is_stuck_leaves_its_stacks_and_ends(tmp_path):
  process = runs.start(
    *runs.TINY,
    f"--workdir={tmp_path}",
    "--config.watchdog=8",
    "--config.data.workers=1",
    program=("-c", STUCK),
  )
  code, _, err = runs.finish(process)
  assert code == 70, err
  assert "stuck for 8 s (waiting for the images of step 5)" in err
  assert f"the stacks of all threads are in {tmp_path / 'stuck.txt'}" in err
  stacks = (tmp_path / "stuck.txt").read_text()
  assert "in stuck" in stacks
  assert "Thread" in stacks
  # The worker's own, on standard error.
  assert "most recent call first" in err


def test_a_killed_worker_is_named_and_the_run_goes_on_exactly(tmp_path):
  options = (*runs.TINY, "--config.data.workers=2", "--config.steps=400")
  process = runs.start(*options, f"--workdir={tmp_path}")
  runs.wait_for_step(tmp_path, 20)
  workers = [
    child for child in campaign.children(process.pid) if is_worker(child)
  ]
  assert len(workers) == 2
  signal_to(workers[0], signal.SIGKILL)
  code, _, err = runs.finish(process)
  assert code == 70, err
  named = rf"data worker \(.*process {workers[0]}\) was ended by SIGKILL"
  assert re.search(named, err), err
  assert "Traceback" not in err
  code, _, err = runs.run(*options, f"--workdir={tmp_path}")
  assert code == 0, err
  assert "resumed at step" in err
  steps = [line["step"] for line in runs.metrics_of(tmp_path)]
  assert steps == [0, *range(2, 401, 2), 400]


@pytest.mark.parametrize(
  "number",
  [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_a_signal_in_an_evaluation_is_obeyed_at_once(tmp_path, number):
  slow = """
import sys, time
from seer_jax import features, main
of = features.Extractor.of
def slowly(self, *args):
  between = self.between
  def wait():
    print("evaluating", file=sys.stderr, flush=True)
    for _ in range(100):
      time.sleep(0.1)
      between()
  if slowly.calls > 1: self.between = wait
  slowly.calls += 1
  return of(self, *args)
slowly.calls = 0
features.Extractor.of = slowly
main.cli()
"""
  options = (*runs.TINY, "--config.eval.every=10")
  process = runs.start(
    *options, f"--workdir={tmp_path / 'one'}", program=("-c", slow)
  )
  for line in process.stderr:
    if "evaluating" in line:
      break
  began = time.monotonic()
  process.send_signal(number)
  code, _, err = runs.finish(process)
  assert code == 75, err
  assert time.monotonic() - began < 9
  assert "at step 10, all saved" in err
  code, _, err = runs.run(*options, f"--workdir={tmp_path / 'one'}")
  assert code == 0, err
  code, _, err = runs.run(*options, f"--workdir={tmp_path / 'other'}")
  assert code == 0, err
  runs.assert_same_run(tmp_path / "one", tmp_path / "other")


def test_a_disk_that_is_stuck_as_well_does_not_hold_it_up(tmp_path):
  os.mkfifo(tmp_path / "stuck.txt")  # Opening it waits for a reader.
  program = f"""
import pathlib, time
from seer_jax import watchdog
watchdog._WITNESS = 0.5
dog = watchdog.Watchdog(pathlib.Path({str(tmp_path)!r}), 0.5)
dog.at("nothing")
time.sleep(60)
"""
  code, _, err = runs.finish(runs.start(program=("-c", program)))
  assert code == 70, err
  assert "the disk is stuck as well" in err


def is_worker(pid):
  with open(f"/proc/{pid}/cmdline") as file:
    return "spawn_main" in file.read()


def signal_to(pid, number):
  os.kill(int(pid), number)
