"""Instance retrieval and copy detection: mean average precision.

The bank is the database, the test set the queries. Right answers are in a file
(the revisited Oxford and Paris, easy, medium and hard), or all images of the
database with the query's label (Copydays, any copies). Images are resized as a
whole, keeping their proportions.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.data import sources
from seer_jax.data.sources import base
from seer_jax.evals import context, features
from seer_jax.evals.retrieval import average_precision, pooling, views
from seer_jax.evals.retrieval import whitening as whitening_lib
from seer_jax.runtime import errors, files

# Vectors compared with all queries at once.
_CHUNK = 2**15
# Images at once: they are large, and of some shapes there are few.
_BATCH = 16
# Precisions at these ranks are reported.
_AT = (1, 5, 10)
# The revisited protocols: (right, junk), of the kinds in the file.
_PROTOCOLS = {
  "easy": (("easy",), ("junk", "hard")),
  "medium": (("easy", "hard"), ("junk",)),
  "hard": (("hard",), ("junk", "easy")),
}


class Retrieval:
  """Mean average precision, and precision at 1, 5 and 10."""

  def __init__(self, ctx: context.Context):
    """Raises UserError if answers or images to whiten with are missing."""
    self._ctx, self._options = ctx, ctx.config.eval.retrieval
    options = self._options
    self._pooling = pooling.Pooling(
      options.tap, options.pooling, options.levels, options.power
    )
    self._truth = _read_truth(options.ground_truth, ctx.images)
    if not options.ground_truth:
      _need_labels(ctx.images)
    # Pixels and hashes are compared as they are.
    is_whole = getattr(ctx.encoder, "whole_views", False)
    self._white = None if is_whole else _whitening_set(ctx, options.whiten)

  def run(self, variables: Any) -> Iterator[tuple[str, float]]:
    """Yields (`retrieval/mAP`, mean over queries), `retrieval/mP@10`, ...

    With a file of answers, `retrieval/easy/mAP` and so on.
    """
    variables = self._with_whitening(variables)
    extract = self._ctx.extractor(
      ("avgpool",),
      pooling.PooledEncoder(self._ctx.encoder, self._pooling),
      _BATCH,
    )
    query = self._features(extract, variables, self._ctx.images.query)
    query_QxD, index_Q = _in_order(query)
    _check_queries(self._ctx.images.query, index_Q)
    bank = self._features(extract, variables, self._ctx.images.bank)
    for protocol, answers in self._answers(bank, index_Q):
      kept = [q for q, each in enumerate(answers) if len(each.right)]
      if not kept:
        raise errors.UserError(
          f"no query has a right answer{protocol and f' in {protocol}'}; check"
          " the labels of both tables, or config.eval.retrieval.ground_truth"
        )
      answers = [answers[q] for q in kept]
      yield from self._figures(
        f"retrieval/{protocol}" if protocol else "retrieval",
        bank,
        query_QxD[kept],
        index_Q[kept],
        answers,
      )

  def _figures(self, name, bank, query_QxD, index_Q, answers):
    found = average_precision.ranks(
      _similarity(query_QxD), lambda: _chunks(bank), answers
    )
    ap_Q = np.array(
      [
        average_precision.average_precision(rank_P, len(answer.right))
        for rank_P, answer in zip(found, answers, strict=True)
      ]
    )
    yield f"{name}/mAP", float(ap_Q.mean())
    yield from self._ctx.split(f"{name}/mAP", index_Q, ap_Q)
    for k in _AT:
      precisions = [average_precision.precision_at(each, k) for each in found]
      yield f"{name}/mP@{k}", float(np.mean(precisions))

  def _with_whitening(self, variables):
    if self._white is None:
      return variables
    encoder = pooling.PooledEncoder(
      self._ctx.encoder, self._pooling, regional=True
    )
    extract = self._ctx.extractor(("avgpool",), encoder, _BATCH)
    found = self._features(extract, variables, self._white)
    width = _width(self._ctx, variables, self._pooling)
    parts = (each.features_NxD.reshape(-1, width) for each in found)
    return dict(variables) | {
      "whitening": whitening_lib.fit(parts, self._options.components)
    }

  def _features(self, extract, variables, images) -> list[features.Features]:
    """Features of a set, in parts: one for each shape of images."""
    options = self._options
    parts = views.by_shape(
      images, options.longest, options.round_to, self._ctx.encoder
    )
    return [extract.taps_of(variables, part)["avgpool"] for part in parts]

  def _answers(self, bank, index_Q):
    """(protocol, answers of each query) for each protocol."""
    usable = np.concatenate([part.index_N for part in bank])
    if self._truth:
      for protocol, (right, junk) in _PROTOCOLS.items():
        yield (
          protocol,
          [
            average_precision.Answers(
              *(_rows(self._truth[q], kinds) for kinds in (right, junk))
            )
            for q in index_Q
          ],
        )
      return
    database, queries = self._ctx.images.bank, self._ctx.images.query
    rows_of: dict[str, list[int]] = {}
    for row in usable.tolist():
      rows_of.setdefault(_label(database.source, row), []).append(row)
    rows_of.pop("", None)
    row_at = {base.path_of(database.source, r): r for r in usable.tolist()}
    answers = []
    for q in index_Q.tolist():
      # A query that is in the database must not find itself.
      own = row_at.get(base.path_of(queries.source, q), -1)
      right = set(rows_of.get(_label(queries.source, q), ())) - {own}
      answers.append(
        average_precision.Answers(np.array(sorted(right), int), np.array([own]))
      )
    yield "", answers


def _rows(truth, kinds):
  """Rows of the database that are of some kinds."""
  return np.array([row for kind in kinds for row in truth[kind]], int)


def _label(source: sources.Source, index: int) -> str:
  number = source.label_of(index)
  return source.label_names[number] if number >= 0 else ""


def _in_order(parts):
  """(vectors, indices) of all parts, by index."""
  vectors = np.concatenate([np.asarray(part.features_NxD) for part in parts])
  index = np.concatenate([part.index_N for part in parts])
  order = np.argsort(index)
  return vectors[order], index[order]


def _chunks(parts):
  for part in parts:
    for first in range(0, len(part.features_NxD), _CHUNK):
      rows = slice(first, first + _CHUNK)
      yield part.index_N[rows], np.asarray(part.features_NxD[rows])


def _similarity(query_QxD):
  """vectors_RxD -> QxR, on the device."""
  query = jnp.asarray(query_QxD)
  product = jax.jit(
    lambda x_RxD: jnp.matmul(query, x_RxD.T, precision="highest")
  )
  return lambda x_RxD: np.asarray(product(x_RxD))


def _width(ctx, variables, pool):
  """C of the tap."""
  side = ctx.encoder.preprocessing.size
  # A grouped convolution divides the batch among the devices.
  x = jax.ShapeDtypeStruct((ctx.mesh.size, side, side, 3), np.float32)
  found = jax.eval_shape(ctx.encoder.apply, variables, x)
  return found[pool.tap if pool.tap in found else "avgpool"].shape[-1]


def _check_queries(images, index_Q):
  """Refuses queries that cannot be read; of the database some may be."""
  missing = sorted({*images.indices} - {*index_Q.tolist()})
  if missing:
    name = images.source.id_of(missing[0])
    raise errors.UserError(
      f"{len(missing)} of {len(images.indices)} query images cannot be used,"
      f" the first {errors.shown(name)}; correct the list of queries"
    )


def _need_labels(images):
  for which, each in (("database", images.bank), ("queries", images.query)):
    if not each.source.label_names:
      raise errors.UserError(
        f"the images of the {which} have no labels, which tell what is right;"
        " give tables with a label, or config.eval.retrieval.ground_truth"
      )


def _read_truth(path: str, images: context.Sets) -> Sequence[dict[str, list]]:
  """Right answers by query; () without a file.

  Raises UserError if it is malformed, or for other numbers of images.
  """
  if not path:
    return ()
  with errors.reading(path):
    text = files.user_path(path).read_text(errors="replace")
  try:
    found = [
      {kind: [int(row) for row in query[kind]] for kind in _KINDS}
      for query in json.loads(text)["queries"]
    ]
  except (ValueError, KeyError, TypeError) as error:
    raise errors.UserError(
      f"{path} has no right answers ({errors.one_line(error)}); make it with"
      " seer-jax prepare roxford5k"
    ) from None
  queries, database = (len(each.source) for each in (images.query, images.bank))
  largest = max(
    (row for query in found for rows in query.values() for row in rows),
    default=-1,
  )
  if len(found) != queries or largest >= database:
    raise errors.UserError(
      f"{path} is for {len(found)} queries and at least {largest + 1} images,"
      f" but there are {queries} and {database}; give its own tables"
    )
  return found


_KINDS = ("easy", "hard", "junk")


def _whitening_set(ctx, path) -> features.ImageSet | None:
  if not path:
    return None
  kind = "list" if path.endswith((".csv", ".parquet", ".txt")) else "folder"
  source = sources.open_source({"kind": kind, "path": path})
  for which, each in (
    ("database", ctx.images.bank),
    ("queries", ctx.images.query),
  ):
    if source.fingerprint == each.source.fingerprint:
      raise errors.UserError(
        f"config.eval.retrieval.whiten is the {which}; fit the whitening to"
        " other images, so that the test says what new images would get"
      )
  return features.ImageSet(source, range(len(source)))
