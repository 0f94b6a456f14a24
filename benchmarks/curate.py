"""`seer-jax curate` of a million features; its k-means beside scikit-learn's.

    python benchmarks/curate.py [--rows=1000000] [--width=256] \
      [--clusters=10000,1000,100]

The features are made up: as many concepts as clusters of the first level,
long-tailed, with noise; one in fifty is a near copy. Prints seconds and the
most memory of the whole command, which keeps a tenth, and how even concepts are
before and after; then the inertia of k-means of 50,000 of the features into 500
clusters, the mean over three seeds, beside scikit-learn's KMeans; and one line
of JSON. Needs scikit-learn, and 2 GB of disk.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_COPIES = 50
_SAMPLE, _SAMPLE_CLUSTERS, _SEEDS = 50_000, 500, 3


def make(path: pathlib.Path, rows: int, width: int, concepts: int):
  """Writes the features; returns the concept of each."""
  rng = np.random.default_rng(0)
  centre_CxD = rng.standard_normal((concepts, width), np.float32)
  share_C = 1 / np.arange(1, concepts + 1) ** 0.7
  concept_N = rng.choice(concepts, rows, p=share_C / share_C.sum())
  x_NxD = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
  for first in range(0, rows, 2**16):
    noise = rng.standard_normal((min(2**16, rows - first), width), np.float32)
    x_NxD[first : first + 2**16] = centre_CxD[concept_N[first : first + 2**16]]
    x_NxD[first : first + 2**16] += noise
  copies = rows // _COPIES
  noise = rng.standard_normal((copies, width), np.float32)
  x_NxD[-copies:] = x_NxD[:copies] + 0.1 * noise
  concept_N[-copies:] = concept_N[:copies]
  return concept_N


def inertias(path: pathlib.Path) -> tuple[list[float], list[float]]:
  """(ours, scikit-learn's) of a sample, by seed."""
  from sklearn.cluster import KMeans

  from seer_jax.apps.curation import grid, lloyd
  from seer_jax.runtime import mesh as mesh_lib

  # Both compare directions: theirs of unit vectors.
  x_NxD = np.load(path, mmap_mode="r")[:_SAMPLE]
  unit_NxD = x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)
  points, ours, theirs = grid.Points(grid.rounded(x_NxD)), [], []
  for seed in range(_SEEDS):
    found = lloyd.fit(points, _SAMPLE_CLUSTERS, mesh_lib.make(1), seed=seed)
    # To the means of the clusters, which are scikit-learn's centres.
    order = np.argsort(found.cluster_N, kind="stable")
    ends = np.cumsum(np.bincount(found.cluster_N))[:-1]
    ours.append(
      float(
        sum(len(x) * x.var(0).sum() for x in np.split(unit_NxD[order], ends))
      )
    )
    peer = KMeans(_SAMPLE_CLUSTERS, n_init=1, random_state=seed)
    theirs.append(float(peer.fit(unit_NxD).inertia_))
  return ours, theirs


def main() -> None:
  """Prints the table and the line."""
  sys.path.insert(0, str(_ROOT))
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--clusters", default="10000,1000,100")
  options = parser.parse_args()
  from seer_jax.apps.curation import summary

  figures = {}
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder)
    concepts = int(options.clusters.split(",")[0])
    concept_N = make(base / "x.npy", options.rows, options.width, concepts)
    command = (
      *(sys.executable, "-m", "seer_jax", "curate", base / "x.npy"),
      *("--keep=0.1", f"--clusters={options.clusters}"),
      f"--out={base / 'list.txt'}",
    )
    began = time.monotonic()
    cache = {"XDG_CACHE_HOME": str(base / "cache")}
    subprocess.run(
      list(map(str, command)), cwd=_ROOT, check=True, env=os.environ | cache
    )
    figures["seconds"] = time.monotonic() - began
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    figures["gib"] = most / 2**20
    kept = np.loadtxt(base / "list.txt", int)
    figures["entropy"] = [
      summary.evenness(np.bincount(each, minlength=concepts))
      for each in (concept_N, concept_N[kept])
    ]
    figures["inertia"], figures["theirs"] = inertias(base / "x.npy")
  ours, theirs = np.mean(figures["inertia"]), np.mean(figures["theirs"])
  figures["ratio"] = ours / theirs
  before, after = figures["entropy"]
  print(
    f"{figures['seconds'] / 60:.1f} minutes, {figures['gib']:.2f} GiB; entropy"
    f" of concepts {before:.3f} before, {after:.3f} after"
  )
  print(
    f"inertia {ours:.0f}, scikit-learn {theirs:.0f}: {figures['ratio']:.4f}"
  )
  print(json.dumps(figures))


if __name__ == "__main__":
  main()
