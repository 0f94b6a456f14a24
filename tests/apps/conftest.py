"""Commands in the process of a test."""

import shutil

import pytest

from seer_jax import commands
from seer_jax.commands import logs, process


@pytest.fixture
def seer(tmp_path, monkeypatch, capsys):
  """Runs a command in this process: (status, output, errors)."""
  monkeypatch.setattr(process, "keep_compiled", lambda: None)
  monkeypatch.setattr(logs, "show", lambda: None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    status = commands.main([str(each) for each in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err

  return run


@pytest.fixture(scope="session")
def browser():
  """Chromium of the system; skips without."""
  pytest.importorskip("playwright", reason="the page is tested in a browser")
  path = shutil.which("chromium") or shutil.which("chromium-browser")
  if path is None:
    pytest.skip("there is no Chromium on this machine")
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    started = playwright.chromium.launch(
      executable_path=path, args=["--no-sandbox"]
    )
    yield started
    started.close()
