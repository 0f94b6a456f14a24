"""What search, clusters and few labels are worth on a labelled folder.

    python benchmarks/collection.py runs/cifar10 ~/cifar10/test [--draws=5]

Embeddings of the weights, beside those of the same network untrained, raw
pixels, and the 64 bits of a perceptual hash, all by the code behind `seer-jax
search`, `cluster` and `label`:

* precision@10: share of an image's ten nearest that have its label;
* purity and NMI of spherical k-means, with as many clusters as labels, and ten
  times as many;
* from 5 and 20 examples a category: accuracy on the rest, expected calibration
  error, how many images are accepted at a wanted precision of 95 %, and how
  precise these are;
* accuracy after 50 more labels: of images that `--ask` names, and of random
  ones;
* a filter: the last category is one image in a hundred, to be found by 20
  examples of it and 20 of everything else.

Prints a table, and one line of JSON.
"""

import argparse
import json

import numpy as np

from seer_jax.apps import subjects, tables
from seer_jax.apps.collection import cluster, examples, label, search
from seer_jax.apps.embedding import embed, perceptual_hash
from seer_jax.data import crops, sources


def measured(x_NxD, labels_N, draws):
  """Figures by name; of several draws mean and standard deviation."""
  found, classes = {}, int(labels_N.max()) + 1
  index = search.Index(x_NxD)
  _, near_NxK = index.search(x_NxD, 11)
  own = near_NxK == np.arange(len(x_NxD))[:, None]
  # An image that is equal to ten others is not among its own neighbours.
  own[~own.any(1), -1] = True
  right = (labels_N[near_NxK] == labels_N[:, None]) & ~own
  found["precision@10"] = right.sum(1).mean() / 10
  names_N = labels_N.astype(str).astype(object)
  for k in (classes, 10 * classes):
    (level,) = cluster.cluster(x_NxD, k)
    agreement = cluster.agreement(level.cluster_N, names_N)
    found[f"purity, {k} clusters"] = agreement.purity
    found[f"NMI, {k} clusters"] = agreement.nmi
  several = [_labelled(x_NxD, labels_N, draw) for draw in range(draws)]
  for name in several[0]:
    values = [each[name] for each in several]
    found[name] = float(np.nanmean(values))
    found[f"{name}/std"] = float(np.nanstd(values, ddof=min(1, draws - 1)))
  return found


def _drawn(labels_N, count, rng):
  return np.concatenate(
    [
      rng.permutation(np.flatnonzero(labels_N == one))[:count]
      for one in np.unique(labels_N)
    ]
  )


def _predicted(x_NxD, labels_N, rows, shares_L=None):
  names = tuple(map(str, range(labels_N.max() + 1)))
  known = examples.Examples(x_NxD[rows], labels_N[rows], names, rows)
  return label.predict(known, x_NxD, 0.95, shares_L)


def _scores(predictions, labels_N, rest):
  right = predictions.category[rest] == labels_N[rest]
  accepted = predictions.accepted[rest]
  return {
    "accuracy": right.mean(),
    "calibration error": label.calibration_error(
      predictions.probability_NxL[rest], labels_N[rest]
    ),
    "coverage at 95 %": accepted.mean(),
    "precision there": right[accepted].mean() if accepted.any() else np.nan,
  }


def _labelled(x_NxD, labels_N, draw):
  rng, found = np.random.default_rng(draw), {}
  every = np.arange(len(labels_N))
  for count in (5, 20):
    rows = _drawn(labels_N, count, rng)
    predictions = _predicted(x_NxD, labels_N, rows)
    rest = np.setdiff1d(every, rows)
    for name, value in _scores(predictions, labels_N, rest).items():
      found[f"{count} examples: {name}"] = value
    if count == 5:
      asked = label.ask(predictions, x_NxD, rows, 50)
      others = rng.choice(rest, 50, replace=False)
      for how, more in (("asked for", asked), ("random", others)):
        now = np.concatenate([rows, more])
        again = _predicted(x_NxD, labels_N, now).category
        left = np.setdiff1d(every, now)
        found[f"5 examples and 50 {how}: accuracy"] = np.mean(
          again[left] == labels_N[left]
        )
  return found | _filter(x_NxD, labels_N, rng)


def _filter(x_NxD, labels_N, rng):
  """0 is everything else, 1 what is sought."""
  last = labels_N.max()
  sought = rng.permutation(np.flatnonzero(labels_N == last))
  others = rng.permutation(np.flatnonzero(labels_N != last))
  rare = len(others) // 99
  keep = np.concatenate([sought[: 20 + rare], others])
  binary = np.concatenate([np.ones(20 + rare), np.zeros(len(others))])
  binary = binary.astype(int)
  rows = np.concatenate([np.arange(20), 20 + rare + np.arange(20)])
  shares_L = np.array([0.99, 0.01])
  predictions = _predicted(x_NxD[keep], binary, rows, shares_L)
  rest = np.setdiff1d(np.arange(len(keep)), rows)
  is_it = binary[rest] == 1
  score = predictions.probability_NxL[rest, 1]
  flagged = (score > 0.5) & predictions.accepted[rest]
  # A user who looks through the most likely 500.
  looked_at = np.argsort(-score)[:500]
  top = np.argsort(-score)[: is_it.sum()]
  return {
    "filter: precision": is_it[flagged].mean() if flagged.any() else np.nan,
    "filter: recall": flagged[is_it].mean(),
    "filter: precision of as many as there are": is_it[top].mean(),
    "filter: recall of the first 500": is_it[looked_at].sum() / is_it.sum(),
  }


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("weights")
  parser.add_argument("folder")
  parser.add_argument("--draws", type=int, default=5)
  options = parser.parse_args()

  source = sources.Folder(options.folder)
  labels_N = np.array([source.label_of(i) for i in range(len(source))])
  opened = subjects.opened(
    [options.weights, subjects.UNTRAINED, subjects.PIXELS], seed=0
  )
  vectors = {
    each.name: embed.embed(source, (each.encoder, each.variables))
    for each in opened
  }
  hashes = [
    perceptual_hash.perceptual_hash(crops.decode(source[i]["image"], 2**28))
    for i in range(len(source))
  ]
  vectors["hash"] = np.array(
    [[2.0 * (h >> bit & 1) - 1 for bit in range(64)] for h in hashes],
    np.float32,
  )
  table = {}
  for name, x_NxD in vectors.items():
    for figure, value in measured(x_NxD, labels_N, options.draws).items():
      table.setdefault(figure, {})[name] = float(value)
  print(tables.markdown(tables.cells(table, list(vectors))))
  print(json.dumps(table))


if __name__ == "__main__":
  main()
