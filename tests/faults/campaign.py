"""Runs killed at random moments, over and over, and compared at the end.

    python tests/faults/campaign.py --kills=100

Each case is trained once undisturbed, then again and again with kill -9 at
random moments (start-up, a step, a save, an evaluation), each time continued by
the same command, until it has had its share of kills; every run that ends must
equal the undisturbed one: the SHA-256 of all parameters, statistics, momentum
and queue, and every line of metrics but for the clock's readings. Half of the
kills are of the process alone, half of its process group, with its data workers
and Python's resource tracker.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import random
import re
import signal
import socket
import sys
import tempfile
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import runs

EVERY = 20
OPTIONS = (
  *runs.TINY,
  "--config.steps=240",
  "--config.log.every=1",
  "--config.eval.every=60",
  "--config.checkpoint.keep=2",
  f"--config.checkpoint.every={EVERY}",
  "--patience=60",
)
# Each run is a process group of its own.
GROUP = "import os\nos.setpgid(0, 0)\n"
# A survivor ends by itself within so many seconds.
PATIENCE = 200
# Python's resource tracker outlives its run, to remove what it left.
TRACKED = 30


@dataclasses.dataclass(frozen=True)
class Case:
  """How a run is made up."""

  name: str
  processes: int = 1
  devices: int = 1
  options: tuple[str, ...] = ()


CASES = (
  Case("one process"),
  Case("8 devices", devices=8),
  Case("2 data workers", options=("--config.data.workers=2",)),
  Case("2 processes", processes=2),
)


@dataclasses.dataclass
class Report:
  """What a campaign found.

  Steps lost are counted of every kill after a first step: of runs that write
  checkpoints while they train, and of those that wait for each.
  """

  kills: int = 0
  ended: int = 0
  identical: int = 0
  lost: list[int] = dataclasses.field(default_factory=list)
  lost_waiting: list[int] = dataclasses.field(default_factory=list)
  survivors: list[float] = dataclasses.field(default_factory=list)
  groups: int = 0
  orphans: int = 0
  segments: int = 0
  complaints: list[str] = dataclasses.field(default_factory=list)


def start(case, workdir, waiting=False):
  """All processes of one start."""
  place = [[]]
  if case.processes > 1:
    with contextlib.closing(socket.socket()) as some:
      some.bind(("localhost", 0))
      port = some.getsockname()[1]
    place = [
      [
        f"--coordinator=localhost:{port}",
        f"--processes={case.processes}",
        f"--process={process}",
      ]
      for process in range(case.processes)
    ]
  return [
    runs.start(
      *OPTIONS,
      *case.options,
      f"--config.checkpoint.wait={waiting}",
      f"--workdir={workdir}",
      *flags,
      devices=case.devices,
      code=GROUP,
    )
    for flags in place
  ]


def digest(workdir):
  """SHA-256 of the newest state."""
  total = hashlib.sha256()
  for leaf in jax.tree.leaves(runs.state_of(workdir)):
    total.update(np.ascontiguousarray(leaf).tobytes())
  return total.hexdigest()


def newest_step(workdir):
  """The last step in the metrics, -1 without any."""
  last = -1
  for line in runs.lines_of(workdir):
    found = re.match(r'\{"step": (\d+),.*\}$', line)
    last = int(found[1]) if found else last
  return last


def finished(process):
  return process.poll() is not None


def wait(rng, workdir, process):
  """Until a random moment: of the start, or some steps on."""
  if rng.random() < 0.25:
    time.sleep(rng.uniform(0, 8))
    return
  target = newest_step(workdir) + rng.randint(1, 80)
  deadline = time.monotonic() + 60
  while process.poll() is None and time.monotonic() < deadline:
    if newest_step(workdir) >= target:
      break
    time.sleep(0.005)
  time.sleep(rng.uniform(0, 0.3))


def kill(rng, processes, report):
  """One of them, any, or all; whoever is left must end soon."""
  victims = processes
  if len(processes) > 1 and rng.random() < 0.7:
    victims = [rng.choice(processes)]
  workers = [child for each in victims for child in children(each.pid)]
  whole = rng.random() < 0.5
  report.groups += whole
  for each in victims:
    with contextlib.suppress(ProcessLookupError):
      if whole and os.getpgid(each.pid) == each.pid:
        os.killpg(each.pid, signal.SIGKILL)
    each.send_signal(signal.SIGKILL)
  began = time.monotonic()
  words = []
  for each in processes:
    _, err = each.communicate(timeout=PATIENCE)
    words.append(err)
    if each not in victims:
      report.survivors.append(time.monotonic() - began)
      if each.returncode == 0:
        report.complaints.append("a survivor ended as if all were well")
  report.orphans += left(running, workers)
  return words


def left(find, processes):
  """How many `find` still finds when resource trackers have had their time."""
  deadline = time.monotonic() + TRACKED
  while find(processes) and time.monotonic() < deadline:
    time.sleep(0.1)
  return len(find(processes))


def running(pids):
  """Those that still run."""
  return [pid for pid in pids if runs_on(pid)]


def runs_on(pid):
  """Whether a process still runs; a dead one may wait to be reaped."""
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return False
  return status.rsplit(")", 1)[1].split()[0] != "Z"


def children(pid):
  """Process numbers of the children of a process."""
  found = []
  # Each thread has its own.
  for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
    with contextlib.suppress(OSError):
      found += task.read_text().split()
  return found


def attack(case, kills, seed, report, tell=lambda words: None):
  """One case, until it has had so many kills; fills the report."""
  rng = random.Random(f"{case.name} {seed}")
  with tempfile.TemporaryDirectory() as folder:
    undisturbed = pathlib.Path(folder, "undisturbed")
    ended = [runs.finish(each) for each in start(case, undisturbed)]
    assert all(code == 0 for code, _, _ in ended), ended
    expected = digest(undisturbed), runs.metrics_of(undisturbed)
    wanted, run = report.kills + kills, 0
    while report.kills < wanted:
      run += 1
      workdir = pathlib.Path(folder, f"run{run}")
      # Every other run, beginning with one that does not.
      started = disturbed(case, workdir, rng, wanted, report, run % 2 == 0)
      report.ended += 1
      # Every start removes what the kill before it left.
      report.segments += left(runs.segments_of, started)
      if max(report.lost_waiting, default=0) > EVERY:
        report.complaints.append(f"{case.name}, run {run}: lost too much")
      if max(report.lost, default=0) > 2 * EVERY:
        report.complaints.append(f"{case.name}, run {run}: lost far too much")
      same = (digest(workdir), runs.metrics_of(workdir)) == expected
      report.identical += same
      if not same:
        report.complaints.append(f"{case.name}, run {run}: another result")
      tell(f"{case.name}: {report.kills} kills, {report.identical} identical")


def disturbed(case, workdir, rng, wanted, report, waiting):
  """A run to its end, killed on the way; all its processes."""
  reached, complained, started = -1, False, []
  while True:
    processes = start(case, workdir, waiting)
    started += processes
    if report.kills < wanted:
      wait(rng, workdir, processes[0])
    if report.kills < wanted and not any(map(finished, processes)):
      words = kill(rng, processes, report)
      report.kills += 1
      ended = False
    else:
      ended = [runs.finish(each) for each in processes]
      words = [err for _, _, err in ended]
    resumed = re.search(r"resumed at step (\d+)", words[0])
    begun = re.search(r"step (\d+)", words[0])
    if reached > 0 and (resumed or begun):
      lost = report.lost_waiting if waiting else report.lost
      lost.append(reached - (int(resumed[1]) if resumed else 0))
    if resumed or begun:
      reached = newest_step(workdir)
    for err in words:
      # A worker killed while it started says so in Python's own words.
      if "Traceback" in err and "UnpicklingError" not in err and not complained:
        complained = True
        report.complaints.append(f"{case.name}: a traceback\n{err[-2000:]}")
    if ended:
      codes = [code for code, _, _ in ended]
      if codes != [0] * len(codes):
        report.complaints.append(f"{case.name}: ended with {codes}: {words}")
        if len(report.complaints) > 5:
          raise AssertionError(report)
        continue
      return started


def table(reports):
  """Lines of Markdown."""
  yield (
    "| case | kills | of groups | runs | identical | most steps lost | when"
    " each save is waited for | survivors ended within, s | workers left |"
    " segments left |"
  )
  yield "| --- |" + " --: |" * 9
  for name, found in reports.items():
    yield (
      f"| {name} | {found.kills} | {found.groups} | {found.ended} |"
      f" {found.identical} |"
      f" {max(found.lost, default=0)} |"
      f" {max(found.lost_waiting, default=0)} |"
      f" {max(found.survivors, default=0):.0f} | {found.orphans} |"
      f" {found.segments} |"
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=100, help="in all")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--case", help="one of them only")
  options = parser.parse_args()
  cases = [c for c in CASES if options.case in (None, c.name)]
  reports = {}
  for case in cases:
    reports[case.name] = Report()
    share = -(-options.kills // len(cases))
    attack(case, share, options.seed, reports[case.name], print)
  print("\n".join(table(reports)))
  complaints = [words for each in reports.values() for words in each.complaints]
  print("\n".join(complaints) or "no complaints")
  sys.exit(bool(complaints))


if __name__ == "__main__":
  main()
