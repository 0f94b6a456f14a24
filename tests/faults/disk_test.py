"""A disk that is full, or becomes read-only, in the middle of a run."""

import contextlib
import errno
import os
import re
import shutil
import subprocess

import pytest
import runs

from seer_jax.runtime import errors


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 24 MiB of its own."""
  here = tmp_path / "disk"
  here.mkdir()
  if mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", here):
    pytest.skip("needs the right to mount a disk")
  yield here
  subprocess.run(["umount", "-l", str(here)], check=True)


def steps_saved(workdir):
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


@contextlib.contextmanager
def running(workdir, log, *options, code=""):
  with log.open("w") as output:
    process = runs.start(
      *runs.TINY, f"--workdir={workdir}", *options, output=output, code=code
    )
    try:
      yield process
    finally:
      process.kill()
      process.wait()


def fill(disk):
  """Takes every last byte."""
  with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
    while True:
      file.write(b"0" * 4096)
      file.flush()


def test_a_full_disk_costs_nothing_once_there_is_room_again(
  tiny, small_disk, tmp_path
):
  workdir, log = small_disk / "run", tmp_path / "log"
  full = runs.Gate(tmp_path / "full", 15)
  room = runs.Gate(tmp_path / "room", 35)
  with running(
    workdir, log, "--config.checkpoint.risk=1000", code=full.code + room.code
  ) as process:
    full.wait(process)
    runs.wait_until(lambda: steps_saved(workdir), process)
    fill(small_disk)
    full.open()
    room.wait(process)
    there = steps_saved(workdir)
    (small_disk / "filler").unlink()
    room.open()
    assert process.wait() == 0, log.read_text()
  said = log.read_text()
  assert "could not save: No space left on device" in said
  assert "Traceback" not in said
  saved = re.search(r"at risk, the checkpoint of step (\d+) is complete", said)
  assert int(saved[1]) in there
  runs.assert_same_run(tiny, workdir)


# The disk takes a save only once the gate is open, and then a second more.
SLOW_DISK = """
def slow_disk(folder):
  import pathlib, time
  from seer_jax.runtime import checksums
  from seer_jax.weights import checkpoint
  seal, checkpoint._SLOW = checksums.seal, 0.5
  def sealed(part):
    while not pathlib.Path(folder, "open").exists():
      time.sleep(0.01)
    time.sleep(1)
    seal(part)
  checksums.seal = sealed
slow_disk({folder!r})
"""


def test_steps_go_on_while_a_slow_disk_takes_a_save(tiny, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "log"
  # The save of step 10 has not ended; that of step 20 waits for it.
  gate = runs.Gate(tmp_path / "gate", 18)
  code = gate.code + SLOW_DISK.format(folder=str(tmp_path / "gate"))
  with running(workdir, log, code=code) as process:
    gate.wait(process)
    assert steps_saved(workdir) == []
    gate.open()
    assert process.wait() == 0, log.read_text()
  assert "for the previous checkpoint: the disk of" in log.read_text()
  runs.assert_same_run(tiny, workdir)


@pytest.mark.slow
def test_past_the_risk_the_run_ends_and_what_was_saved_is_whole(
  tiny, small_disk, tmp_path
):
  workdir, log = small_disk / "run", tmp_path / "log"
  gate = runs.Gate(tmp_path / "gate", 15)
  with running(
    workdir, log, "--config.checkpoint.risk=1", code=gate.code
  ) as process:
    gate.wait(process)
    runs.wait_until(lambda: steps_saved(workdir), process)
    fill(small_disk)
    gate.open()
    assert process.wait() == 70, log.read_text()[-2000:]
  said = log.read_text()
  assert "Traceback" not in said
  last = said.strip().splitlines()[-1]
  assert "nothing could be saved since step" in last
  (small_disk / "filler").unlink()
  resumed_run_is_whole(tiny, workdir)


def test_a_disk_that_becomes_read_only(tiny, small_disk, tmp_path):
  workdir, log = small_disk / "run", tmp_path / "log"
  kept = workdir / "checkpoints"
  gate = runs.Gate(tmp_path / "gate", 15)
  with running(
    workdir, log, "--config.checkpoint.risk=1", code=gate.code
  ) as process:
    gate.wait(process)
    runs.wait_until(lambda: steps_saved(workdir), process)
    mount("--bind", kept, kept)
    try:
      # Refused while a file is being written.
      runs.wait_until(lambda: not mount("-o", "remount,bind,ro", kept), process)
      gate.open()
      code = process.wait()
    finally:
      subprocess.run(["umount", "-l", str(kept)], check=True)
  said = log.read_text()
  assert "Traceback" not in said, said
  assert code == 70, said[-2000:]
  assert "could not save: Read-only file system" in said
  resumed_run_is_whole(tiny, workdir)


def mount(*args):
  command = ["mount", *map(str, args)]
  return subprocess.run(command, capture_output=True).returncode


def test_a_full_disk_at_the_start_is_told_in_one_line(small_disk):
  fill(small_disk)
  code, _, err = runs.run(*runs.TINY, f"--workdir={small_disk / 'run'}")
  assert code == 70  # Schedulers start it again: there may be room then.
  last = err.strip().splitlines()[-1]
  assert "cannot write to --workdir" in last
  assert "No space left on device" in last
  assert "Traceback" not in err


@pytest.mark.parametrize("there, status", [(False, 2), (True, 70)])
def test_a_read_only_disk_at_the_start(tiny, small_disk, there, status):
  """It is the user's mistake, unless a run was written there before."""
  if there:
    shutil.copytree(tiny, small_disk / "run")
  assert not mount("-o", "remount,ro", small_disk)
  code, _, err = runs.run(*runs.TINY, f"--workdir={small_disk / 'run'}")
  assert code == status, err
  assert "Read-only file system" in err.strip().splitlines()[-1]
  assert "Traceback" not in err


@pytest.mark.parametrize(
  "number, status",
  [(errno.ENOSPC, 70), (errno.EDQUOT, 70), (errno.EACCES, 2), (errno.EROFS, 2)],
)
def test_what_a_disk_refuses_for_lack_of_room_may_work_later(number, status):
  error = errors.of_disk(OSError(number, os.strerror(number)), "cannot write")
  assert status == error.STATUS
  assert str(error) == "cannot write"


def resumed_run_is_whole(tiny, workdir):
  newest = steps_saved(workdir)[-1]
  code, _, err = runs.run(*runs.TINY, f"--workdir={workdir}")
  assert code == 0, err
  assert f"resumed at step {newest} " in err
  assert "damaged" not in err
  runs.assert_same_run(tiny, workdir)


def test_where_nothing_can_be_told_the_exit_status_is_the_same(tmp_path):
  """As with a log on a full disk, or `|& tee` and Ctrl-C."""
  workdir, gate = tmp_path / "run", runs.Gate(tmp_path / "gate", 12)
  with open("/dev/full", "w") as full:
    process = runs.start(
      *runs.TINY, f"--workdir={workdir}", output=full, code=gate.code
    )
    gate.wait(process)
    process.terminate()
    gate.open()
    assert process.wait() == 75
    assert (workdir / "checkpoints").exists()
    process = runs.start(*runs.TINY, "--config.steps=-1", output=full)
    assert process.wait() == 2
