"""Containers and shared machines: no home, files that are closed to us."""

import os
import pathlib
import shutil
import sys

import permissions
import pytest
import runs

from seer_jax import commands
from seer_jax.commands import training
from seer_jax.runtime import errors, files

pytestmark = pytest.mark.skipif(
  sys.platform != "linux", reason="capabilities are Linux's"
)
# As for a user ID without an entry in /etc/passwd.
NOBODY = """
import os, pwd
del os.environ["HOME"]
os.environ.pop("XDG_CACHE_HOME", None)
def unknown(uid):
  raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
"""


@pytest.fixture
def no_home(monkeypatch, tmp_path):
  monkeypatch.delenv("HOME")
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(
    pathlib.posixpath, "expanduser", lambda path: path, raising=True
  )
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  files._temporary_cache.cache_clear()
  yield
  files._temporary_cache.cache_clear()


def test_without_a_home_what_is_compiled_is_kept_among_temporary_files(
  no_home, tmp_path, caplog
):
  folder = tmp_path / f"seer_jax-{os.getuid()}"
  for _ in range(2):
    assert files.cache_folder() == folder / "xla"
    assert files.cached("tars", 1).parent == folder / "tars"
  assert folder.stat().st_mode & 0o777 == 0o700
  assert len(caplog.messages) == 1
  assert "XDG_CACHE_HOME" in caplog.text


def test_a_folder_that_others_may_write_to_is_not_trusted(no_home, tmp_path):
  folder = tmp_path / f"seer_jax-{os.getuid()}"
  folder.mkdir()
  folder.chmod(0o777)
  cache = files.cache_folder()
  assert cache.parent != folder
  assert cache.parent.stat().st_mode & 0o777 == 0o700


def test_a_tilde_that_nobody_knows_is_a_user_error(no_home):
  with pytest.raises(errors.UserError, match="home folder is unknown"):
    files.user_path("~/photos")


def test_a_cache_that_is_closed_to_us_is_left_alone(
  monkeypatch, tmp_path, caplog
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  files._temporary_cache.cache_clear()
  assert files.cache_folder() == tmp_path / "cache" / "seer_jax" / "xla"
  closed = tmp_path / "cache" / "seer_jax"
  closed.mkdir(parents=True)
  for mode in (0o000, 0o300, 0o500):
    closed.chmod(mode)
    with permissions.obeyed():
      assert files.cache_folder().parent.name == f"seer_jax-{os.getuid()}"
  assert len(caplog.messages) == 1
  closed.chmod(0o700)
  files._temporary_cache.cache_clear()


def test_a_run_needs_no_home(tiny, tmp_path):
  code = NOBODY + f"import tempfile\ntempfile.tempdir = {str(tmp_path)!r}\n"
  code, _, err = runs.run(
    *runs.TINY, f"--workdir={tmp_path / 'run'}", code=code
  )
  assert code == 0, err
  assert "Traceback" not in err
  assert any((tmp_path / f"seer_jax-{os.getuid()}" / "xla").iterdir())
  runs.assert_same_run(tiny, tmp_path / "run")


@pytest.mark.parametrize(
  "name",
  [
    *("metrics.jsonl", "config.json", "bad_images.txt", "."),
    *("checkpoints", "checkpoints/40", "checkpoints/40/SHA256SUMS"),
  ],
)
def test_what_is_closed_to_us_in_a_workdir_is_named(tiny, tmp_path, name):
  workdir = tmp_path / "run"
  shutil.copytree(tiny, workdir)
  (workdir / "bad_images.txt").touch()
  config = (workdir / "config.json").read_bytes()
  (workdir / name).chmod(0)
  code, _, err = runs.run(
    *runs.TINY, f"--workdir={workdir}", code=permissions.CODE
  )
  (workdir / name).chmod(0o700)
  assert code == 2, err
  assert not list((workdir / "checkpoints").glob("*.damaged"))
  assert "Traceback" not in err
  last = err.strip().splitlines()[-1]
  assert "Permission denied" in last
  assert str(workdir / name) in last
  assert (workdir / "config.json").read_bytes() == config


def test_an_empty_workdir_is_a_user_error():
  options = training.TRAIN.parse(
    "train", ["--config=configs/digits.py", "--workdir="]
  )
  with pytest.raises(errors.UserError, match="no --workdir is given"):
    training._begin(options)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "folder/a.pth"])
def test_weights_that_are_closed_to_us_are_named(tmp_path, capsys, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.touch()
  closed = path if path.parent == tmp_path else path.parent
  closed.chmod(0)
  with permissions.obeyed():
    status = commands.main(["convert", str(path)])
  closed.chmod(0o700)
  assert status == 2
  line = capsys.readouterr().err
  assert line == f"error: cannot read {path}: Permission denied\n"
