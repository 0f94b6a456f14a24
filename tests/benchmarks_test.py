import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from benchmarks import input as benchmark
from benchmarks import knn_bank, learning, learning_changes
from seer_jax.config import validate


def test_the_input_benchmark_measures_what_it_says(monkeypatch, capsys):
  monkeypatch.setattr(benchmark, "SIZES", (32, 16))
  datas = benchmark.load(None, 8, 1)
  ways = benchmark.ours(datas)
  benchmark.show(benchmark.measure(ways, len(datas), 2))
  *table, line = capsys.readouterr().out.splitlines()
  result = json.loads(line)
  assert len(table) == 5
  assert set(result["images/s/core"]) == {"host", "whole", "synthetic"}
  for rate in result["images/s/core"].values():
    assert 0 < rate["low"] <= rate["median"] <= rate["high"]


def test_images_may_be_a_folder_and_be_enlarged(tmp_path):
  for number in range(5):
    image = np.full((10, 20, 3), 40 * number, np.uint8)
    cv2.imwrite(str(tmp_path / f"{number}.jpg"), image)
  datas = benchmark.load(tmp_path, 2, 3)
  shapes = [
    cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape
    for data in datas
  ]
  assert shapes == [(30, 60, 3)] * 2


def test_the_bank_on_disk_is_searched_exactly(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(knn_bank, "_ROWS", 100)
  sizes = ("--bank=333", "--width=16", "--queries=20", "--k=5")
  knn_bank.main([*sizes, f"--folder={tmp_path}"])
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["same"] == 1 and result["below"] == 0
  assert not list(tmp_path.iterdir())


# As on machines that are lent with JAX, Flax and optax alone.
BARE = """
import sys

class Missing:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("grain", "tensorflow_datasets", "ml_collections"):
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
"""


def bare(folder, *command):
  """A benchmark where grain, tfds and ml_collections are missing."""
  (folder / "sitecustomize.py").write_text(BARE)
  root = pathlib.Path(__file__).parents[1]
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join((str(folder), str(root))),
    "XLA_FLAGS": "",
  }
  done = subprocess.run(
    [sys.executable, *command],
    cwd=root,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  *table, line = done.stdout.splitlines()
  return table, json.loads(line)


def test_steps_are_timed_on_a_bare_machine(tmp_path):
  table, (found,) = bare(
    tmp_path,
    "benchmarks/step.py",
    "--cases=tiny",
    "--rounds=1",
    "--seconds=0.1",
    "--alone",
  )
  assert table[-1].startswith("| tiny | 4 |")
  assert found["ours_images_per_second"] > 0 and found["ours_memory"] > 2**26
  assert 0 < found["utilisation"] < 1
  # Random features predict nothing: the loss is about ln K.
  assert abs(found["ours_first_loss"] - np.log(16)) < 1


def test_the_loss_is_timed_on_a_bare_machine(tmp_path):
  table, (found,) = bare(
    tmp_path, "benchmarks/loss.py", "--cases=8x32", "--rounds=1", "--alone"
  )
  assert table[-1].startswith("| 8 | 32 |") and found["ours_ms"] > 0


@pytest.fixture
def cifar(tmp_path):
  """A folder of its form: ten classes of 20 images to train on, 2 to test."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 20), ("test", 2)):
    for label in range(10):
      folder = tmp_path / "cifar" / split / f"class{label}"
      folder.mkdir(parents=True)
      for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.jpg"), pixels)
  return tmp_path / "cifar"


def test_a_long_tail_falls_geometrically_to_the_rarest_class(cifar, tmp_path):
  path = learning.long_tail(cifar, 10, tmp_path / "out")
  names = path.read_text().splitlines()
  counts = [
    sum(name.startswith(f"class{label}/") for name in names)
    for label in range(10)
  ]
  assert counts == [20, 15, 12, 9, 7, 6, 4, 3, 3, 2]
  assert all((cifar / "train" / name).is_file() for name in names)


@pytest.mark.parametrize("row", learning_changes.CHANGES)
def test_every_row_of_the_learning_benchmark_is_a_config(row, cifar, tmp_path):
  config = learning.config_of(row, cifar, 10, tmp_path)
  validate.check_each(config)
  assert config.data.train.only.endswith("tail10.txt")


def test_rows_of_the_learning_table_are_means_over_seeds():
  run = {"row": "koleo", "tail": 1, "only": ""}
  run |= {"linear": 0.5, "knn/k=20": 0.4}
  other = run | {"linear": 0.52}
  line = learning.table([run, other]).splitlines()[-1]
  assert line.startswith("| koleo | 1 | 2 | 40.0 ± 0.0 |")
  assert "| 51.0 ± 1.4 |" in line


@pytest.mark.slow
def test_the_learning_benchmark_trains_evaluates_and_resumes(cifar, tmp_path):
  command = (
    *(sys.executable, "benchmarks/learning.py", f"--data={cifar}"),
    *("--rows=koleo", "--seeds=0", "--epochs=2", f"--out={tmp_path / 'out'}"),
  )
  root = pathlib.Path(__file__).parents[1]
  for _ in range(2):
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  (found,) = json.loads(done.stdout.splitlines()[-1])
  assert found["epochs"] == pytest.approx(2, abs=0.7) and found["flops"] > 0
  assert 0 <= found["linear"] <= 1
