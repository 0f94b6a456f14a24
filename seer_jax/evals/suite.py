"""Which images a run is evaluated on while it trains, and how."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from seer_jax.data import shuffle, sources
from seer_jax.evals import feature_stats, features, knn
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

Sets = tuple[features.ImageSet, features.ImageSet]


def open_source(
  config: ml_collections.ConfigDict, which: str
) -> sources.Source:
  """The source of `config.data.train` or `.test`.

  What either of them excludes neither hands out.

  Raises:
    UserError: it cannot be opened; names the key.
  """
  try:
    lists = map(sources.exclude_lists, (config.data.train, config.data.test))
    return sources.open_source(config.data[which], set().union(*lists))
  except errors.UserError as error:
    raise errors.UserError(f"config.data.{which}: {error}") from error


def sets(config: ml_collections.ConfigDict, source: sources.Source) -> Sets:
  """(bank, queries): the training images, and those of the test set or some
  held out of the bank.

  Raises:
    UserError: the test set has other labels.
  """
  if config.data.test.kind:
    test = open_source(config, "test")
    _check_labels(source, test)
    held_out, query = 0, _some(config, test, 0, len(test))
  else:
    held_out = max(1, int(len(source) * config.eval.held_out))
    query = _some(config, source, 0, held_out)
  return _some(config, source, held_out, len(source)), query


class Evaluator(Protocol):
  """One measure of a representation.

  Evaluators run in any order, and share what an `Extractor` computed. Batches
  are padded and sharded; each image counts once.
  """

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (name, value) for an encoder's variables."""
    ...


class Evaluation:
  """Spread of clean features always; kNN where there are labels."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    images: Sets,
    encoder: features.Encoder,
    dtype: Any,
    mesh: jax.sharding.Mesh,
    between: Callable[[], None],
  ):
    """Prepares it.

    Args:
      config: resolved.
      images: of `sets`.
      encoder: whose features are looked at.
      dtype: what it computes in.
      mesh: where its variables lie.
      between: called before each batch; what it raises ends the evaluation.
    """
    self._extract = features.Extractor(
      encoder,
      mesh,
      batch_size=config.eval.batch_size,
      max_pixels=config.data.max_pixels,
      dtype=dtype,
      between=between,
    )
    self._evaluators = list(_evaluators(config, images, self._extract))

  def run(self, variables: Any) -> dict[str, float]:
    """What is found of the encoder's variables, by name."""
    try:
      return {
        name: value
        for each in self._evaluators
        for name, value in each.run(variables)
      }
    finally:
      self._extract.forget()


def _evaluators(config, images, extract) -> Iterator[Evaluator]:
  bank, query = images
  yield feature_stats.Spread(extract, bank)
  labels = [
    {each.source.label_of(i) for i in each.indices} - {sources.UNLABELLED}
    for each in images
  ]
  if not all(labels):
    _log.info("no kNN check: the images have no labels")
  elif len(labels[0]) > len(bank.indices) // 2:
    _log.info(
      "no kNN check: %d labels for %d images say nothing",
      len(labels[0]),
      len(bank.indices),
    )
  else:
    yield knn.Knn(
      extract, bank, query, config.eval.knn_k, config.eval.knn_temperature
    )


def _check_labels(source, test):
  """Labels are numbers: both sets must count the same names."""
  ours, theirs = source.label_names, test.label_names
  if ours and theirs and ours != theirs:
    alone = sorted(set(ours) ^ set(theirs))
    what = f"{', '.join(alone)} stand in one of them only"
    raise errors.UserError(
      "config.data.train and config.data.test have different labels: "
      + (what if alone else "the same names in another order")
    )


def _some(config, source, begin, end):
  """At most so many images, at places `begin` to `end` of a permutation."""
  places = np.arange(begin, min(end, begin + config.eval.max_images))
  indices = shuffle.permuted(places, len(source), f"evaluation {config.seed}")
  return features.ImageSet(source, np.sort(indices).tolist())
