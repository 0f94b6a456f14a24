"""Segments of data workers, and those that killed runs left behind."""

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import sys
from multiprocessing import resource_tracker
from multiprocessing import shared_memory as segments

import pytest
import runs

from seer_jax.data import workers

pytestmark = pytest.mark.skipif(
  not pathlib.Path("/dev/shm").is_dir(), reason="/dev/shm is Linux's"
)
WORKERS = ("--config.data.workers=2",)
# A process group of its own, to be killed as one.
GROUP = "import os\nos.setpgid(0, 0)\n"


@pytest.fixture
def segment(tmp_path, monkeypatch):
  """Makes a file like that of a segment, where runs beside it see none."""
  monkeypatch.setattr(workers, "_FOLDER", tmp_path)

  def make(owner):
    path = tmp_path / f"seer_jax-{owner}-{secrets.token_hex(8)}"
    path.write_bytes(b"0" * 1000)
    return path

  return make


def ended_process():
  """What was the owner of a process that has ended."""
  code = "from seer_jax.data import workers as s; print(s.owner())"
  run = subprocess.run([sys.executable, "-c", code], capture_output=True)
  return run.stdout.decode().strip()


def test_those_of_processes_that_are_gone_are_removed(segment, caplog):
  caplog.set_level("INFO")
  mine = workers.owner()
  machine, process, start = mine.split("-")
  kept = [
    segment(mine),
    segment(f"ffffffff-{process}-1"),  # Of a container next to ours.
    segment("what is this?"),
  ]
  gone = [
    segment(ended_process()),
    segment(f"{machine}-{process}-{int(start) + 1}"),  # A number used again.
  ]
  assert workers.remove_orphans() == len(gone)
  assert [path.exists() for path in kept] == [True] * 3
  assert [path.exists() for path in gone] == [False] * 2
  assert "shared memory" in caplog.text


def test_segments_of_a_worker_bear_the_name_of_its_run(monkeypatch):
  monkeypatch.setattr(segments, "SharedMemory", segments.SharedMemory)
  workers.name_segments_after("1-2-3")
  made = segments.SharedMemory(create=True, size=10)
  try:
    assert made.name.startswith("seer_jax-1-2-3-")
    again = segments.SharedMemory(made.name)
    assert again.size >= 10
    again.close()
  finally:
    made.close()
    made.unlink()
    with contextlib.suppress(Exception):  # Opened twice here, noted once.
      resource_tracker.unregister(made._name, "shared_memory")


def test_the_next_run_frees_what_a_killed_group_left(tmp_path):
  gate = runs.Gate(tmp_path / "gate", 5)
  workdir = f"--workdir={tmp_path / 'run'}"
  process = runs.start(*runs.TINY, *WORKERS, workdir, code=GROUP + gate.code)
  gate.wait(process)
  runs.wait_until(lambda: runs.segments_of([process]), process)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  # Whichever run starts next: that of a test beside this one may be it.
  code, _, err = runs.run(*runs.TINY, f"--workdir={tmp_path / 'other'}")
  assert code == 0, err
  assert not runs.segments_of([process])
