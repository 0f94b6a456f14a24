"""Commands in the process of a test."""

import pytest

from seer_jax import commands
from seer_jax.commands import training
from seer_jax.runtime import logs


@pytest.fixture
def seer(tmp_path, monkeypatch, capsys):
  """Runs a command in this process: (status, output, errors)."""
  monkeypatch.setattr(training, "keep_compiled", lambda: None)
  monkeypatch.setattr(logs, "show", lambda: None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    status = commands.main([str(each) for each in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err

  return run
