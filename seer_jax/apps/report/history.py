"""A workdir, read for a report: its config, curves, results and problems."""

import dataclasses
import math
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import ml_collections

from seer_jax.apps import results
from seer_jax.config import resolved
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors, files
from seer_jax.training import metrics, record

# (step, value)
Curve = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class History:
  """What a workdir holds of its run, apart from the network."""

  name: str  # Short, unique on a page.
  workdir: pathlib.Path
  config: ml_collections.ConfigDict
  record: record.Record  # `run.json`; empty for a run from before it existed.
  lines: Sequence[Mapping[str, float]]  # Of `metrics.jsonl`.
  results: Mapping[str, float]  # Of `seer-jax eval`, by name.
  bad_images: Sequence[str]  # Names of images that could not be used.
  gave_up: bool  # Whether it diverged and ended.

  @property
  def step(self) -> int:
    """The last step that was logged; 0 before the first."""
    return max((line["step"] for line in self.lines), default=0)

  @property
  def is_done(self) -> bool:
    """Whether it reached the end of its config."""
    return self.config.steps is not None and self.step >= self.config.steps

  @property
  def is_pretraining(self) -> bool:
    """Whether it learns without labels."""
    return self.config.task == "swav"

  def curve(self, name: str) -> Curve:
    """All finite values of a metric."""
    return [
      (line["step"], line[name])
      for line in self.lines
      if name in line and math.isfinite(line[name])
    ]

  def first(self, name: str) -> float | None:
    """The first finite value of a metric, if any."""
    return next((value for _, value in self.curve(name)), None)

  def last(self, name: str) -> float | None:
    """The newest finite value of a metric, if any."""
    return next((value for _, value in reversed(self.curve(name))), None)

  def total(self, name: str) -> float:
    """The sum of a metric over the whole run."""
    return sum(value for _, value in self.curve(name))

  def median(self, name: str) -> float | None:
    """The median of a metric, without the first value, which compiles."""
    values = [value for _, value in self.curve(name)]
    return statistics.median(values[1:] or values) if values else None

  @property
  def score(self) -> str | None:
    """The metric of accuracy that shows best what the network is worth."""
    names = [
      name
      for line in self.lines
      if "eval_seconds" in line
      for name in rates.whole(line)
      if name == "accuracy" or name.startswith(("knn/", "logistic/", "svm/"))
    ]
    names = [name for name in names if not name.endswith(("/top5", "/std"))]
    order = ("accuracy", "knn/k=20", "knn/k=200")
    return next((name for name in (*order, *names) if name in names), None)


def read(
  workdirs: Sequence[pathlib.Path], evals: pathlib.Path | None = None
) -> list[History]:
  """Reads workdirs, and the folder `evals` that `seer-jax eval` wrote to.

  Raises UserError if a workdir has no run, or is given twice.
  """
  paths = [workdir.resolve() for workdir in workdirs]
  twice = [path for at, path in enumerate(paths) if path in paths[:at]]
  if twice:
    raise errors.UserError(f"{twice[0]} is given twice; remove one")
  if evals is not None and not os.path.isfile(evals / "evals.jsonl"):
    raise errors.UserError(
      f"--evals is {evals}, which has no evals.jsonl; give the --out folder of"
      " seer-jax eval"
    )
  return [
    _read(workdir, name, evals)
    for workdir, name in zip(workdirs, _names(paths), strict=True)
  ]


def _names(paths):
  """The shortest ends of paths that tell them apart."""
  for length in range(1, max(len(path.parts) for path in paths)):
    names = ["/".join(path.parts[-length:]) for path in paths]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in paths]


def _read(workdir, name, evals):
  try:
    return _opened(workdir, name, evals)
  except OSError as error:
    raise errors.UserError(
      f"cannot read {error.filename}: {error.strerror}"
    ) from error


def _opened(workdir, name, evals):
  if not (workdir / "config.json").is_file():
    raise errors.UserError(
      f"{workdir} has no config.json, so it is not the folder of a run; give"
      " the --workdir of seer-jax train"
    )
  lines = metrics.read_lines(workdir / "metrics.jsonl")
  config = resolved.of_run(workdir)
  done = config.steps and any(line["step"] >= config.steps for line in lines)
  return History(
    name=name,
    workdir=workdir,
    config=config,
    record=record.read(workdir),
    lines=lines,
    results=_results(workdir, evals),
    bad_images=_bad_images(workdir),
    gave_up=(workdir / "divergence").is_dir() and not done,
  )


def _bad_images(workdir):
  """Unusable images that any process met, each once."""
  found = {}
  for path in sorted(workdir.glob("bad_images*.txt")):
    text = os.fsdecode(path.read_bytes())
    found |= dict.fromkeys(line for line in text.split("\n") if line)
  return list(found)


def _results(workdir, evals):
  """What `seer-jax eval` measured of this workdir; groups are the card's."""
  found = {}
  for folder in filter(None, (workdir / "evals", evals)):
    for line in results.read_lines(folder / "evals.jsonl"):
      if files.user_path(line["what"]).resolve() == workdir.resolve():
        found |= line["figures"]
  return {name: found[name] for name in rates.whole(found)}
