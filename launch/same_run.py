"""python launch/same_run.py WORKDIR WORKDIR...: are these the same run?

Compares the newest states bit for bit, and all metrics but for clock readings.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import checkpoint

_CLOCKED = (
  "images_per_second",
  "data_wait",
  "eval_seconds",
  "compile_seconds",
  "seconds",
)


def digest(workdir: pathlib.Path) -> str:
  """SHA-256 of the newest state."""
  kept = checkpoint.Checkpoints(workdir / "checkpoints")
  total = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(kept.read()):
    total.update(mesh_lib.path_of(path).encode())
    total.update(np.asarray(leaf).tobytes())
  kept.close()
  return total.hexdigest()


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Lines of the metrics file, without what depends on the clock."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in _CLOCKED}
    for line in lines
  ]


def main() -> int:
  """0 if all are the same run as the first."""
  first, *others = map(pathlib.Path, sys.argv[1:])
  wanted, lines = digest(first), metrics(first)
  print(f"{first.name}: {wanted[:16]}, {len(lines)} lines")
  failed = 0
  for other in others:
    same = digest(other) == wanted, metrics(other) == lines
    print(
      f"{other.name}: state identical {same[0]}, metrics identical {same[1]}"
    )
    failed += same != (True, True)
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
