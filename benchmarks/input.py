"""Images per second and core: SwAV's 2x224 + 4x96 crops, published and ours.

    python benchmarks/input.py [--rounds=5] [--data=photos.tar] [--ours]

Four ways, taken in turn in each round, on one core:

* published: PIL and torchvision do everything, as VISSL did (needs PyTorch);
* host: our part that needs no accelerator, bytes to uint8 crops;
* whole: host, then `augment.augment` and `normalize`, compiled, on the CPU;
* synthetic: the same of crops that are ready, the most `whole` could be.

Rates are by CPU time, so that what else runs on the machine counts less.
Prints a table and one line of JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import tarfile
import time

COUNTS, SIZES, SCALES = (2, 4), (224, 96), ((0.14, 1.0), (0.05, 0.14))
RATIO = (3 / 4, 4 / 3)
MAX_PIXELS = 1 << 28
BATCH = 8
PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "photos.tar"
SAYS = {
  "published": "PIL and torchvision, everything",
  "host": "ours, decoding and crops",
  "whole": "ours, augmentation on the CPU too",
  "synthetic": "ours, augmentation alone",
}


def take_one_core() -> None:
  """Keeps this process to one core. Before JAX or PyTorch are imported."""
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
  os.environ["OMP_NUM_THREADS"] = "1"


def load(path: pathlib.Path | None, count: int, enlarge: int) -> list[bytes]:
  """`count` encoded images, of a folder, a tar, or made up.

  Args:
    path: where they are; None for smooth noise of 375 x 500 pixels as JPEG.
    count: how many, evenly over what there is.
    enlarge: makes sides so many times longer, and encodes again.
  """
  import cv2
  import numpy as np

  if path is None:
    rng = np.random.default_rng(0)
    datas = []
    for _ in range(count):
      noise = rng.integers(0, 256, (24, 32, 3), np.uint8)
      image = cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
      datas.append(cv2.imencode(".jpg", image)[1].tobytes())
  elif path.is_dir():
    datas = [file.read_bytes() for file in sorted(path.iterdir())]
  else:
    with tarfile.open(path) as tar:
      datas = [tar.extractfile(m).read() for m in tar if m.isfile()]
  datas = datas[:: max(1, len(datas) // count)][:count]
  if enlarge == 1:
    return datas
  return [_enlarged(data, enlarge) for data in datas]


def _enlarged(data, times):
  import cv2
  import numpy as np

  image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  image = cv2.resize(
    image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC
  )
  return cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))[
    1
  ].tobytes()


def published(datas: list[bytes]):
  """A function that makes all views of all images with torchvision."""
  import published_transforms
  import torch

  torch.set_num_threads(1)
  transform = published_transforms.multi_crop(COUNTS, SIZES, SCALES)

  def run():
    for data in datas:
      transform(data)

  return run


def ours(datas: list[bytes]):
  """Functions that do the same with `seer_jax`: host, whole, synthetic."""
  import jax
  import numpy as np

  from seer_jax.config import keys
  from seer_jax.data import crops, preprocessing
  from seer_jax.tasks import augment

  groups = tuple(map(crops.CropGroup, COUNTS, SIZES, SCALES))
  options = keys.base().augment
  count = len(datas)

  def cut(number):
    rng = np.random.default_rng((0, number))
    data = datas[number % count]
    return crops.multi_crop_bytes(data, rng, groups, RATIO, MAX_PIXELS)

  @jax.jit
  def view(crops_BxVxHxWx3, key):
    done = []
    for x in crops_BxVxHxWx3:
      x_NxHxWx3 = x.reshape(-1, *x.shape[2:])
      keys_N = jax.random.split(key, len(x_NxHxWx3))
      pixels = augment.augment(x_NxHxWx3, keys_N, options)
      done.append(preprocessing.normalize(pixels, options.mean, options.std))
    return done

  def stacked(numbers):
    return tuple(map(np.stack, zip(*map(cut, numbers), strict=True)))

  ready = stacked(range(BATCH))
  jax.block_until_ready(view(ready, jax.random.key(0)))

  def host():
    for number in range(count):
      cut(number)

  def whole():
    for first in range(0, count, BATCH):
      batch = stacked(range(first, first + BATCH))
      jax.block_until_ready(view(batch, jax.random.key(first)))

  def synthetic():
    for first in range(0, count, BATCH):
      jax.block_until_ready(view(ready, jax.random.key(first)))

  return {"host": host, "whole": whole, "synthetic": synthetic}


def measure(ways: dict, count: int, rounds: int) -> dict[str, list[float]]:
  """Images per second of CPU time, each way in each round, after a warm-up."""
  rates = {name: [] for name in ways}
  for round_ in range(rounds + 1):
    for name, run in ways.items():
      start = time.process_time()
      run()
      rate = count / (time.process_time() - start)
      if round_:
        rates[name].append(rate)
  return rates


def show(rates: dict[str, list[float]]) -> None:
  """The table, and one line of JSON."""
  base = statistics.median(rates.get("published", [0]))
  print("| way | images/s/core | lowest - highest | ratio |")
  print("| --- | --: | --: | --: |")
  result = {}
  for name, values in rates.items():
    median = statistics.median(values)
    low, high = min(values), max(values)
    result[name] = {"median": median, "low": low, "high": high}
    if base:
      result[name]["ratio"] = median / base
    ratio = f"{median / base:.2f}" if base else ""
    print(f"| {SAYS[name]} | {median:.0f} | {low:.0f} - {high:.0f} | {ratio} |")
  print(json.dumps({"benchmark": "input", "images/s/core": result}))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--images", type=int, default=96, help="a round")
  parser.add_argument(
    "--data",
    type=pathlib.Path,
    default=PHOTOS if PHOTOS.exists() else None,
    help="a folder or tar of images; made up when there is none",
  )
  parser.add_argument(
    "--enlarge", type=int, default=1, help="sides of the images, times this"
  )
  parser.add_argument("--ours", action="store_true", help="needs no PyTorch")
  flags = parser.parse_args()
  take_one_core()
  count = -(-flags.images // BATCH) * BATCH
  datas = load(flags.data, count, flags.enlarge)
  datas = datas[: len(datas) // BATCH * BATCH]
  ways = {} if flags.ours else {"published": published(datas)}
  show(measure(ways | ours(datas), len(datas), flags.rounds))


if __name__ == "__main__":
  main()
