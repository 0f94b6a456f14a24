"""`seer-jax eval`: every protocol, for several representations side by side.

Evaluators of frozen features (`evals/`) share one pass over the images, which
is kept on disk. Evaluations that train (`linear`, `finetune`, `scratch`) are
runs of the training loop, each in a folder below the results. Both resume after
a kill, and existing results are not computed again.
"""

import copy
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from seer_jax.apps import frozen, results
from seer_jax.apps import subjects as subjects_lib
from seer_jax.config import keys, validate
from seer_jax.evals import feature_store, features, low_shot, suite
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import probe
from seer_jax.training import metrics, run
from seer_jax.weights import warm_start

_log = logging.getLogger(__name__)

# Evaluations that train, and the task of each.
TRAINED = {"linear": "probe", "finetune": "finetune", "scratch": "finetune"}
# Of a run, one folder each.
_RUNS = "runs"


class Wanted(NamedTuple):
  """An evaluation, and the share of the labels that it may use."""

  name: str
  share: float = 1.0

  def __str__(self) -> str:
    if self.share == 1:
      return self.name
    return f"{self.name}@{100 * self.share:g}%"


def wanted(text: str) -> list[Wanted]:
  """Parses "knn,linear,finetune@1%".

  Raises UserError if there is no such evaluation.
  """
  known = (*suite.EVALUATORS, *TRAINED)
  found = []
  for each in text.split(","):
    match = re.fullmatch(r"(\w+)(?:@(\d+(?:\.\d+)?)%)?", each.strip())
    if not match or match[1] not in known:
      raise errors.UserError(
        f"--evals has {each.strip()!r}, which does not exist; it takes"
        f" {', '.join(known)}, and finetune@1% for a share of the labels"
      )
    share = float(match[2]) / 100 if match[2] else 1.0
    if match[2] and (match[1] not in TRAINED or not 0 < share <= 1):
      raise errors.UserError(
        f"--evals has {each.strip()}, but only {', '.join(TRAINED)} take a"
        " share, above 0 and at most 100 %; for logistic and svm set"
        " config.eval.shares"
      )
    found.append(Wanted(match[1], share))
  return found


class Evaluation:
  """All evaluations of several subjects on one set of images."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    recipes: Mapping[str, ml_collections.ConfigDict],
    out: pathlib.Path,
    seeds: int = 1,
    labelled: bool = True,
  ):
    """Opens the data.

    Raises UserError if the config is wrong, or the data cannot be opened.

    Args:
      config: `data`, `eval`, `mesh` and `precision` are used.
      recipes: configs of "linear" and "finetune", with the data of `config`.
      labelled: whether test images are needed; if there is no test set, a share
        of the training images is held out.
    """
    validate.check_each(config)
    if labelled and not config.data.test.kind:
      config = _held_out(config)
    self._config, self._recipes, self._out = config, recipes, out
    self._seeds = seeds
    self._mesh = mesh_lib.make(config.mesh.data, config.mesh.fsdp)
    self._source = suite.open_source(config, "train")
    self._store = feature_store.FeatureStore(files.cache_folder("features"))
    with errors.writing(out):
      out.mkdir(parents=True, exist_ok=True)
    self._results = results.ResultFile(out / "evals.jsonl")
    self._frozen = frozen.Frozen(
      config,
      self._source,
      self._mesh,
      self._store,
      self._results,
      self._precision(),
    )

  def run(
    self, subject: subjects_lib.Subject, evaluations: Sequence[Wanted]
  ) -> Iterator[results.Result]:
    """Yields the figures of a subject as they are found.

    Raises UserError if labels or images are missing, or features are not
    finite.
    """
    for each in evaluations:
      if each.name in TRAINED and subject.name in subjects_lib.WITHOUT_TRUNK:
        continue
      if each.name in suite.OF_CLASSIFIERS and not subjects_lib.is_classifier(
        subject
      ):
        continue
      if each.name in TRAINED:
        yield from self._trained(subject, each)
      else:
        yield from self._frozen.run(subject, each.name)

  def _trained(self, subject, each):
    """Mean and deviation over runs of the loop, one per seed."""
    found = [self.trained(subject, each, seed) for seed in range(self._seeds)]
    for name in found[0]:
      values = [figures[name] for figures in found if name in figures]
      yield results.Result(subject.name, name, float(np.mean(values)))
      if len(values) > 1:
        spread = float(np.std(values, ddof=1))
        yield results.Result(subject.name, f"{name}/std", spread)

  def trained(
    self, subject: subjects_lib.Subject, each: Wanted, seed: int
  ) -> dict[str, float]:
    """The figures of one run of an evaluation that trains."""
    config = self._recipe(subject, each, seed)
    key = files.key(
      subject.fingerprint if config.weights else "",
      self._source.fingerprint,
      [pair for pair in keys.flatten(config) if pair[0] != "data.workers"],
    )

    def compute():
      slug = re.sub(r"[^\w.@-]+", "_", f"{subject.name}-{each}-{seed}")
      workdir = self._out / _RUNS / f"{slug[-80:]}-{key[:8]}"
      _log.info("%s: %s, seed %d, in %s", subject.name, each, seed, workdir)
      run.run(config, workdir, say=_log.info)
      return _figures(workdir, str(each), config)

    label = f"{each}#{seed}"
    found = self._results.once(subject.name, label, key, compute)
    return {result.name: result.value for result in found}

  def trained_with(
    self, subject: subjects_lib.Subject, name: str, share: float, seed: int
  ) -> float:
    """Accuracy of an evaluation that trains on a share of the labels."""
    wanted = Wanted(name, share)
    return self.trained(subject, wanted, seed)[str(wanted)]

  def logistic(
    self, subject: subjects_lib.Subject, share: float, seed: int
  ) -> float:
    """Accuracy of logistic regression on a share of the labels."""
    images = suite.sets(self._config, self._source, labelled=True)
    labels = low_shot.percent(share)
    seed = seed if share < 1 else 0  # All are drawn in one way only.
    key = files.key(
      subject.fingerprint,
      repr(subject.encoder),
      frozen.facts(images),
      labels,
      seed,
    )

    def compute():
      _log.info("%s: logistic, %s, seed %d", subject.name, labels.name, seed)
      bank, query = self._features(subject, images)
      found = low_shot.accuracy(bank, query, low_shot.logistic, labels, seed)
      return {"logistic": found}

    label = f"logistic@{labels.name}#{seed}"
    (result,) = self._results.once(subject.name, label, key, compute)
    return result.value

  def _features(self, subject, images):
    """Labelled features of bank and query, averaged over positions."""
    precision = self._precision()
    extract = features.Extractor(
      subject.encoder,
      self._mesh,
      batch_size=self._config.eval.batch_size,
      max_pixels=self._config.data.max_pixels,
      reads=self._config.data.reads,
      dtype=mesh_lib.DTYPES[precision],
      store=self._store,
      strict=True,
    )
    with jax.set_mesh(self._mesh):
      return [
        extract(subject.variables, each).labelled()
        for each in (images.bank, images.query)
      ]

  def _precision(self):
    return self._config.precision or mesh_lib.precision_here()[0]

  @property
  def images(self) -> int:
    """How many images there are to learn from."""
    return len(self._source)

  def _recipe(self, subject, each, seed):
    """The resolved config of a run."""
    name = "linear" if each.name == "linear" else "finetune"
    config = copy.deepcopy(self._recipes[name])
    config.task, config.seed = TRAINED[each.name], seed
    config.data = copy.deepcopy(self._config.data)
    config.mesh = copy.deepcopy(self._config.mesh)
    for key in ("by", "attributes", "unit", "smallest_group", "resamples"):
      config.eval[key] = self._config.eval[key]
    config.weights = subject.shape_of
    if each.name == "scratch" or not subject.weights:
      warm_start.decide(config)  # The same network, untrained.
      config.weights = ""
    if each.share < 1:
      _take_share(config, each, seed)
    return config


def without_bank(
  config: ml_collections.ConfigDict, evaluations: Sequence[Wanted]
) -> ml_collections.ConfigDict:
  """The config, with the test images in place of a bank that is not needed."""
  names = {each.name for each in evaluations}
  if config.data.test.kind and names <= suite.WITHOUT_BANK:
    config = copy.deepcopy(config)
    config.data.train = copy.deepcopy(config.data.test)
  return config


def _take_share(config, each, seed):
  """Restricts the training images to a share of the labels."""
  train = config.data.train
  if _is_part(train):
    raise errors.UserError(
      f"--evals {each} needs a whole dataset to draw labels from, but"
      " config.data.train is a part or a mix, or the test set was held out"
      " of it; give --train and --test"
    )
  train.take, train.balanced, train.take_seed = each.share, True, seed
  count = len(suite.open_source(config, "train"))
  if config.batch_size and config.batch_size > count // 2:
    config.batch_size = max(2, count // 2 // 2 * 2)


def _is_part(source):
  return source.take != 1 or source.skip != 0 or source.kind == "mix"


def _held_out(config):
  """The config, with a part of the training images as the test set."""
  config = copy.deepcopy(config)
  if _is_part(config.data.train):
    raise errors.UserError(
      "no test set is given, and none can be held out of config.data.train,"
      " which is a part or a mix; give --test"
    )
  config.data.test = copy.deepcopy(config.data.train)
  config.data.test.take = config.data.train.skip = config.eval.held_out
  _log.info("no test set: %g of the images is held out", config.eval.held_out)
  return config


def _figures(workdir, name, config):
  """What the last evaluation of a run found, named after the evaluation."""
  lines = metrics.read_lines(workdir / "metrics.jsonl")
  last = [line for line in lines if "eval_seconds" in line][-1]
  found = {}
  for key, value in last.items():
    if key.startswith(("accuracy", "choice/")):
      found[
        re.sub("^accuracy", name, key).replace("choice/", f"{name}/choice/")
      ] = value
  if config.task == "probe":
    found |= _best_of_taps(found, name, config)
  return found


def _best_of_taps(found, name, config):
  """For each tap, the head that is best on the labels for choosing."""
  best = {}
  for tap in probe.taps(config):
    heads = {
      key.removeprefix(f"{name}/choice/"): value
      for key, value in found.items()
      if re.match(rf"{re.escape(name)}/choice/{re.escape(tap)}(\+bn)?@", key)
    }
    if heads:
      chosen = max(heads, key=heads.get)
      best[f"{name}/{tap}"] = found[f"{name}/{chosen}"]
  return best
