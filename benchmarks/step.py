"""Training steps a second: ours beside PyTorch, and where a step's time goes.

    python benchmarks/step.py [--cases=400mf-32,400mf-96] [--rounds=5] \
      [--alone]

The step of SwAV without augmentation: uint8 crops to normalised floats, trunk,
head, codes, loss, gradients, LARC. Ours is the jitted step of
`training/step.py`; the peer is `published_swav.py`: timm's RegNet in PyTorch.

Each has a process of its own, so that memory is counted apart. On a CPU both
stay, and take turns of some steps each; run it on idle cores. On a GPU they
start anew for each turn, because each wants all the memory.

Prints a table and one line of JSON: images a second (median of the rounds),
the ratio of each round's pair (median), the most memory of each while it
trains, seconds to compile ours with an empty cache, and the share that ours
reaches of the measured rate of matrix products, counting each operation of the
model once.

`--alone` leaves the peer out. `--list` names the cases; "400mf-96+b64+k16384"
is one with 64 images and 16,384 prototypes.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

_ROOT = pathlib.Path(__file__).parents[1]


class Case(NamedTuple):
  """What is trained.

  Attributes:
    trunk: as timm calls it.
    sizes: of the crops: 2 large and 4 small.
    batch: images a step.
    prototypes: K.
    hidden: of the head.
    gpu: whether it is for GPUs.
    small: whether stem and first stage keep the pixels, as `config.auto` has
      it for such crops; published trunks halve them.
  """

  trunk: str
  sizes: tuple[int, int]
  batch: int
  prototypes: int = 3000
  hidden: int = 2048
  gpu: bool = False
  small: bool = False


_SEER = {"sizes": (224, 96), "prototypes": 16_000, "gpu": True}
CASES = {
  "400mf-32": Case("regnety_004", (32, 16), 32),
  "400mf-32-whole": Case("regnety_004", (32, 16), 32, small=True),
  "400mf-96": Case("regnety_004", (96, 48), 16),
  "400mf-224": Case("regnety_004", (224, 96), 4),
  "4gf-32": Case("regnety_040", (32, 16), 32),
  "4gf-96": Case("regnety_040", (96, 48), 8),
  "4gf-224": Case("regnety_040", (224, 96), 2),
  "gpu-4gf": Case("regnety_040", batch=256, **_SEER),
  "gpu-16gf": Case("regnety_160", batch=128, **_SEER),
  "gpu-32gf": Case("regnety_320", batch=96, hidden=4096, **_SEER),
  "gpu-64gf": Case("regnety_640", batch=64, hidden=4096, **_SEER),
  "gpu-128gf": Case("regnety_1280", batch=48, hidden=4096, **_SEER),
  "gpu-256gf": Case("regnety_2560", batch=48, hidden=4096, **_SEER),
  "tiny": Case("tiny", (16, 8), 4, 16, 32),  # To try this script: ours alone.
}


def case_of(name: str) -> Case:
  """A case, perhaps of another batch or number of prototypes."""
  base, *changes = name.split("+")
  case = CASES[base]
  for change in changes:
    field = {"b": "batch", "k": "prototypes"}[change[0]]
    case = case._replace(**{field: int(change[1:])})
  return case


def config_of(case: Case):
  """A resolved config of ours."""
  import jax

  from seer_jax import config as config_lib
  from seer_jax.runtime import mesh

  config = config_lib.base()
  config.steps, config.batch_size = 1_000_000, case.batch
  config.precision = mesh.native_precision(
    jax.default_backend(),
    str(getattr(jax.devices()[0], "compute_capability", "")),
  )[0]
  config.crops.sizes = case.sizes
  for name in ("flip", "jitter", "grey", "blur"):
    config.augment[name] = 0.0
  config.model.stem_stride = 1 if case.small else 2
  config.model.strides = (1, 2, 2, 2) if case.small else (2, 2, 2, 2)
  if case.trunk == "tiny":
    config.model.regnet, config.model.strides = (1, 16, 16.0, 2.0, 8), (2,)
  else:
    config.model.trunk = case.trunk
  config.model.scan, config.model.remat = False, "none"
  config.model.head.hidden = (case.hidden,)
  config.model.prototypes = (case.prototypes,)
  config.swav.freeze_steps = config.swav.queue_length = 0
  config.swav.queue_start = 0
  config.optim.lr = 0.3
  config.eval.resize = config.eval.size = case.sizes[0]
  return config


class Ours:
  """The step of `training/step.py`; `step(crops)` is not waited for.

  Attributes:
    compile_seconds: of the step, with an empty cache.
    flops: operations of a step, each once.
  """

  def __init__(self, case: Case):
    import jax

    from seer_jax import tasks
    from seer_jax.planning import operations
    from seer_jax.runtime import mesh
    from seer_jax.training import optim
    from seer_jax.training import step as step_lib

    config = config_of(case)
    self._mesh = mesh.make()
    self._rows = mesh.rows(self._mesh)
    with jax.set_mesh(self._mesh):
      task = tasks.create(config)
      tx, _ = optim.make(config.optim, config.steps, config.batch_size, task)
      programs = step_lib.build(task, tx, config, self._mesh)
      self._state = programs.init.lower().compile()()
      batch = self.put(made_up(case))
      began = time.perf_counter()
      traced = programs.step.trace(self._state, batch)
      self._step = traced.lower().compile()
      self.compile_seconds = time.perf_counter() - began
    self.parameters = sum(p.size for p in jax.tree.leaves(self._state.params))
    self.flops = operations.flops(traced.jaxpr)

  def put(self, crops_BxVxHxWx3):
    """Crops of NumPy as a batch of the pipeline."""
    import jax
    import numpy as np

    batch = {
      "crops": tuple(crops_BxVxHxWx3),
      "replacements": np.zeros(len(crops_BxVxHxWx3[0]), np.float32),
    }
    return jax.device_put(batch, self._rows)

  def __call__(self, batch):
    """One update, dispatched as `training/program.py` does."""
    import jax

    if jax.default_backend() == "cpu":
      jax.block_until_ready(self._state.step)
    self._state, window = self._step(self._state, batch)
    return window["loss"]

  def wait(self, loss) -> float:
    """Of the window's sum, when the step is done."""
    return float(loss)

  def peak_memory(self) -> int | None:
    """Bytes of the GPU, at most; None on a CPU."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def published(case: Case):
  """The peer."""
  import published_swav

  return published_swav.Step(
    case.trunk,
    small=case.small,
    hidden=case.hidden,
    out=128,
    prototypes=case.prototypes,
  )


def made_up(case: Case):
  """uint8 crops, BxVxHxWx3 of each resolution."""
  import numpy as np

  rng = np.random.default_rng(0)
  return [
    rng.integers(0, 256, (case.batch, count, size, size, 3), np.uint8)
    for count, size in zip((2, 4), case.sizes, strict=True)
  ]


def matrix_rate() -> float:
  """Operations a second of large matrix products, as XLA has them here."""
  import jax
  import jax.numpy as jnp

  on_cpu = jax.default_backend() == "cpu"
  size, dtype = (2048, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
  x = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, x))
  seconds = []
  for _ in range(5):
    began = time.perf_counter()
    for _ in range(4):
      y = product(x, x)
    jax.block_until_ready(y)
    seconds.append((time.perf_counter() - began) / 4)
  return 2 * size**3 / min(seconds)


def work(side: str, case: Case) -> None:
  """A worker: builds, warms up, then times as many steps as each line says."""

  def say(**words):
    print(json.dumps(words), flush=True)

  from seer_jax.commands import process
  from seer_jax.runtime import host

  if side == "ours":
    process.keep_memory()
  step = Ours(case) if side == "ours" else published(case)
  batch = step.put(made_up(case))
  began = time.perf_counter()
  loss = step.wait(step(batch))
  first = time.perf_counter() - began
  began = time.perf_counter()
  step.wait(step(batch))
  say(
    loss=loss,
    parameters=step.parameters,
    compile_seconds=getattr(step, "compile_seconds", first),
    flops=getattr(step, "flops", 0),
    seconds=time.perf_counter() - began,
  )
  # What compiling needed is not what training needs.
  host.give_back_memory()
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  for line in sys.stdin:
    if line.strip() == "rate":
      say(rate=matrix_rate())
      continue
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began = time.perf_counter()
    for _ in range(int(line)):
      loss = step(batch)
    step.wait(loss)
    seconds = time.perf_counter() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    say(
      seconds=seconds / int(line),
      page_faults=faults // int(line),
      memory=step.peak_memory() or _peak(),
    )


def _peak():
  """The most memory since the last reset, in bytes."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


class Worker:
  """A process with one of the two."""

  def __init__(self, side: str, name: str):
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
      filter(None, (str(_ROOT), environment.get("PYTHONPATH")))
    )
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    self._process = subprocess.Popen(
      [sys.executable, __file__, f"--worker={side}", f"--cases={name}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    self.about = self._answer()

  def ask(self, line: str) -> dict:
    """The answer to a line."""
    self._process.stdin.write(f"{line}\n")
    self._process.stdin.flush()
    return self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"a worker died: status {self._process.wait()}")
    return json.loads(line)

  def end(self) -> None:
    """Gives its memory back."""
    self._process.stdin.close()
    self._process.wait()


def measure(name: str, rounds: int, seconds: float, sides: list[str]) -> dict:
  """Rounds of turns of about so many seconds."""
  case, workers = case_of(name), {}

  def worker(side):
    if side not in workers:
      workers[side] = Worker(side, name)
      about.setdefault(side, workers[side].about)
    return workers[side]

  about, turns = {}, {side: [] for side in sides}
  for side in sides * rounds:
    steps = max(2, round(seconds / worker(side).about["seconds"]))
    turns[side].append(worker(side).ask(str(steps)))
    if case.gpu:
      workers.pop(side).end()
  rate = worker("ours").ask("rate")["rate"]
  for each in workers.values():
    each.end()
  found = {"case": name, "batch": case.batch, "crops": case.sizes}
  for side, each in turns.items():
    step = statistics.median(turn["seconds"] for turn in each)
    found |= {
      f"{side}_images_per_second": case.batch / step,
      f"{side}_page_faults": each[-1]["page_faults"],
      f"{side}_memory": max(turn["memory"] for turn in each),
      f"{side}_first_loss": about[side]["loss"],
      f"{side}_parameters": about[side]["parameters"],
    }
  if len(sides) > 1:
    pairs = zip(turns["peer"], turns["ours"], strict=True)
    found["ratio"] = statistics.median(
      theirs["seconds"] / ours["seconds"] for theirs, ours in pairs
    )
  work = about["ours"]["flops"] / case.batch * found["ours_images_per_second"]
  return found | {
    "compile_seconds": about["ours"]["compile_seconds"],
    "flops_per_image": about["ours"]["flops"] / case.batch,
    "matrix_rate": rate,
    "utilisation": work / rate,
  }


def table(results: list[dict]) -> str:
  """Rows of Markdown."""
  head = (
    "case", "batch", "images/s", "PyTorch", "ratio", "GiB", "PyTorch",
    "compile, s", "of matrix rate",
  )  # fmt: skip
  rows = [head, ("---",) * len(head)]
  for each in results:
    rows.append(
      (
        each["case"],
        str(each["batch"]),
        f"{each['ours_images_per_second']:.1f}",
        f"{each.get('peer_images_per_second', float('nan')):.1f}",
        f"{each.get('ratio', float('nan')):.2f}",
        f"{each['ours_memory'] / 2**30:.2f}",
        f"{each.get('peer_memory', float('nan')) / 2**30:.2f}",
        f"{each['compile_seconds']:.0f}",
        f"{each['utilisation']:.0%}",
      )
    )
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
  """Prints the table and the line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--cases", default="400mf-32,400mf-96,400mf-224,4gf-32")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3.0)
  parser.add_argument("--alone", action="store_true")
  parser.add_argument("--list", action="store_true")
  parser.add_argument("--worker", choices=("ours", "peer"))
  options = parser.parse_args()
  names = options.cases.split(",")
  if options.list:
    print("\n".join(f"{name:10} {case}" for name, case in CASES.items()))
    return
  for name in names:
    try:
      case_of(name)
    except (KeyError, ValueError):
      parser.error(f"no case {name!r}; there are {', '.join(CASES)}")
  if options.worker:
    work(options.worker, case_of(names[0]))
    return
  sides = ["ours"] if options.alone else ["ours", "peer"]
  results = []
  for name in names:
    results.append(measure(name, options.rounds, options.seconds, sides))
    print(table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
  print(table(results))
  print(json.dumps(results))


if __name__ == "__main__":
  import bare  # noqa: F401

  main()
