"""Workdirs as they are found: whole, moved, torn, closed."""

import json
import shutil

import pytest

from seer_jax.apps.report import cost, history
from seer_jax.runtime import errors
from seer_jax.training import record


def test_a_run_is_read_with_what_was_chosen_and_why(tiny):
  (found,) = history.read([tiny])
  assert found.name == "tiny" and found.is_done and not found.gave_up
  assert found.record.images == 1297 and found.record.query == 100
  reasons = {each.key: each.reason for each in found.record.choices}
  assert reasons["precision"]
  (start,) = found.record.starts
  assert start.device == "cpu" and start.devices == 1
  assert found.score == "knn/k=20"


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tiny, tmp_path):
  workdirs = [
    shutil.copytree(tiny, tmp_path / name) for name in ("a/run", "b/run")
  ]
  assert [each.name for each in history.read(workdirs)] == ["a/run", "b/run"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"starts": 1}'])
def test_a_record_that_is_damaged_is_none(tiny, tmp_path, text):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  (workdir / record.NAME).write_text(text)
  (found,) = history.read([workdir])
  assert found.record == record.Record()
  assert "from before hardware" in cost.energy(found).words


def test_a_torn_line_and_bad_images_of_two_processes_are_read(tiny, tmp_path):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 41, "lo')
  (workdir / "bad_images.txt").write_text("a.jpg\nb.jpg\n")
  (workdir / "bad_images.1.txt").write_text("b.jpg\nc.jpg\n")
  (found,) = history.read([workdir])
  assert found.step == 40
  assert list(found.bad_images) == ["b.jpg", "c.jpg", "a.jpg"]


def test_a_config_that_is_damaged_is_named(tiny, tmp_path):
  workdir = shutil.copytree(tiny, tmp_path / "run")
  (workdir / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match="config.json is damaged"):
    history.read([workdir])


def test_a_run_without_a_checkpoint_has_its_config(tiny, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  config = json.loads((tiny / "config.json").read_text())
  (workdir / "config.json").write_text(json.dumps(config))
  (found,) = history.read([workdir])
  assert found.config.steps == 40 and not found.is_done


@pytest.mark.parametrize(
  ("device", "hours", "wanted"),
  [
    ("cpu", 1, 0.01),
    ("Tesla V100-SXM2-32GB", 2, 2.4),
    ("NVIDIA H100 80GB HBM3", 1, 2.8),
    ("TPU v4", 1, 0.768),
    ("TPU v5 lite", 1, None),
  ],
)
def test_energy_is_power_times_time_where_power_is_known(
  made, device, hours, wanted
):
  start = record.Start(0.0, "0", "0", device, 4, 1, 2)
  found = made([{"step": 1, "loss": 1.0, "seconds": 3600.0 * hours}])
  found = history.dataclasses.replace(
    found, record=record.Record(starts=(start,))
  )
  energy = cost.energy(found)
  assert (
    energy.kilowatt_hours == pytest.approx(wanted)
    if wanted
    else (energy.kilowatt_hours is None and "4.0 device hours" in energy.words)
  )


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (1.23, "1.2 s"),
    (200, "3 min 20 s"),
    (7500, "2 h 5 min"),
    (2e6, "23.1 days"),
  ],
)
def test_durations_are_in_units_of_their_size(seconds, words):
  assert cost.duration(seconds) == words
