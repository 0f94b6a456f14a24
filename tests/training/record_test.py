"""`run.json`: written by the first start, added to by the others."""

from seer_jax.config import auto
from seer_jax.data import sources
from seer_jax.evals import features, suite
from seer_jax.runtime import errors, files
from seer_jax.training import record

CHOICE = auto.Choice("crops.sizes", (16,), "images are small")


def add(workdir, choices):
  source = sources.open_source({"kind": "digits", "split": "train"})
  bank = features.ImageSet(source, range(50))
  images = suite.Sets(bank, features.ImageSet(source, range(50, 60)))
  record.add_start(workdir, source, images, choices)


def test_choices_are_those_of_the_first_start_and_starts_add_up(tmp_path):
  add(tmp_path, [CHOICE])
  add(tmp_path, [])  # A run that resumes finds them in its config.
  found = record.read(tmp_path)
  assert [each.key for each in found.choices] == ["crops.sizes"]
  assert found.choices[0].reason == "images are small"
  assert len(found.starts) == 2
  assert found.starts[0].time <= found.starts[1].time
  assert (found.images, found.bank, found.query) == (1297, 50, 10)
  assert len(found.labels) == 10


def test_a_disk_that_refuses_it_ends_no_run(tmp_path, caplog, monkeypatch):
  def refuse(path, text):
    raise errors.Lost(f"cannot write {path}: no room")

  monkeypatch.setattr(files, "write_text", refuse)
  add(tmp_path, [CHOICE])
  assert "the run continues without it" in caplog.text


def test_where_there_is_none_nothing_is_known(tmp_path):
  assert record.read(tmp_path) == record.Record()
