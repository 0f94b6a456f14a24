"""Two runs in one workdir; owners that are gone."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from seer_jax.runtime import errors, run_lock


def write(path, **changes):
  """A lock as somebody else left it."""
  (path / "lock.json").write_text(json.dumps(run_lock._myself() | changes))


def test_a_lock_names_its_owner_and_is_gone_afterwards(tmp_path):
  with run_lock.Lock(tmp_path):
    found = json.loads((tmp_path / "lock.json").read_text())
    assert found["process"] == os.getpid()
  assert list(tmp_path.iterdir()) == []


def test_a_living_owner_is_respected_and_named(tmp_path):
  with run_lock.Lock(tmp_path):
    words = rf"in use by process {os.getpid()} on .* since .* last heartbeat"
    with pytest.raises(errors.UserError, match=words), run_lock.Lock(tmp_path):
      pass
    # Refused, it left the lock to its owner.
    assert (tmp_path / "lock.json").exists()
  assert list(tmp_path.iterdir()) == []


def test_an_owner_that_was_killed_here_is_followed_at_once(tmp_path, caplog):
  code = (
    "import sys, pathlib; from seer_jax.runtime import run_lock;"
    "run_lock.Lock(pathlib.Path(sys.argv[1])).__enter__();"
    "print('held', flush=True); input()"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as owner:
    owner.stdout.readline()
    with pytest.raises(errors.UserError), run_lock.Lock(tmp_path):
      pass
    owner.kill()
  began = time.monotonic()
  with run_lock.Lock(tmp_path):
    assert time.monotonic() - began < run_lock.TIMEOUT / 2
  assert "which has ended" in caplog.text


def test_a_process_number_that_is_used_again_is_no_owner(tmp_path):
  write(tmp_path, began="1")
  with run_lock.Lock(tmp_path):
    pass


def test_an_owner_elsewhere_that_is_silent_is_followed(tmp_path, caplog):
  write(tmp_path, machine="another", host="far", process=7)
  began = time.monotonic()
  with run_lock.Lock(tmp_path, timeout=1):
    assert time.monotonic() - began >= 1
  assert "locked by process 7 on far" in caplog.text


def test_an_owner_elsewhere_that_lives_is_respected(tmp_path):
  write(tmp_path, machine="another", host="far", process=7)
  sign = threading.Timer(0.5, os.utime, (tmp_path / "lock.json",))
  sign.start()
  words = "in use by process 7 on far"
  with (
    pytest.raises(errors.UserError, match=words),
    run_lock.Lock(tmp_path, timeout=60),
  ):
    pass
  sign.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0"])
def test_a_lock_that_cannot_be_read_is_followed_when_silent(tmp_path, text):
  (tmp_path / "lock.json").write_text(text)
  with run_lock.Lock(tmp_path, timeout=0.5):
    pass


def test_of_many_that_find_a_dead_owner_one_gets_the_lock(tmp_path):
  write(tmp_path, began="1")
  held, refused = [], []

  def run():
    try:
      with run_lock.Lock(tmp_path):
        held.append(1)
        assert len(held) == 1
        time.sleep(0.5)
        held.pop()
    except errors.UserError:
      refused.append(1)

  threads = [threading.Thread(target=run) for _ in range(8)]
  for each in threads:
    each.start()
  for each in threads:
    each.join()
  assert len(refused) == 7


def test_a_run_that_was_taken_over_meanwhile_ends(tmp_path):
  code = (
    "import sys, time, pathlib; from seer_jax.runtime import run_lock;"
    "run_lock.HEARTBEAT = 0.1;"
    "run_lock.Lock(pathlib.Path(sys.argv[1])).__enter__();"
    "print('held', flush=True); time.sleep(60)"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as owner:
    owner.stdout.readline()
    write(tmp_path, host="elsewhere")
    _, err = owner.communicate(timeout=300)
  assert owner.returncode == errors.Lost.STATUS
  assert "was taken over by process" in err and "on elsewhere" in err
  assert (tmp_path / "lock.json").exists()
