import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np

from benchmarks import input as benchmark
from benchmarks import knn_bank


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
