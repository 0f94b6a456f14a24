"""Runs in which nothing moves, or that lose what they stand on."""

import os
import re
import signal
import sys

import pytest
import runs

sys.path.insert(0, str(runs.ROOT / "tests" / "faults"))
import campaign

# Stops in the middle of training: a batch that never comes.
STUCK = """
import time
from seer_jax.data import pipeline
batches = pipeline._Batches.__next__
count = 0
def stuck(self):
  global count
  count += 1
  if count > 5:
    time.sleep(1000)
  return batches(self)
pipeline._Batches.__next__ = stuck
"""


def test_a_run_that_is_stuck_leaves_its_stacks_and_ends(tmp_path):
  process = runs.start(
    *runs.TINY,
    f"--workdir={tmp_path}",
    "--config.watchdog=8",
    "--config.data.workers=1",
    code=STUCK,
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


def test_a_killed_worker_is_named_and_the_run_goes_on_exactly(tiny, tmp_path):
  options = (*runs.TINY, "--config.data.workers=2")
  workdir, gate = tmp_path / "run", runs.Gate(tmp_path / "gate", 20)
  process = runs.start(*options, f"--workdir={workdir}", code=gate.code)
  gate.wait(process)
  workers = [
    child for child in campaign.children(process.pid) if is_worker(child)
  ]
  assert len(workers) == 2
  os.kill(int(workers[0]), signal.SIGKILL)
  gate.open()
  code, _, err = runs.finish(process)
  assert code == 70, err
  named = rf"data worker \(.*process {workers[0]}\) was ended by SIGKILL"
  assert re.search(named, err), err
  assert "Traceback" not in err
  code, _, err = runs.run(*options, f"--workdir={workdir}")
  assert code == 0, err
  assert "resumed at step" in err
  # Workers change nothing of what is learned.
  runs.assert_same_run(tiny, workdir)


# Evaluations after the first that do not end by themselves.
ENDLESS = """
import sys, time
from seer_jax.evals import features
of = features.Extractor.taps_of
def endlessly(self, *args):
  between = self.between
  def wait():
    print("evaluating", file=sys.stderr, flush=True)
    while True:
      time.sleep(0.1)
      between()
  if endlessly.calls > 1: self.between = wait
  endlessly.calls += 1
  return of(self, *args)
endlessly.calls = 0
features.Extractor.taps_of = endlessly
"""


@pytest.mark.parametrize(
  "number",
  [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_a_signal_in_an_evaluation_is_obeyed_at_once(tiny, tmp_path, number):
  workdir, log = tmp_path / "run", tmp_path / "log"
  with log.open("w") as output:
    process = runs.start(
      *runs.TINY, f"--workdir={workdir}", output=output, code=ENDLESS
    )
  runs.wait_until(lambda: "evaluating" in log.read_text(), process)
  process.send_signal(number)
  assert process.wait() == 75, log.read_text()
  assert "at step 20, all saved" in log.read_text()
  code, _, err = runs.run(*runs.TINY, f"--workdir={workdir}")
  assert code == 0, err
  runs.assert_same_run(tiny, workdir)


def test_a_disk_that_is_stuck_as_well_does_not_hold_it_up(tmp_path):
  os.mkfifo(tmp_path / "stuck.txt")  # Opening it waits for a reader.
  program = f"""
import pathlib, time
from seer_jax.runtime import watchdog
watchdog._WITNESS = 0.5
dog = watchdog.Watchdog(pathlib.Path({str(tmp_path)!r}), 0.5)
dog.at("nothing")
time.sleep(60)
"""
  code, _, err = runs.run(code=program)
  assert code == 70, err
  assert "the disk is stuck as well" in err


def is_worker(pid):
  with open(f"/proc/{pid}/cmdline") as file:
    return "spawn_main" in file.read()
