"""A disk that is full, or becomes read-only, in the middle of a run."""

import contextlib
import re
import signal
import subprocess
import time

import pytest
import runs

OPTIONS = (
  *runs.TINY,
  "--config.steps=2000",
  "--config.optim.warmup_fraction=0.5",
  "--config.checkpoint.every=20",
)


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


def wait_for_words(log, words):
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if words in log.read_text():
      return
    time.sleep(0.05)
  raise AssertionError(log.read_text()[-3000:])


@contextlib.contextmanager
def running(workdir, log, *options):
  with log.open("w") as output:
    process = runs.start(
      *OPTIONS, f"--workdir={workdir}", *options, output=output
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
  small_disk, tmp_path
):
  workdir, log = small_disk / "run", tmp_path / "log"
  undisturbed = tmp_path / "undisturbed"
  code, _, err = runs.run(
    *OPTIONS, f"--workdir={undisturbed}", "--config.steps=400"
  )
  assert code == 0, err
  with running(
    workdir,
    log,
    "--config.steps=400",
    "--config.checkpoint.risk=1000",
  ) as process:
    runs.wait_for_step(workdir, 50)
    fill(small_disk)
    wait_for_words(log, "could not save: No space left on device")
    there = steps_saved(workdir)
    (small_disk / "filler").unlink()
    assert process.wait(timeout=200) == 0, log.read_text()
  said = log.read_text()
  assert "Traceback" not in said
  saved = re.search(r"at risk, the checkpoint of step (\d+) is whole", said)
  assert int(saved[1]) in there
  runs.assert_same_run(undisturbed, workdir)


@pytest.mark.slow
def test_past_the_risk_the_run_ends_and_what_was_saved_is_whole(
  small_disk, tmp_path
):
  workdir, log = small_disk / "run", tmp_path / "log"
  with running(workdir, log, "--config.checkpoint.risk=3") as process:
    runs.wait_for_step(workdir, 50)
    fill(small_disk)
    assert process.wait(timeout=200) == 70, log.read_text()[-2000:]
  said = log.read_text()
  assert "Traceback" not in said
  last = said.strip().splitlines()[-1]
  assert "nothing could be saved since step" in last
  (small_disk / "filler").unlink()
  resumed_run_is_whole(workdir, tmp_path)


def test_a_disk_that_becomes_read_only(small_disk, tmp_path):
  workdir, log = small_disk / "run", tmp_path / "log"
  kept = workdir / "checkpoints"
  with running(workdir, log, "--config.checkpoint.risk=3") as process:
    runs.wait_for_step(workdir, 50)
    mount("--bind", kept, kept)
    try:
      # Refused while a file is being written.
      deadline = time.monotonic() + 60
      while mount("-o", "remount,bind,ro", kept):
        assert time.monotonic() < deadline
      code = process.wait(timeout=200)
    finally:
      subprocess.run(["umount", "-l", str(kept)], check=True)
  said = log.read_text()
  assert "Traceback" not in said, said
  assert code == 70, said[-2000:]
  assert "could not save: Read-only file system" in said
  resumed_run_is_whole(workdir, tmp_path)


def mount(*args):
  command = ["mount", *map(str, args)]
  return subprocess.run(command, capture_output=True).returncode


def test_a_full_disk_at_the_start_is_told_in_one_line(small_disk):
  fill(small_disk)
  code, _, err = runs.run(*OPTIONS, f"--workdir={small_disk / 'run'}")
  assert code == 2
  last = err.strip().splitlines()[-1]
  assert "cannot write to --workdir" in last
  assert "No space left on device" in last
  assert "Traceback" not in err


def resumed_run_is_whole(workdir, tmp_path):
  newest = steps_saved(workdir)[-1]
  log = tmp_path / "again"
  with running(workdir, log) as process:
    wait_for_words(log, f"resumed at step {newest} ")
    wait_for_words(log, f"step {newest + 30}/")
    process.terminate()
    assert process.wait(timeout=60) == 75
  assert "damaged" not in log.read_text()


def test_where_nothing_can_be_told_the_exit_status_is_the_same(tmp_path):
  """As with a log on a full disk, or `|& tee` and Ctrl-C."""
  workdir = tmp_path / "run"
  with open("/dev/full", "w") as full:
    process = runs.start(*runs.TINY, f"--workdir={workdir}", output=full)
    runs.wait_for_step(workdir, 12)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    assert (workdir / "checkpoints").exists()
    process = runs.start(*runs.TINY, "--config.steps=-1", output=full)
    assert process.wait(120) == 2
