"""Exact search in ten million float16 vectors, beside faiss's flat indexes.

    python benchmarks/search.py [--rows=10000000] [--width=256] [--queries=100]
      [--rounds=3] [--file=FILE]

The vectors are made up, clustered, and on disk; ours are searched from there.
faiss has them in memory: as float32 (IndexFlatIP), and as float16
(IndexScalarQuantizer). After a warm-up the three take turns. Prints times, the
largest resident memory of ours, before faiss has anything, and whether
the neighbours are the same; and one line of JSON.
"""

import argparse
import json
import pathlib
import resource
import statistics
import tempfile
import threading
import time

PART, CENTRES = 100_000, 2000


class Resident:
  """The largest resident memory of this process while it is entered, GiB."""

  def __enter__(self):
    self._over, self.largest = threading.Event(), 0.0
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    page = resource.getpagesize() / 2**30
    while not self._over.wait(0.02):
      pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
      self.largest = max(self.largest, pages * page)

  def __exit__(self, *exception):
    self._over.set()
    self._thread.join()


def make(path: pathlib.Path, rows: int, width: int) -> None:
  """Vectors around centres, float16, to a file."""
  import numpy as np

  rng = np.random.default_rng(0)
  centre_CxD = rng.standard_normal((CENTRES, width), np.float32)
  with path.open("wb") as file:
    for first in range(0, rows, PART):
      count = min(PART, rows - first)
      x_NxD = rng.standard_normal((count, width), np.float32)
      x_NxD += centre_CxD[rng.integers(0, CENTRES, count)]
      file.write(x_NxD.astype(np.float16).tobytes())


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=10_000_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--queries", type=int, default=100)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--file", type=pathlib.Path)
  options = parser.parse_args()

  import numpy as np

  from seer_jax.evals import knn

  path = options.file or pathlib.Path(tempfile.mkdtemp()) / "vectors.f16"
  if not path.exists():
    make(path, options.rows, options.width)
  shape = options.rows, options.width
  bank_NxD = np.memmap(path, np.float16, "r", shape=shape)
  rng = np.random.default_rng(1)
  chosen = np.sort(rng.choice(options.rows, options.queries, replace=False))
  query_QxD = bank_NxD[chosen].astype(np.float32)
  query_QxD += rng.standard_normal(query_QxD.shape, np.float32) / 2

  def ours():
    return knn.nearest(bank_NxD, query_QxD, 10)

  methods, found = {"seer_jax, float16 on disk": ours}, {}
  with Resident() as resident:
    ours()
    found["seer_jax, float16 on disk"] = ours()[1]
  methods |= _faiss(bank_NxD, query_QxD)
  seconds = {name: [] for name in methods}
  for _ in range(options.rounds):
    for name, search in methods.items():
      began = time.perf_counter()
      found[name] = search()[1]
      seconds[name].append(time.perf_counter() - began)
  first, *_ = found.values()
  print(
    f"{options.rows:,} x {options.width}, {options.queries} queries, k = 10;"
    f" ours: at most {resident.largest:.2f} GiB resident"
  )
  table = {}
  for name, each in seconds.items():
    table[name] = statistics.median(each)
    same = float(np.mean(found[name] == first))
    print(f"{name:28} {table[name]:7.2f} s   {same:7.2%} the same neighbours")
  print(json.dumps({"seconds": table, "resident_gib": resident.largest}))


def _faiss(bank_NxD, query_QxD):
  """faiss's indexes, filled; none where faiss is not installed."""
  try:
    import faiss
  except ImportError:
    print("faiss is not installed: pip install 'seer_jax[faiss]'")
    return {}
  import numpy as np

  width = bank_NxD.shape[1]
  metric = faiss.METRIC_INNER_PRODUCT
  indexes = {
    "faiss, float32 in memory": faiss.IndexFlatIP(width),
    "faiss, float16 in memory": faiss.IndexScalarQuantizer(
      width, faiss.ScalarQuantizer.QT_fp16, metric
    ),
  }
  for first in range(0, len(bank_NxD), PART):
    x_NxD = bank_NxD[first : first + PART].astype(np.float32)
    faiss.normalize_L2(x_NxD)
    for index in indexes.values():
      index.add(x_NxD)
  unit_QxD = query_QxD / np.linalg.norm(query_QxD, axis=1, keepdims=True)
  return {
    name: lambda index=index: index.search(unit_QxD, 10)
    for name, index in indexes.items()
  }


if __name__ == "__main__":
  main()
