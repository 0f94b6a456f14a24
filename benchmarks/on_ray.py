"""What Ray costs, and what a lost machine costs: pack and embed on loopback.

    python benchmarks/on_ray.py --data=~/cifar10/train --weights=runs/cifar10

A real Ray cluster of a head without CPUs and two workers of one CPU each packs
and embeds the images of a folder twice (`--copies`; 100,000 of CIFAR-10). In
the middle, all processes of one worker are killed with SIGKILL; the files must
be those of `--on local`, byte for byte. Then the two pack in turns,
undisturbed: images per second of the whole command, beside two processes here,
as the images are and shrunk to 24 pixels, which decodes and encodes them.
`--only-rates` leaves out the rest.

Prints a table and one line of JSON. Needs `pip install -e '.[cluster]'`, Linux,
and 1 GB of disk.
"""

import argparse
import filecmp
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).parents[1]
_ROUNDS = 3


def linked(data: pathlib.Path, target: pathlib.Path, copies: int) -> int:
  """Links the images of a folder several times; returns how many links."""
  count = 0
  for copy in range(copies):
    for path in data.rglob("*.jpg"):
      link = target / str(copy) / path.relative_to(data)
      link.parent.mkdir(parents=True, exist_ok=True)
      os.link(path, link)
      count += 1
  return count


def start(address: str, arguments: list) -> subprocess.Popen:
  """`seer-jax` in a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "seer_jax", *map(str, arguments)],
    cwd=_ROOT,
    env=os.environ | {"RAY_ADDRESS": address},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def timed(address: str, arguments: list) -> float:
  """Seconds of a command, which must succeed."""
  began = time.monotonic()
  if start(address, arguments).wait():
    raise SystemExit(f"failed: seer-jax {' '.join(map(str, arguments))}")
  return time.monotonic() - began


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two folders have the same files, byte for byte."""
  names = [
    sorted(
      str(path.relative_to(folder))
      for path in folder.rglob("*")
      if path.is_file() and path.name != "lock"
    )
    for folder in (one, other)
  ]
  equal, different, failed = filecmp.cmpfiles(
    one, other, names[0], shallow=False
  )
  return names[0] == names[1] and bool(equal) and not different + failed


def with_a_loss(address, machine, command, here, there, written, shards):
  """Runs both, one worker killed in the middle: (seconds, seconds, equal)."""
  local = timed("", [*command, here, "--on=local"])
  began = time.monotonic()
  running = start(address, [*command, there, "--on=ray"])
  while len(list(there.glob(written))) < shards // 2:
    if running.poll() is not None:
      raise SystemExit("the command ended before half of it was done")
    time.sleep(0.05)
  machine.kill()
  if running.wait():
    raise SystemExit(f"failed after the loss: {command[0]}")
  return local, time.monotonic() - began, same(here, there)


def losses(base, address, machines, add, images, weights, count) -> dict:
  """Packs and embeds, each here and on a cluster that loses a worker."""
  figures = {}
  for command, written, shards in (
    (
      ["pack", images, "--workers=2", f"--shard={-(-count // 64)}"],
      "parts/[0-9]*.json",
      64,
    ),
    (
      ["embed", images, f"--weights={weights}", "--batch=128", "--out"],
      "embeddings/images-*",
      -(-count // 2048),
    ),
  ):
    name = command[0]
    here, there = base / f"{name}-local", base / f"{name}-ray"
    local, on_ray, equal = with_a_loss(
      address, machines.pop(), command, here, there, written, shards
    )
    machines.append(add())
    figures[name] = {"local": local, "ray, one lost": on_ray, "same": equal}
    print(
      f"{name}: local {local:.1f} s; Ray, one of two workers killed"
      f" {on_ray:.1f} s; same bytes: {equal}",
      flush=True,
    )
  return figures


def rates(base, address, images, count) -> dict:
  """Images per second of packing, here and on the cluster in turns."""
  figures = {}
  for name, more in (("as they are", []), ("shrunk", ["--side=24"])):
    found = {"local": [], "ray": []}
    for _ in range(_ROUNDS):
      for where in found:
        out = base / "out"
        command = ["pack", images, out, "--workers=2", f"--on={where}", *more]
        found[where].append(count / timed(address, command))
        shutil.rmtree(out)
    local, ray = (statistics.median(found[where]) for where in found)
    figures[name] = found | {"ratio": ray / local}
    print(
      f"pack, {name}: local {local:,.0f} images/s, Ray {ray:,.0f} images/s:"
      f" {ray / local:.2f}",
      flush=True,
    )
  return figures


def main() -> None:
  """Prints the table and the line."""
  sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]
  import ray_machines

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--weights", type=pathlib.Path, help="to embed with")
  parser.add_argument("--copies", type=int, default=2, help="of the folder")
  parser.add_argument("--only-rates", action="store_true")
  options = parser.parse_args()
  if not options.weights and not options.only_rates:
    parser.error("give --weights, or --only-rates")
  base = pathlib.Path(tempfile.mkdtemp(prefix="on_ray"))
  images = base / "images"
  # Hard links need the same file system.
  shutil.copytree(options.data.expanduser(), base / "data")
  count = linked(base / "data", images, options.copies)
  figures = {"images": count}
  with ray_machines.cluster(str(base / "ray")) as (address, machines, add):
    if not options.only_rates:
      weights = options.weights.expanduser().resolve()
      figures |= losses(base, address, machines, add, images, weights, count)
    figures["rates"] = rates(base, address, images, count)
  print(json.dumps(figures))
  shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
  main()
