"""What a short training learns: one change of the recipe at a time.

    python benchmarks/learning.py --data=~/cifar10 --rows=recipe,koleo \
      --minutes=3
    python benchmarks/learning.py --data=~/cifar10 --rows=recipe --epochs=10
    python benchmarks/learning.py --data=~/cifar10 \
      --rows=recipe,lightly:recipe --minutes=10

The protocol: CIFAR-10 as a folder (train/CLASS/*.jpg, test/CLASS/*.jpg), a
fixed time or number of epochs, the last state, three seeds. Then kNN and
logistic regression ("linear") of frozen, clean features, from the labels of all
50,000 training images, on the 10,000 of the test set. `--tail=100` trains on a
long tail: of the rarest class a hundredth of the most frequent one's images;
the labels that kNN and logistic regression learn from stay balanced.
`--only=FILE` trains on the images of a list instead.

A row is a change of `configs/cifar10.py` (`--list`), all else equal. With
`--minutes` a short trial measures the row's images a second first, so that
changes that cost time see fewer images: rows compare at equal time of training,
compilation and evaluation left out. `lightly:ROW` is the peer: lightly's SwAV
with the recipe of its own benchmark and the trunk and crops of a row of ours,
in PyTorch, for the same time (`published_lightly.py`).

Everything is kept in `--out`: the same command resumes, and another one with
more rows or seeds adds to it. `taskset -c 0` keeps it on one core. Prints a
table and one line of JSON.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_TRIAL_STEPS = 60
PEER = "lightly:"


class Run(NamedTuple):
  """One training of the table.

  Attributes:
    row: name of the change.
    seed: of everything random.
    tail: how many times as many images the most frequent class has as the
      rarest; 1 for all images.
    steps: how many; for the peer, seconds.
    only: path of a list of the images to train on, instead of a tail.
  """

  row: str
  seed: int
  tail: int
  steps: int
  only: str = ""

  @property
  def name(self) -> str:
    """Of its folder."""
    row = self.row.replace(":", "-")
    images = trained_on(self.tail, self.only)
    images = images if self.only else f"tail{images}"
    return f"{row}-{images}-seed{self.seed}-{self.steps}"

  @property
  def is_peer(self) -> bool:
    """Whether lightly trains."""
    return self.row.startswith(PEER)

  @property
  def ours(self) -> str:
    """The row itself; of the peer, the one whose trunk and crops it has."""
    return self.row.removeprefix(PEER) if self.is_peer else self.row


def trained_on(tail: int, only: str) -> str:
  """The list of the images of a run, by name, or their tail."""
  return pathlib.Path(only).stem if only else str(tail)


def config_of(
  row: str, data: pathlib.Path, tail: int, out: pathlib.Path, only: str = ""
) -> Any:
  """The config of a row, its length still open.

  Raises:
    KeyError: there is no such row.
  """
  from benchmarks import learning_changes
  from configs import cifar10
  from seer_jax.config import keys

  config = cifar10.get_config()
  config.data.train.path = config.data.test.path = str(data)
  if only:
    config.data.train.only = only
  elif tail > 1:
    config.data.train.only = str(long_tail(data, tail, out))
  # Measured afterwards, on all images.
  config.eval.every = 0
  config.eval.evals = ()
  config.report.images = 0
  for key, value in learning_changes.CHANGES[row].config.items():
    keys.put(config, key, value)
  return config


def long_tail(data: pathlib.Path, tail: int, out: pathlib.Path) -> pathlib.Path:
  """A list of images whose classes shrink geometrically, in rising order.

  Class c of C keeps tail^(-c / (C - 1)) of its images, the first by name
  (as of CIFAR-10-LT: Cao et al. 2019).
  """
  path = out / f"tail{tail}.txt"
  if not path.exists():
    folders = sorted(each for each in (data / "train").iterdir())
    lines = []
    for index, folder in enumerate(folders):
      files = sorted(folder.iterdir())
      kept = round(len(files) * tail ** (-index / (len(folders) - 1)))
      lines += [f"{folder.name}/{file.name}" for file in files[:kept]]
    out.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
  return path


def train(row: str, config: Any, workdir: pathlib.Path) -> dict[str, float]:
  """Trains in this process, or goes on; what it cost."""
  import jax
  import jax.numpy as jnp

  from benchmarks import learning_changes
  from seer_jax.commands import process
  from seer_jax.data import pipeline
  from seer_jax.models import cpu_kernels
  from seer_jax.planning import operations
  from seer_jax.runtime import mesh as mesh_lib
  from seer_jax.training import optim, run, step

  process.keep_compiled()

  def create(config):
    dtype = jnp.dtype(mesh_lib.DTYPES[config.precision])
    return learning_changes.CHANGES[row].task(config, dtype)

  run.run(config, workdir, create, say=lambda line: None)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  trained = [line for line in map(json.loads, lines) if "seconds" in line]
  first, last = trained[0], trained[-1]
  # The first line's time is mostly compilation.
  timed = max(1, last["step"] - first["step"]) / config.steps
  source, mesh, _, _ = run.begin(config, workdir)
  with jax.set_mesh(mesh), cpu_kernels.portable():
    task = create(config)
    tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
    programs = step.build(task, tx, config, mesh)
    batch = pipeline.abstract_batch(config, mesh)
    flops = operations.flops(
      programs.step.trace(programs.abstract, batch).jaxpr
    )
  return {
    "steps": config.steps,
    "images": config.steps * config.batch_size,
    "epochs": config.steps * config.batch_size / len(source),
    "flops": flops * config.steps,
    "seconds": (last["seconds"] - first["seconds"]) / timed,
    "images_per_second": float(
      np.median([line["images_per_second"] for line in trained[1:] or trained])
    ),
    "loss_over_lnk": last["loss_over_lnk"],
  }


def train_peer(config: Any, run: Run, labels: int) -> dict[str, float]:
  """lightly's SwAV for as long; what it cost, and what its features are worth.

  Both sides of the comparison are measured by the same functions.
  """
  import published_lightly

  from seer_jax.evals import features, knn, low_shot

  cost, (bank, query) = published_lightly.train(config, run.steps, run.seed)
  bank, query = (features.Features(*each) for each in (bank, query))
  some = np.random.default_rng(0).permutation(len(bank.labels_N))[:labels]
  bank = bank.only(np.sort(some))
  found = knn.accuracies(bank, query, (20, 200), (0.1,))
  fit = low_shot.logistic(bank.features_NxD, bank.labels_N)
  right = fit.predict(query.features_NxD) == query.labels_N
  return cost | {
    "knn/k=20": found[20, 0.1][0],
    "knn/k=200": found[200, 0.1][0],
    "linear": float(right.mean()),
  }


def evaluate(
  workdir: pathlib.Path, data: pathlib.Path, labels: int
) -> dict[str, float]:
  """kNN and logistic regression of a finished run, by `seer-jax eval`."""
  out = workdir / "evals"
  command = (
    *("-m", "seer_jax", "eval", str(workdir), "--evals=knn,logistic"),
    *(f"--train={data}/train", f"--test={data}/test", f"--out={out}"),
    *("--config.eval.seeds=1", f"--config.eval.max_images={labels}"),
  )
  _python(*command, log=workdir / "eval.log")
  figures = {}
  for line in (out / "evals.jsonl").read_text().splitlines():
    figures |= json.loads(line)["figures"]
  return {
    "knn/k=20": figures["knn/k=20"],
    "knn/k=200": figures["knn/k=200"],
    "linear": figures["logistic/100%"],
  }


def _python(*arguments, log):
  """A process of its own: memory and compiled programs end with it."""
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(
      filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))
    )
  }
  environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with log.open("a") as file:
    done = subprocess.run(
      [sys.executable, *arguments],
      cwd=_ROOT,
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
    )
  if done.returncode:
    raise SystemExit(f"a run failed: {' '.join(arguments)}; see {log}")


def work(options: argparse.Namespace) -> None:
  """One run, in the process that `measure` starts for it."""
  run = Run(*json.loads(options.worker))
  workdir = options.out / run.name
  config = config_of(run.ours, options.data, run.tail, options.out, run.only)
  config.seed = run.seed
  if run.is_peer:
    found = train_peer(config, run, options.labels)
  else:
    config.steps = run.steps
    found = train(run.row, config, workdir)
  (workdir / "cost.json").write_text(json.dumps(found))


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
  """Figures of a run: those that are there, or it trains and is evaluated."""
  workdir = options.out / run.name
  path = workdir / f"result-{options.labels}.json"
  if not path.exists():
    found = _cost(run, options)
    if not run.is_peer:
      found |= evaluate(workdir, options.data, options.labels)
    path.write_text(json.dumps(run._asdict() | found))
  # Results of before `--only` lack it.
  return Run._field_defaults | json.loads(path.read_text())


def _cost(run, options):
  workdir = options.out / run.name
  workdir.mkdir(parents=True, exist_ok=True)
  if not (workdir / "cost.json").exists():
    arguments = (
      *(f"--data={options.data}", f"--out={options.out}"),
      f"--labels={options.labels}",
    )
    worker = f"--worker={json.dumps(run)}"
    _python(__file__, *arguments, worker, log=workdir / "train.log")
  return json.loads((workdir / "cost.json").read_text())


def length(row: str, options: argparse.Namespace) -> int:
  """Steps of a row; of the peer, seconds."""
  if options.steps:
    return options.steps
  trial = Run(row, 0, 1, _TRIAL_STEPS)
  if trial.is_peer:
    return round(60 * options.minutes)
  config = config_of(row, options.data, 1, options.out)
  if options.minutes:
    rate = _cost(trial, options)["images_per_second"]
    return round(60 * options.minutes * rate / config.batch_size)
  if options.tail > 1:
    listed = long_tail(options.data, options.tail, options.out)
    images = len(listed.read_text().splitlines())
  else:
    images = sum(1 for _ in (options.data / "train").glob("*/*"))
  return round(options.epochs * images / config.batch_size)


def table(results: list[dict[str, Any]]) -> str:
  """Rows of Markdown: means over seeds, and their standard deviation."""
  head = (
    "row", "tail or list", "seeds", "kNN, k = 20", "k = 200", "linear",
    "epochs", "minutes", "TFLOP", "loss / ln K",
  )  # fmt: skip
  rows = [head, ("---", *("--:",) * (len(head) - 1))]
  groups: dict[tuple, list] = {}
  for each in results:
    images = trained_on(each["tail"], each["only"])
    groups.setdefault((each["row"], images), []).append(each)

  def mean(name, scale=1.0, digits=1, spread=True):
    values = [scale * each.get(name, float("nan")) for each in group]
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1 and spread:
      text += f" ± {np.std(values, ddof=1):.{digits}f}"
    return text

  for (row, images), group in groups.items():
    rows.append(
      (
        row,
        images,
        str(len(group)),
        *(mean(name, 100) for name in ("knn/k=20", "knn/k=200", "linear")),
        mean("epochs", spread=False),
        mean("seconds", 1 / 60, spread=False),
        mean("flops", 1e-12, 0, spread=False),
        mean("loss_over_lnk", 1, 3, spread=False),
      )
    )
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
  """Prints the table and the line."""
  from seer_jax.commands import process

  process.keep_memory()  # Before JAX is imported.
  from benchmarks import learning_changes

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=pathlib.Path, help="folder of CIFAR-10")
  parser.add_argument("--out", type=pathlib.Path, default="runs/learning")
  parser.add_argument("--rows", default="recipe", help="names, with commas")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--tail", type=int, default=1, help="100 for a long tail")
  long = parser.add_mutually_exclusive_group()
  long.add_argument("--epochs", type=float, default=10.0)
  long.add_argument("--minutes", type=float, help="of training, each row")
  long.add_argument("--steps", type=int, help="of each row")
  parser.add_argument("--only", default="", help="a list of the images")
  parser.add_argument(
    "--labels", type=int, default=50_000, help="images to learn from"
  )
  parser.add_argument("--list", action="store_true", help="show the rows")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.list:
    for name, change in learning_changes.CHANGES.items():
      print(f"{name:12} {change.why}")
    return
  if not options.data or not (options.data.expanduser() / "train").is_dir():
    parser.error(f"--data={options.data} has no folder train/")
  options.data = options.data.expanduser().resolve()
  options.out = options.out.expanduser().resolve()
  if options.only:
    options.only = str(pathlib.Path(options.only).expanduser().resolve())
  if options.worker:
    work(options)
    return
  rows = options.rows.split(",")
  for run in (Run(row, 0, 1, 0) for row in rows):
    if run.ours not in learning_changes.CHANGES:
      parser.error(f"no row {run.row!r}; --list shows them")
    if run.is_peer and not options.minutes:
      parser.error(f"{run.row} is measured for a time; give --minutes")
  results = []
  for row in rows:
    steps = length(row, options)
    for seed in map(int, options.seeds.split(",")):
      run = Run(row, seed, options.tail, steps, options.only)
      results.append(measure(run, options))
      print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
  print(table(results))
  print(json.dumps(results))


if __name__ == "__main__":
  sys.path.insert(0, str(_ROOT))  # For `configs`.
  main()
