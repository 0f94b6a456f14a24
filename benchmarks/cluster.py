"""Spherical k-means of 100,000 vectors into 1,000 clusters, beside faiss's.

    python benchmarks/cluster.py [--rows=100000] [--width=256] [--k=1000]

The vectors are made up: as many centres as clusters, long-tailed, with noise.
Prints seconds, the mean cosine to the centre, and the sizes of clusters; and
one line of JSON. faiss does as many iterations over all vectors as ours does at
most.
"""

import argparse
import json
import time

ITERATIONS = 25


def make(rows: int, width: int, centres: int):
  """Vectors around centres, of which some are far more frequent."""
  import numpy as np

  rng = np.random.default_rng(0)
  centre_CxD = rng.standard_normal((centres, width), np.float32)
  share_C = 1 / np.arange(1, centres + 1) ** 0.7
  chosen = rng.choice(centres, rows, p=share_C / share_C.sum())
  noise = rng.standard_normal((rows, width), np.float32)
  return centre_CxD[chosen] + noise


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=100_000)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--k", type=int, default=1000)
  options = parser.parse_args()

  import numpy as np

  from seer_jax.apps.collection import kmeans

  x_NxD = make(options.rows, options.width, options.k)

  def ours(balanced):
    found = kmeans.spherical_kmeans(x_NxD, options.k, balanced=balanced)
    return found.similarity_N, found.cluster_N

  def faiss_kmeans():
    import faiss

    unit_NxD = x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)
    found = faiss.Kmeans(
      options.width,
      options.k,
      niter=ITERATIONS,
      spherical=True,
      max_points_per_centroid=options.rows,
    )
    found.train(unit_NxD)
    distance_Nx1, cluster_Nx1 = found.index.search(unit_NxD, 1)
    return distance_Nx1[:, 0], cluster_Nx1[:, 0]

  table = {}
  for name, method in {
    "seer_jax": lambda: ours(False),
    "seer_jax, balanced": lambda: ours(True),
    "faiss": faiss_kmeans,
  }.items():
    began = time.perf_counter()
    try:
      similarity_N, cluster_N = method()
    except ImportError:
      print("faiss is not installed: pip install 'seer_jax[faiss]'")
      continue
    seconds = time.perf_counter() - began
    sizes = np.bincount(cluster_N, minlength=options.k)
    table[name] = seconds, float(similarity_N.mean())
    print(
      f"{name:20} {seconds:7.1f} s  mean cosine {table[name][1]:.4f}  sizes"
      f" {sizes.min()} to {sizes.max()}"
    )
  print(json.dumps(table))


if __name__ == "__main__":
  main()
