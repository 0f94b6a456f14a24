"""kNN against a bank that is larger than memory: time, memory, exactness.

    python benchmarks/knn_bank.py [--bank=1281167] [--width=3712] \
      [--queries=10000] [--k=200] [--folder=/tmp]

Random features are written to a file, as `evals/feature_store.py` keeps them,
and searched by `evals.knn.nearest`. A few queries are searched again by NumPy
in float64: their neighbours must be the same, but for neighbours whose cosines
differ by less than float32 can tell. One JSON line sums up.
"""

import argparse
import json
import os
import pathlib
import tempfile
import threading
import time

import numpy as np

_CHECKED, _ROWS = 16, 8192


def write(path: pathlib.Path, count: int, width: int) -> np.ndarray:
  """Standard normal features, as a memory map."""
  rng = np.random.default_rng(0)
  with path.open("wb") as file:
    for start in range(0, count, _ROWS):
      rows = min(_ROWS, count - start)
      file.write(rng.standard_normal((rows, width), np.float32).tobytes())
  return np.memmap(path, np.float32, "r", shape=(count, width))


class Memory:
  """The most anonymous memory that this process had, in bytes.

  Pages of the file that is searched are not counted: the system takes them back
  when it needs them.
  """

  def __enter__(self):
    self.peak, self._stop = 0, threading.Event()
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()

  def _watch(self):
    while not self._stop.wait(0.2):
      for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
          self.peak = max(self.peak, int(line.split()[1]) * 1024)


def cosines(bank, queries):
  """QxN, in float64, the bank in chunks."""
  unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  found = []
  for start in range(0, len(bank), _ROWS):
    rows = bank[start : start + _ROWS].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found.append(unit @ rows.T)
  return np.concatenate(found, axis=1)


def compare(cosine_QxN, index_QxK):
  """What float64 says of some neighbours.

  Returns:
    The share of places with the same neighbour; and the most by which the
    cosine of a place's neighbour is below that of the one that belongs there.
  """
  order_QxN = np.argsort(-cosine_QxN, axis=1, kind="stable")
  wanted_QxK = order_QxN[:, : index_QxK.shape[1]]
  best, ours = (
    np.take_along_axis(cosine_QxN, index, 1)
    for index in (wanted_QxK, index_QxK)
  )
  return float((index_QxK == wanted_QxK).mean()), float((best - ours).max())


def main(arguments: list[str] | None = None) -> None:
  """Measures as the command line says."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--bank", type=int, default=1_281_167)
  parser.add_argument("--width", type=int, default=3712)
  parser.add_argument("--queries", type=int, default=10_000)
  parser.add_argument("--k", type=int, default=200)
  parser.add_argument("--folder", default=tempfile.gettempdir())
  options = parser.parse_args(arguments)
  from seer_jax.evals import knn

  path = pathlib.Path(options.folder, f"knn_bank-{os.getpid()}.f32")
  try:
    bank = write(path, options.bank, options.width)
    queries = np.random.default_rng(1).standard_normal(
      (options.queries, options.width), np.float32
    )
    began = time.perf_counter()
    with Memory() as memory:
      _, index = knn.nearest(bank, queries, options.k)
    seconds = time.perf_counter() - began
    some = cosines(bank, queries[:_CHECKED].astype(float))
    same, below = compare(some, index[:_CHECKED])
  finally:
    path.unlink(missing_ok=True)
  flops = 2 * options.bank * options.queries * options.width
  print(f"{options.queries:,} queries, k = {options.k}, against")
  print(
    f"{options.bank:,} x {options.width} float32, {bank.nbytes / 1e9:.1f} GB"
  )
  print(f"seconds                    {seconds:8.1f}")
  print(f"10^9 operations a second   {flops / seconds / 1e9:8.1f}")
  print(f"peak of anonymous memory   {memory.peak / 2**30:8.2f} GiB")
  print(f"same neighbours as float64 {same:8.3%}")
  print(f"cosine below theirs, most  {below:8.1e}")
  print(
    json.dumps(
      {
        "benchmark": "knn_bank",
        "bank": [options.bank, options.width],
        "queries": options.queries,
        "k": options.k,
        "seconds": round(seconds, 1),
        "gib": round(memory.peak / 2**30, 2),
        "same": same,
        "below": below,
      }
    )
  )


if __name__ == "__main__":
  main()
