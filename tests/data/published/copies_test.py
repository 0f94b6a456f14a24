"""Ground truth of the revisited Oxford and Paris."""

import pickle

import cv2
import numpy as np
import pytest

from seer_jax.data.published import copies, prepare
from seer_jax.runtime import errors


@pytest.fixture
def oxford(tmp_path):
  folder = tmp_path / "jpg"
  folder.mkdir()
  for name in ("a_0", "a_1", "b_0", "q_0"):
    cv2.imwrite(str(folder / f"{name}.jpg"), np.zeros((9, 9, 3), np.uint8))
  answer = {"bbx": [0, 0, 9, 9], "easy": np.array([0]), "hard": [1], "junk": []}
  path = tmp_path / "gnd.pkl"

  def write(**changes):
    truth = {
      "imlist": ["a_0", "a_1", "b_0"],
      "qimlist": ["q_0"],
      "gnd": [answer],
    }
    path.write_bytes(pickle.dumps(truth | changes, protocol=2))
    return folder, path

  return write


def test_the_pickle_becomes_tables_and_answers(oxford, tmp_path):
  folder, path = oxford()
  out = tmp_path / "out"
  written = prepare.prepare("roxford5k", folder, out, {"metadata": path})
  assert [each.name for each in written] == [
    *("database.csv", "queries.csv", "ground_truth.json")
  ]
  assert (out / "ground_truth.json").read_text() == (
    '{"queries": [{"easy": [0], "hard": [1], "junk": []}]}\n'
  )
  assert "q_0.jpg" in (out / "queries.csv").read_text()


def test_missing_files_leave_nothing_written(oxford, tmp_path):
  folder, path = oxford(qimlist=["q_0", "q_1"])
  with pytest.raises(errors.UserError, match="queries .* but 1 are missing"):
    prepare.prepare("roxford5k", folder, tmp_path / "out", {"metadata": path})
  assert not (tmp_path / "out").exists()


def test_a_pickle_that_runs_code_is_refused(oxford, tmp_path):
  folder, path = oxford()
  path.write_bytes(pickle.dumps({"imlist": print}))
  with pytest.raises(errors.UserError, match="names builtins.print"):
    copies.buildings(folder, path)


def test_photographs_get_the_nearest_cell(tmp_path):
  (tmp_path / "x.jpg").touch()
  (tmp_path / "photos.csv").write_text("path,lat,lon\nx.jpg,48.8,2.3\n")
  (tmp_path / "cells.csv").write_text("latitude,longitude\n40,-74\n49,2\n")
  options = {
    "metadata": tmp_path / "photos.csv",
    "cells": tmp_path / "cells.csv",
  }
  out = tmp_path / "out.csv"
  prepare.prepare("geolocation", tmp_path, out, options)
  assert out.read_text().splitlines()[1].endswith("x.jpg,1,48.8,2.3")


def test_an_unknown_set_and_a_missing_option_are_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no data set 'imagenet'"):
    prepare.prepare("imagenet", tmp_path, tmp_path / "x", {})
  with pytest.raises(errors.UserError, match="miap needs --metadata"):
    prepare.prepare("miap", tmp_path, tmp_path / "x", {})
