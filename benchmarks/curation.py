"""What curation is worth: images with a long tail, and a half of them.

    python benchmarks/curation.py --data=~/cifar10 [--steps=600]
    python benchmarks/curation.py --digits [--steps=600]

The pool has 12,408 of CIFAR-10's training images: of the rarest class a
hundredth of the most frequent one's 5,000 (`learning.long_tail`). A network
trained on the pool without labels embeds it, `seer-jax curate` keeps half, and
new networks train for equal steps on the pool, on that half, and on a half that
is balanced by its labels, as far as the pool allows: what a perfect curation
would keep. Labels are used for that row, and to measure.

Prints the entropy of the classes of each, over that of equal shares; kNN and
logistic regression on the balanced test set by `learning.py`, three seeds; and
one line of JSON. `--only-lists` trains no network but the first. Everything is
kept in `--out`: the same command resumes.

`--digits` does the same with scikit-learn's handwritten digits and good
features: those of `configs/digits.py`, trained on all 1,297 of them.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_TAIL = 100
# Steps of the network that embeds the pool.
_FEATURES = 1000


def entropy(names: list[str]) -> float:
  """Entropy of the classes of paths CLASS/NAME, over that of ten equal ones."""
  from seer_jax.apps.curation import summary

  counts = collections.Counter(name.split("/")[-2] for name in names)
  return summary.evenness(np.array(list(counts.values())))


def balanced(names: list[str], keep: int) -> list[str]:
  """The half with the most even classes that there is."""
  from seer_jax.apps.curation import sampling

  kinds = sorted({name.split("/")[-2] for name in names})
  kind_N = np.array([kinds.index(name.split("/")[-2]) for name in names])
  return [names[row] for row in sampling.sample([kind_N], keep, seed=0)]


def digits(options: argparse.Namespace) -> None:
  """The experiment with digits, in this process."""
  import seer_jax
  from configs import digits as recipe
  from seer_jax.apps.curation import curate, sampling, summary
  from seer_jax.data import sources
  from seer_jax.evals import features, knn
  from seer_jax.runtime import mesh as mesh_lib
  from seer_jax.training import run

  train, test = (
    sources.open_source({"kind": "digits", "split": split})
    for split in ("train", "test")
  )
  labels = [
    np.array([source.label_of(row) for row in range(len(source))])
    for source in (train, test)
  ]

  def trained(name, seed, steps, rows=None):
    config, out = recipe.get_config(), options.out / name
    if rows is not None:
      (options.out / f"{name}.txt").write_text(
        "".join(f"{train.id_of(row)}\n" for row in rows)
      )
      config.data.train.only = str(options.out / f"{name}.txt")
    config.seed, config.steps, config.eval.every = seed, steps, 0
    config.report.images = 0
    run.run(config, out, say=lambda line: None)
    return [seer_jax.embed(source, out) for source in (train, test)]

  options.out.mkdir(parents=True, exist_ok=True)
  x_NxD, _ = trained("features", 0, 1400)
  least = np.bincount(labels[0]).min()
  pool = np.concatenate(
    [
      np.flatnonzero(labels[0] == kind)[: round(least * _TAIL ** (-kind / 9))]
      for kind in range(10)
    ]
  )
  kind_N, keep = labels[0][pool], len(pool) // 2
  found = curate.curate(
    curate.Features(
      (len(pool), x_NxD.shape[1]),
      lambda: iter([x_NxD[pool]]),
      lambda rows: [str(row) for row in rows],
      f"digits {len(pool)}",
    ),
    keep,
    curate.Options(),
    mesh_lib.make(1),
  )
  best = pool[sampling.sample([kind_N], keep, seed=0)]
  chosen = {"pool": pool, "curated": pool[found.kept], "balanced": best}
  table = {}
  for name, rows in chosen.items():
    counts = np.bincount(labels[0][rows], minlength=10)
    figures = {"images": len(rows), "entropy": summary.evenness(counts)}
    print(f"{name}: {figures}, {counts.tolist()}", flush=True)
    figures["knn"], table[name] = [], figures
    if options.only_lists:
      continue
    for seed in map(int, options.seeds.split(",")):
      sets = trained(f"{name}-{seed}", seed, options.steps, rows)
      bank, query = (
        features.Features(*each) for each in zip(sets, labels, strict=True)
      )
      found = knn.accuracies(bank, query, (20,), (0.1,))
      figures["knn"].append(found[20, 0.1][0])
    print(f"  kNN {figures['knn']}", flush=True)
  print(json.dumps(table))


def main() -> None:
  """Prints the table and the line."""
  sys.path.insert(0, str(_ROOT))
  from benchmarks import learning

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--data", type=pathlib.Path, help="folder of CIFAR-10")
  what.add_argument("--digits", action="store_true")
  parser.add_argument("--out", type=pathlib.Path, default="runs/curation")
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--curate", default="--copies=1", help="options")
  parser.add_argument("--only-lists", action="store_true")
  options = parser.parse_args()
  if options.digits:
    digits(options)
    return
  data = options.data.expanduser().resolve()
  out = options.out.expanduser().resolve()
  pool = learning.long_tail(data, _TAIL, out)
  names = pool.read_text().splitlines()
  lists = {"pool": pool}
  for name in ("curated", "balanced"):
    lists[name] = out / f"{name}.txt"
  if not lists["curated"].exists():
    _curate(options, data, out, pool, lists["curated"])
  keep = len(lists["curated"].read_text().splitlines())
  lists["balanced"].write_text("\n".join(balanced(names, keep)) + "\n")
  table = {}
  for name, path in lists.items():
    chosen = path.read_text().splitlines()
    print(f"{name}: {len(chosen)} images, entropy {entropy(chosen):.3f}")
    table[name] = {"images": len(chosen), "entropy": entropy(chosen)}
  print(json.dumps(table))
  if options.only_lists:
    return
  for name, path in lists.items():
    images = f"--tail={_TAIL}" if name == "pool" else f"--only={path}"
    _learn(data, out, images, f"--steps={options.steps}", options.seeds)


def _curate(options, data, out, pool, path):
  """Trains on the pool, embeds it, and keeps half."""
  _learn(data, out, f"--tail={_TAIL}", f"--steps={_FEATURES}", "0")
  weights = out / f"recipe-tail{_TAIL}-seed0-{_FEATURES}"
  embedded = out / "pool.seer"
  for command in (
    ("embed", data / "train", f"--only={pool}", f"--weights={weights}",
     f"--out={embedded}", "--batch=128"),
    ("curate", embedded, "--keep=0.5", f"--out={path}",
     *options.curate.split()),
  ):  # fmt: skip
    command = [sys.executable, "-m", "seer_jax", *map(str, command)]
    subprocess.run(command, cwd=_ROOT, check=True)


def _learn(data, out, images, steps, seeds):
  command = (
    *(sys.executable, _ROOT / "benchmarks" / "learning.py", f"--data={data}"),
    *(f"--out={out}", f"--seeds={seeds}", images, steps),
  )
  subprocess.run(list(map(str, command)), cwd=_ROOT, check=True)


if __name__ == "__main__":
  main()
