"""Evaluators of `evals/` on a subject, whose results are kept."""

import copy
import logging
from collections.abc import Iterator

import jax
import ml_collections

from seer_jax.apps import results
from seer_jax.apps import subjects as subjects_lib
from seer_jax.config import keys
from seer_jax.data import sources
from seer_jax.evals import feature_store, suite
from seer_jax.evals.robustness import corruption_error, corruptions
from seer_jax.runtime import errors, files
from seer_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)


class Frozen:
  """Figures of networks that no evaluation trains."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    source: sources.Source,
    mesh: jax.sharding.Mesh,
    store: feature_store.FeatureStore,
    found: results.ResultFile,
    precision: str,
  ):
    """Takes the opened training images, and the file of results."""
    self._config, self._source, self._mesh = config, source, mesh
    self._store, self._results, self._precision = store, found, precision

  def run(
    self, subject: subjects_lib.Subject, name: str
  ) -> Iterator[results.Result]:
    """Yields the figures of an evaluator; of corruptions kind by kind.

    Raises UserError if it lacks images, labels or names of classes.
    """
    if name != "corruptions":
      yield from self._one(subject, name, self._config)
      return
    found = {}
    for kind in self._config.eval.corruptions or corruptions.KINDS:
      config = copy.deepcopy(self._config)
      config.eval.corruptions = (kind,)
      for result in self._one(subject, name, config):
        if result.name not in found:
          yield result
        found[result.name] = result.value
    query = suite.sets(self._config, self._source).query
    is_imagenet = corruption_error.is_imagenet(
      subject.encoder, query, self._config.eval.severities
    )
    yield from self._results.once(
      subject.name,
      "corruptions, means",
      files.key(sorted(found.items()), is_imagenet),
      lambda: corruption_error.summary(found, is_imagenet),
    )

  def _one(self, subject, name, config):
    config = copy.deepcopy(config)
    config.eval.evals = (name,)
    images = suite.sets(config, self._source, labelled=name in suite.LABELLED)
    class_names = ()
    if subjects_lib.is_classifier(subject):
      labels = images.query.source.label_names
      class_names = subjects_lib.class_names(config, subject, labels)
      if name in ("accuracy", "corruptions") and not class_names:
        subjects_lib.check_classes(subject, labels)
    fewest = len(images.bank.indices)
    if name == "knn" and max(config.eval.knn_k) > fewest:
      raise errors.UserError(
        f"config.eval.knn_k asks for {max(config.eval.knn_k)} neighbours, but"
        f" there are only {fewest} images; give at most {fewest}"
      )
    about = subject.fingerprint, repr(subject.encoder), facts(images)
    key = files.key(
      *about,
      [each for each in keys.flatten(config) if each[0].startswith("eval.")],
      _contents(config.eval),
      class_names,
      self._precision,
    )

    def compute():
      _log.info("%s: %s", subject.name, name)
      with jax.set_mesh(self._mesh):
        return suite.Evaluation(
          config,
          images,
          subject.encoder,
          mesh_lib.DTYPES[self._precision],
          self._mesh,
          store=self._store,
          strict=True,
          class_names=class_names,
        ).run(subject.variables)

    yield from self._results.once(
      subject.name, name, key, compute, described(config, images, name)
    )


def described(
  config: ml_collections.ConfigDict, images: suite.Sets, name: str
) -> str:
  """The images of an evaluation, in words."""
  train, test = config.data.train, config.data.test
  query, bank = (
    f"{len(each.indices):,} images of {source_in_words(part)}"
    for each, part in (
      (images.query, test if test.kind else train),
      (images.bank, train),
    )
  )
  return query if name in suite.WITHOUT_BANK else f"{query}, against {bank}"


def source_in_words(part: ml_collections.ConfigDict) -> str:
  """Where the images of `config.data.train` or `.test` come from."""
  if part.kind == "mix":
    return f"a mixture of {len(part.parts)} sources"
  where = part.name or part.path or part.kind
  return f"{where} ({part.split})" if part.split else where


def facts(images: suite.Sets) -> list[object]:
  """What identifies the images of an evaluation."""
  return [
    (each.source.fingerprint, tuple(each.indices))
    for each in (images.bank, images.query)
  ]


def _contents(options):
  """Fingerprints of the files and folders that an evaluation's keys name."""
  paths = [
    *(options.attributes, options.class_names, options.buckets),
    *(options.baseline, options.cells),
    *(options.retrieval.ground_truth, options.retrieval.whiten),
    *(each.partition("=")[2] for each in options.shifts),
  ]
  found = []
  for path in map(files.user_path, filter(None, paths)):
    if path.is_file():
      found.append(files.fingerprint(path.read_bytes()))
    elif path.is_dir():
      found.append(sources.Folder(path).fingerprint)
  return found
