"""Images per second where each read takes a while, as on a network file system.

    python benchmarks/reads.py [--data=FOLDER] [--delay=30] [--workers=0]

The input of a run, without its steps: 2 x 224 + 4 x 96 crops of photographs,
whose reads sleep for `--delay` milliseconds first, for several values of
`config.data.reads`. Prints a table and one line of JSON.
"""

import argparse
import json
import pathlib
import tempfile
import time

BATCH = 32


class Slow:
  """A source whose reads take a while."""

  def __init__(self, source, seconds: float):
    self._source, self._seconds = source, seconds
    self.label_names, self.fingerprint = source.label_names, source.fingerprint

  def __len__(self):
    return len(self._source)

  def __getitem__(self, i):
    time.sleep(self._seconds)
    return self._source[i]

  def id_of(self, i):
    return self._source.id_of(i)

  def label_of(self, i):
    return self._source.label_of(i)


def rate(source, workers: int, reads: int, batches: int) -> float:
  """Images a second, after a first few batches."""
  from seer_jax.config import keys
  from seer_jax.data import pipeline
  from seer_jax.runtime import mesh as mesh_lib

  config = keys.base()
  config.batch_size, config.crops.sizes = BATCH, (224, 96)
  config.data.workers, config.data.reads = workers, reads
  mesh = mesh_lib.make(1)
  with tempfile.TemporaryDirectory() as workdir:
    bad = pipeline.BadImages(source, pathlib.Path(workdir), 1.0, 1 << 28)
    stream = pipeline.train_batches(source, config, mesh, 0, bad)
    # What was made ahead while the first was waited for.
    for _ in range(8):
      next(stream)
    began = time.perf_counter()
    for _ in range(batches):
      next(stream)
    seconds = time.perf_counter() - began
    stream.close()
  return BATCH * batches / seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--delay", type=float, default=30, help="ms a read")
  parser.add_argument("--workers", type=int, default=0)
  parser.add_argument("--batches", type=int, default=24)
  parser.add_argument("--reads", type=int, nargs="*", default=[1, 2, 8, 16, 32])
  flags = parser.parse_args()
  from seer_jax.data import sources

  source = sources.Folder(str(flags.data))
  found = {}
  print("| `config.data.reads` | images/s |\n| --: | --: |")
  for reads in flags.reads:
    slow = Slow(source, flags.delay / 1000)
    found[reads] = rate(slow, flags.workers, reads, flags.batches)
    print(f"| {reads} | {found[reads]:.0f} |", flush=True)
  about = {"delay": flags.delay, "workers": flags.workers}
  print(json.dumps({"benchmark": "reads", **about, "images/s": found}))


if __name__ == "__main__":
  main()
