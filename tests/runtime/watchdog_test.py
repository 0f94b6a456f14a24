"""Runs in which nothing moves, or that lose what they stand on."""

import os
import pathlib
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
from seer_jax.data import workers
batches = workers.Batches.__next__
count = 0
def stuck(self):
  global count
  count += 1
  if count > 5:
    time.sleep(1000)
  return batches(self)
workers.Batches.__next__ = stuck
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
  assert re.search(
    r"stuck for 8 s \(waiting for the images of step 5 from data worker 0,"
    r" process \d+\)",
    err,
  )
  assert f"the stacks of all threads are in {tmp_path / 'stuck.txt'}" in err
  stacks = (tmp_path / "stuck.txt").read_text()
  assert "in stuck" in stacks
  assert "Thread" in stacks
  # The worker's own, on standard error.
  assert "most recent call first" in err


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_workers_are_named_and_the_run_goes_on_exactly(
  tiny, tmp_path, count
):
  options = (*runs.TINY, "--config.data.workers=2")
  workdir, gate = tmp_path / "run", runs.Gate(tmp_path / "gate", 20)
  process = runs.start(*options, f"--workdir={workdir}", code=gate.code)
  gate.wait(process)
  workers = [
    child for child in campaign.children(process.pid) if is_worker(child)
  ]
  assert len(workers) == 2
  for worker in workers[:count]:
    os.kill(int(worker), signal.SIGKILL)
  gate.open()
  code, _, err = runs.finish(process)
  assert code == 70, err
  for worker in workers[:count]:
    named = rf"data worker \d \(process {worker}\) was ended by SIGKILL"
    assert re.search(named, err), err
  assert "Traceback" not in err
  code, _, err = runs.run(*options, f"--workdir={workdir}")
  assert code == 0, err
  assert "resumed at step" in err
  # Workers change nothing of what is learned.
  runs.assert_same_run(tiny, workdir)


def test_a_worker_that_is_stuck_is_named(tmp_path):
  """Among others that are not: it is the one whose batch is waited for."""
  gate = runs.Gate(tmp_path / "gate", 20)
  process = runs.start(
    *runs.TINY,
    f"--workdir={tmp_path / 'run'}",
    "--config.watchdog=8",
    "--config.data.workers=2",
    code=gate.code,
  )
  gate.wait(process)
  workers = {
    pathlib.Path(f"/proc/{child}/comm").read_text().strip(): child
    for child in campaign.children(process.pid)
    if is_worker(child)
  }
  assert sorted(workers) == ["data worker 0", "data worker 1"]
  stuck = int(workers["data worker 1"])
  os.kill(stuck, signal.SIGSTOP)
  gate.open()
  code, _, err = runs.finish(process)
  assert code == 70, err
  assert f"from data worker 1, process {stuck})" in err


def test_a_run_with_workers_ends_without_a_word_of_shared_memory(tmp_path):
  """As users start it: Python's resource tracker speaks last."""
  process = runs.start(
    *runs.TINY,
    f"--workdir={tmp_path}",
    "--config.steps=20",
    "--config.data.workers=2",
    fresh=True,
  )
  code, _, err = runs.finish(process)
  assert code == 0, err
  assert "leaked" not in err
  assert "resource_tracker" not in err


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
watchdog._DUMP_SECONDS = 0.5
dog = watchdog.Watchdog(pathlib.Path({str(tmp_path)!r}), 0.5)
dog.at("nothing")
time.sleep(60)
"""
  code, _, err = runs.run(code=program)
  assert code == 70, err
  assert "the disk is stuck too" in err


def is_worker(pid):
  with open(f"/proc/{pid}/cmdline") as file:
    return "spawn_main" in file.read()
