"""docs/tour.md, command by command, on some of its photographs."""

import glob
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile

import photos
import pytest

from seer_jax import commands
from seer_jax.apps.view import server
from seer_jax.commands import logs, process

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "tour.md").read_text()
COMMANDS = [
  line.replace("\\\n", " ")
  for line in re.findall(r"^    \$ ((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
]
# Of its photographs the tour names some; beside them every so many is taken.
EVERY = 6


@pytest.fixture
def home(tmp_path, tiny, monkeypatch):
  """A folder to be in, with some of the photographs and small weights."""
  if not photos.PHOTOS.exists():
    pytest.skip(f"{photos.PHOTOS} is not there")
  monkeypatch.setattr(process, "keep_compiled", lambda: None)
  monkeypatch.setattr(logs, "show", lambda: None)

  def end(self):
    raise KeyboardInterrupt

  monkeypatch.setattr(server.Server, "serve_forever", end)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  # `python` is this one.
  here = str(pathlib.Path(sys.executable).parent)
  monkeypatch.setenv("PATH", here, prepend=os.pathsep)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "cifar10").symlink_to(tiny)
  with tarfile.open(photos.PHOTOS) as tar:
    members = [member for member in tar if member.isfile()]
    for at, member in enumerate(members):
      name = pathlib.Path(member.name).name
      if at % EVERY == 0 or any(
        re.search(pattern, name) for pattern in _named()
      ):
        tar.extract(member, tmp_path, filter="data")
  return tmp_path


def _named():
  """Patterns of the photographs that commands of the tour name."""
  return [
    each.rsplit("/", 1)[-1].replace(".", r"\.").replace("*", ".*")
    for command in COMMANDS
    for each in command.split()
    if each.endswith(".JPEG")
  ]


def test_every_command_of_the_tour_runs(home, capsys):
  names = {shlex.split(each)[1] for each in COMMANDS if "seer-jax" in each}
  wanted = {"embed", "search", "duplicates", "cluster", "label", "view"}
  assert names >= wanted
  for command in COMMANDS:
    if command.startswith("tar "):
      continue  # Done, in part.
    if not command.startswith("seer-jax "):
      subprocess.run(["bash", "-ec", command], check=True, cwd=home)
      continue
    arguments = [
      path
      for word in shlex.split(command)[1:]
      for path in (sorted(glob.glob(word)) or [word])
    ]
    status = commands.main(arguments)
    said = capsys.readouterr()
    assert status == 0, (command, said.err)
  for path in re.findall(r"[\w./]+\.(?:html|csv|txt)\b", " ".join(COMMANDS)):
    assert os.path.getsize(path) > 0, path
