"""Which images a run is evaluated on while it trains, and how."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from seer_jax.data import shuffle, sources
from seer_jax.evals import (
  accuracy,
  boxes,
  classes,
  feature_stats,
  features,
  geolocation,
  knn,
)
from seer_jax.evals.context import Context, Sets
from seer_jax.evals.fairness import associations, same_attribute
from seer_jax.evals.groups import rates
from seer_jax.evals.retrieval import retrieval
from seer_jax.evals.robustness import corruption_error, shifts
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)


def open_source(
  config: ml_collections.ConfigDict, which: str
) -> sources.Source:
  """The source of `config.data.train` or `.test`.

  What either of them excludes is excluded from both. Raises UserError, which
  names the key, if it cannot be opened.
  """
  try:
    lists = map(sources.exclude_lists, (config.data.train, config.data.test))
    return sources.open_source(config.data[which], set().union(*lists))
  except errors.UserError as error:
    raise errors.UserError(f"config.data.{which}: {error}") from error


def split(
  config: ml_collections.ConfigDict, source: sources.Source
) -> tuple[sources.Source, Sets]:
  """(what to train on, what to evaluate on).

  SwAV trains on all images. Tasks with labels train without the images that
  they are tested on or that choose among their heads. Raises UserError if
  labels are missing, or those of the test set differ.
  """
  if config.task == "swav":
    return source, sets(config, source)
  need_labels(source, "config.data.train")
  held_out = None
  if config.data.test.kind:
    test = open_source(config, "test")
    need_labels(test, "config.data.test")
    _check_labels(source, test)
  else:
    test = source
    source, held_out = _divided(config, source, config.eval.held_out, "test")
  choice = None
  if config.task == "probe" and config.probe.held_out:
    source, chosen = _divided(config, source, config.probe.held_out, "choice")
    choice = features.ImageSet(chosen, range(len(chosen)))
  query = _some(config, held_out or test, 0, len(held_out or test))
  return source, Sets(_some(config, source, 0, len(source)), query, choice)


def need_labels(source: sources.Source, where: str) -> None:
  """Raises UserError if images have no labels, or all are of one class."""
  names = source.label_names
  if len(names) < 2:
    found = f"all of one class, {names[0]!r}" if names else "not labelled"
    raise errors.UserError(
      f"{where}: the images of {source!r} are {found}; give labelled images of"
      " 2 or more classes: a folder per class, or a list with labels"
    )


def _divided(config, source, share, name):
  """(most of a source, the share of it held out), by the seed."""
  count = max(1, round(len(source) * share))
  if count >= len(source):
    raise errors.UserError(
      f"{share:g} of {len(source)} images cannot be held out; give more images"
    )
  key = f"{name} {config.seed}"
  order = shuffle.permuted(np.arange(len(source)), len(source), key)
  return tuple(
    sources.Subset(source, np.sort(part), (key, share, side))
    for side, part in enumerate((order[count:], order[:count]))
  )


def sets(
  config: ml_collections.ConfigDict,
  source: sources.Source,
  labelled: bool = False,
) -> Sets:
  """The training images, and the test set or images held out of the former.

  Raises UserError if labels differ or, with `labelled`, are missing.
  """
  if labelled:
    need_labels(source, "config.data.train")
  if config.data.test.kind:
    test = open_source(config, "test")
    if labelled:
      need_labels(test, "config.data.test")
    if not set(config.eval.evals) <= _BY_NAME:
      _check_labels(source, test)
    held_out, query = 0, _some(config, test, 0, len(test))
  else:
    held_out = max(1, int(len(source) * config.eval.held_out))
    query = _some(config, source, 0, held_out)
  return Sets(_some(config, source, held_out, len(source)), query)


class Evaluator(Protocol):
  """One measure of a representation.

  Evaluators run in any order, and share what an `Extractor` computed. Batches
  are padded and sharded; each image counts once.
  """

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (name, value) for an encoder's variables."""
    ...


class Evaluation:
  """The evaluators that `config.eval.evals` names, on one network."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    images: Sets,
    encoder: features.Encoder,
    dtype: Any,
    mesh: jax.sharding.Mesh,
    between: Callable[[], None] = lambda: None,
    store: features.Store | None = None,
    strict: bool = False,
    class_names: Sequence[str] = (),
  ):
    """Prepares the evaluators.

    Raises UserError if one does not exist, or lacks what it needs.

    Args:
      between: called before each batch; an exception ends the evaluation.
      store: keeps features between processes.
      strict: whether features that are not finite are an error; otherwise they
        are left out, and counted.
      class_names: of the encoder's classes; () if their numbers are those of
        the images' labels.
    """
    query = boxes.of_config(config, images.query, encoder)
    options = {
      "batch_size": config.eval.batch_size,
      "max_pixels": config.data.max_pixels,
      "reads": config.data.reads,
      "dtype": dtype,
      "between": between,
    }
    self._extract = features.Extractor(
      encoder,
      mesh,
      taps=config.eval.taps,
      store=store,
      strict=strict,
      **options,
    )
    self._context = Context(
      config=config,
      images=images._replace(query=query),
      encoder=encoder,
      mesh=mesh,
      extract=self._extract,
      options=options,
      store=store,
      strict=strict,
      split=rates.of_config(config, query),
      class_names=class_names,
    )
    self._evaluators = [
      evaluator
      for name in config.eval.evals
      for evaluator in _created(name, self._context)
    ]

  def run(self, variables: Any) -> dict[str, float]:
    """The figures of an encoder's variables, by name."""
    try:
      return {
        name: value
        for each in self._evaluators
        for name, value in each.run(variables)
      }
    finally:
      self._extract.forget()


def _created(name: str, ctx: Context) -> Iterator[Evaluator]:
  """The evaluators of a name in `EVALUATORS`."""
  match name:
    case "stats":
      yield feature_stats.Spread(ctx.extract, ctx.images.bank)
    case "accuracy":
      yield accuracy.Accuracy(
        ctx.encoder,
        ctx.mesh,
        ctx.images.query,
        ctx.images.choice,
        truth=_truth(ctx),
        split=ctx.split,
        **ctx.options,
      )
    case "knn":
      yield from _knn(ctx)
    case "logistic" | "svm":
      yield from _low_shot(name, ctx)
    case "associations":
      yield associations.Associations(ctx)
    case "same":
      yield same_attribute.SameAttribute(ctx)
    case "shifts":
      yield shifts.Shifts(ctx)
    case "corruptions":
      yield corruption_error.CorruptionError(ctx, _truth(ctx))
    case "retrieval":
      yield retrieval.Retrieval(ctx)
    case "geolocation":
      yield geolocation.Geolocation(ctx)
    case _:
      raise errors.UserError(
        f"config.eval.evals has {name!r}, which does not exist; use"
        f" {', '.join(EVALUATORS)}"
      )


# The names for `config.eval.evals`.
EVALUATORS = (
  *("stats", "knn", "accuracy", "logistic", "svm"),
  *("associations", "same", "shifts", "corruptions", "retrieval"),
  "geolocation",
)
# Those that need a classifier; and those that look at no bank.
OF_CLASSIFIERS = frozenset(
  {"accuracy", "associations", "shifts", "geolocation"}
)
WITHOUT_BANK = OF_CLASSIFIERS
# Those that need a label of every image set.
LABELLED = frozenset(
  {"knn", "accuracy", "logistic", "svm", "same", "shifts", "corruptions"}
)
# Those that compare labels by name, if at all.
_BY_NAME = WITHOUT_BANK | {"same", "retrieval", "stats"}


def _truth(ctx):
  """Which classes are right; None if labels are the numbers of classes."""
  labels, options = ctx.images.query.source.label_names, ctx.config.eval
  if not ctx.class_names:
    return None
  return classes.of_labels(labels, ctx.class_names, options.mask_classes)


def _knn(ctx):
  options, (bank, query, _) = ctx.config.eval, ctx.images
  reason = _why_no_knn(bank, query)
  if reason:
    _log.info("kNN is skipped: %s", reason)
    return
  grid = knn.Grid(
    options.knn_k, options.knn_temperature, options.knn_metric, options.taps
  )
  yield knn.Knn(ctx.extract, bank, query, grid, ctx.split)


def _low_shot(name, ctx):
  # scikit-learn, which most runs never use, takes a second to import.
  from seer_jax.evals import low_shot

  options, (bank, query, _) = ctx.config.eval, ctx.images
  fit = low_shot.logistic if name == "logistic" else low_shot.svm
  wanted = [
    *map(low_shot.percent, options.shares),
    *map(low_shot.shots, options.shots),
  ]
  for tap in options.taps:
    label = name if len(options.taps) == 1 else f"{name},{tap}"
    yield low_shot.LowShot(
      ctx.extract,
      bank,
      query,
      label,
      fit,
      wanted,
      options.seeds,
      tap,
      ctx.split,
    )


def _why_no_knn(bank, query):
  labels = [
    {each.source.label_of(i) for i in each.indices} - {sources.UNLABELLED}
    for each in (bank, query)
  ]
  if not all(labels):
    return "the images have no labels"
  if len(labels[0]) == 1:
    return "the images have a single label, so no answer would be wrong"
  if len(labels[0]) > len(bank.indices) // 2:
    return (
      f"{len(labels[0])} labels are too many for {len(bank.indices)} images"
    )
  return ""


def _check_labels(source, test):
  """Refuses sets whose label numbers mean different names."""
  ours, theirs = source.label_names, test.label_names
  if ours and theirs and ours != theirs:
    alone = sorted(set(ours) ^ set(theirs))
    what = f"only one of them has {', '.join(alone)}"
    raise errors.UserError(
      "config.data.train and config.data.test have different labels: "
      + (what if alone else "the same names in another order")
      + "; give both the same classes"
    )


def _some(config, source, begin, end):
  """At most so many images, at positions `begin` to `end` of a permutation."""
  most = config.eval.max_images
  if "retrieval" in config.eval.evals:
    most = end  # A part of a database has other right answers.
  wanted = np.arange(begin, min(end, begin + most))
  indices = shuffle.permuted(wanted, len(source), f"evaluation {config.seed}")
  return features.ImageSet(source, np.sort(indices).tolist())
