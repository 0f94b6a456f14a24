"""An hour of the digits run with data workers: does anything grow?

    python tests/faults/soak.py --minutes=60

Trains, evaluates and saves without end, and looks at every process each ten
seconds: memory of its own (private and its share of what is shared), open
files, threads. Prints how fast each grows after the first sixth of the time.
"""

import argparse
import json
import pathlib
import signal
import sys
import tempfile
import time

import numpy as np
from scipy import stats

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import runs
from campaign import children

OPTIONS = (
  "--config=configs/digits.py",
  "--config.steps=10000000",
  "--config.data.workers=2",
)
LOOK_EVERY = 10
MIB = 2**20


def look(pid):
  """(MiB of memory, open files, threads) of a process."""
  here = pathlib.Path(f"/proc/{pid}")
  lines = (here / "smaps_rollup").read_text().splitlines()
  pss = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
  return (
    pss * 1024 / MIB,
    len(list((here / "fd").iterdir())),
    len(list((here / "task").iterdir())),
  )


def family(pid):
  """A process and its descendants."""
  yield pid
  for child in children(pid):
    yield from family(int(child))


def growth(samples):
  """A line for one process."""
  times, looks = zip(*samples, strict=True)
  hours, looks = np.array(times) / 3600, np.array(looks, float)
  # Theil-Sen: evaluations and saves come and go, and pull at a mean.
  slope, _, low, high = stats.theilslopes(looks[:, 0], hours)
  first, last = looks[0], looks[-1]
  medians = [float(np.median(part)) for part in np.array_split(looks[:, 0], 8)]
  return {
    "memory_mib": [round(median) for median in medians],
    "memory_mib_an_hour": round(float(slope), 1),
    "of_95_in_100": [round(float(low), 1), round(float(high), 1)],
    "files": [int(first[1]), int(last[1])],
    "threads": [int(first[2]), int(last[2])],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--eval_every", type=int, default=100)
  parser.add_argument("--save_every", type=int, default=50)
  options = parser.parse_args()
  seconds = options.minutes * 60
  with (
    tempfile.TemporaryDirectory() as folder,
    pathlib.Path(folder, "log").open("w+") as log,
  ):
    workdir = pathlib.Path(folder, "run")
    process = runs.start(
      *OPTIONS,
      f"--config.eval.every={options.eval_every}",
      f"--config.checkpoint.every={options.save_every}",
      f"--workdir={workdir}",
      output=log,
    )
    began, seen = time.monotonic(), {}
    while (past := time.monotonic() - began) < seconds:
      time.sleep(LOOK_EVERY)
      assert process.poll() is None, log.seek(0) or log.read()[-2000:]
      for pid in family(process.pid):
        seen.setdefault(pid, []).append((past, look(pid)))
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    steps = runs.metrics_of(workdir)[-1]["step"]
  print(f"{steps} steps in {past / 60:.0f} minutes, then exit {code}")
  for number, samples in enumerate(seen.values()):
    settled = [each for each in samples if each[0] > seconds / 6]
    name = "main" if number == 0 else f"child {number}"
    if len(settled) < 2:
      print(f"{name}: gone after {samples[-1][0]:.0f} s")
    else:
      print(f"{name}: {json.dumps(growth(settled))}")


if __name__ == "__main__":
  main()
