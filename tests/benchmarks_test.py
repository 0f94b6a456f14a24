import json

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
