"""Images per second of `seer-jax embed`, beside decoding and resizing alone.

    python benchmarks/embed.py [--rounds=5] [--data=photos.tar] [--times=4]
      [--small]

In each round, in turn, over the same photographs and with as many threads as
there are cores:

* decode: `crops.decode` and the network's view, and nothing else;
* embed, for each trunk: everything that `seer-jax embed` does, up to the
  Parquet file: hashes, the network, rows.

`--times` takes each photograph so often: starting takes half a second, which
long runs do not notice. `--small` leaves out the published trunk.

Prints a table and one line of JSON; `share` is embed's rate over decode's.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import tarfile
import tempfile
import time

PHOTOS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "photos.tar"
# Nothing, as where an accelerator has the network; about the smallest trunk
# there can be; and the smallest that is published.
NONE = "no network"
TRUNKS = {"1 block of 8": (1, 8, 8.0, 2.0, 8), "RegNetY-200MF": "regnety_200mf"}


def load(path: pathlib.Path, times: int, folder: pathlib.Path) -> None:
  """Photographs of a tar as files, each several times."""
  with tarfile.open(path) as tar:
    members = [member for member in tar if member.isfile()]
    for member in members:
      data = tar.extractfile(member).read()
      for again in range(times):
        name = f"{again}_{pathlib.Path(member.name).name}"
        (folder / name).write_bytes(data)


class Nothing:
  """Pixels of a corner as features."""

  def __init__(self):
    from seer_jax.data import preprocessing

    self.preprocessing = preprocessing.Preprocessing()

  def apply(self, variables, x_NxHxWx3):
    """As an encoder does."""
    del variables
    return {"avgpool": x_NxHxWx3[:, :4, :4].reshape(len(x_NxHxWx3), -1)}


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--data", type=pathlib.Path, default=PHOTOS)
  parser.add_argument("--times", type=int, default=4)
  parser.add_argument("--small", action="store_true")
  options = parser.parse_args()

  import jax
  import jax.numpy as jnp

  from seer_jax.apps.embedding import embed, embed_folder
  from seer_jax.data import crops, sources
  from seer_jax.models import architectures, encoder

  base = pathlib.Path(tempfile.mkdtemp())
  (base / "photos").mkdir()
  load(options.data, options.times, base / "photos")
  source = sources.Folder(base / "photos")
  networks = {}
  for name, shape in TRUNKS.items():
    if isinstance(shape, str) and options.small:
      continue
    if isinstance(shape, str):
      architecture = architectures.find(shape)
    else:
      architecture = architectures.from_numbers(
        *shape, se_ratio=0.25, stem_width=8, stem_stride=4, strides=(4,)
      )
    network = encoder.Encoder(architecture)
    variables = jax.jit(network.init)(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    networks[name] = embed.Weights(name, network, dict(variables), name)
  networks[NONE] = embed.Weights(NONE, Nothing(), {}, NONE)
  view = next(iter(networks.values())).encoder.preprocessing.view
  threads = os.cpu_count()

  def decode():
    def one(number):
      view(crops.decode(source[number]["image"], 2**28))

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      list(pool.map(one, range(len(source))))

  def run(name, number):
    folder = embed_folder.EmbeddedFolder(
      source, {}, networks[name], base / f"out-{number}-{name}", embed.Options()
    )
    folder.run()

  jax.config.update("jax_compilation_cache_dir", str(base / "cache"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  for name in networks:
    run(name, "warm")
  seconds = {"decode": [], **{name: [] for name in networks}}
  for number in range(options.rounds):
    began = time.perf_counter()
    decode()
    seconds["decode"].append(time.perf_counter() - began)
    for name in networks:
      began = time.perf_counter()
      run(name, number)
      seconds[name].append(time.perf_counter() - began)
  rates = {
    name: len(source) / statistics.median(each)
    for name, each in seconds.items()
  }
  shares = {
    name: statistics.median(
      alone / whole
      for alone, whole in zip(seconds["decode"], seconds[name], strict=True)
    )
    for name in networks
  }
  print(f"{len(source)} images, {threads} threads, {options.rounds} rounds")
  for name, rate in rates.items():
    share = f"{shares[name]:8.1%}" if name in shares else ""
    print(f"{name:16} {rate:8.1f} images/s {share}")
  print(json.dumps({"images_per_second": rates, "share": shares}))


if __name__ == "__main__":
  main()
