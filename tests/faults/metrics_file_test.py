"""A metrics file that somebody removed, cut or damaged between two starts."""

import os
import shutil
import signal

import pytest
from photos import plant, tiny

from seer_jax.runtime import errors
from seer_jax.training import loop, metrics
from seer_jax.training import run as run_lib

pytestmark = pytest.mark.usefixtures("shared_steps")


def lines(path):
  return path.read_text().splitlines(keepends=True)


def remove(path):
  path.unlink()


def empty(path):
  path.write_text("")


def cut(path):
  path.write_text("".join(lines(path)[:3]))


def tear_in_the_middle(path):
  """Three lines lose their ends, and with it the next line its beginning."""
  text = lines(path)
  damaged = [line[:9] for line in text[2:5]]
  path.write_text("".join([*text[:2], *damaged, *text[5:]]))


def lose_an_evaluation(path):
  text = lines(path)
  assert "eval_seconds" in text[0]
  path.write_text("".join(text[1:]))


@pytest.fixture
def stopped_at(monkeypatch):
  """`stopped_at(step, config, workdir)`: a run up to a signal there."""
  advance = loop.Loop._take_step

  def run(step, config, workdir):
    def stopped(self, batches):
      advance(self, batches)
      if self._step == step:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
      patch.setattr(loop.Loop, "_take_step", stopped)
      with pytest.raises(errors.Stopped):
        run_lib.run(config, workdir)

  return run


@pytest.fixture
def settings(tmp_path):
  """Gives a new config each time, of the same photos."""
  photos = plant(tmp_path / "photos", 40)

  def make():
    config = tiny(photos, steps=12)
    config.eval.every = config.checkpoint.every = 4
    return config

  return make


HARMS = (
  (None, ""),
  (remove, "lacks 6 of its 6 lines up to step 8, those of steps 2 to 8:"),
  (empty, "lacks 6 of its 6 lines up to step 8, those of steps 2 to 8:"),
  (cut, "lacks 3 of its 6 lines up to step 8, those of steps 6 to 8:"),
  (tear_in_the_middle, "lacks 4 of its 6 lines up to step 8, those of steps 4"),
  (lose_an_evaluation, "lacks 1 of its 6 lines up to step 8:"),
)


def test_what_is_missing_is_said_once(tmp_path, settings, stopped_at, caplog):
  stopped_at(8, settings(), tmp_path / "run")
  caplog.set_level("WARNING")
  for number, (harm, words) in enumerate(HARMS):
    workdir = tmp_path / f"run{number}"
    shutil.copytree(tmp_path / "run", workdir)
    if harm:
      harm(workdir / "metrics.jsonl")
    caplog.clear()
    stopped_at(10, settings(), workdir)
    if harm == cut:  # The next checkpoint vouches for what there is now.
      run_lib.run(settings(), workdir)
    said = [line for line in caplog.messages if "metrics.jsonl" in line]
    assert len(said) == bool(harm), harm
    assert words in "".join(said), harm


@pytest.mark.parametrize(
  "every, last, words",
  [
    (10, 10, ""),
    (10, 75, "20 to 30, 60"),
    (5, 50, "5, 15 to 35, 45"),
    (1, 72, "1 to 9, 11 to 39, 41 to 49, ..."),
  ],
)
def test_the_steps_of_a_gap(tmp_path, every, last, words):
  writer = metrics.Writer(tmp_path, None)
  for step in (10, 40, 50, 70):
    writer.write(step, {"loss": 1.0})
  assert writer.missing(4, every, last) == ""
  said = writer.missing(9, every, last)
  assert f"lacks 5 of its 9 lines up to step {last}" in said
  assert (f"those of steps {words}:" in said) == bool(words)
  writer.close()
