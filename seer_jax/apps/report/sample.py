"""Some of a run's images, as its newest checkpoint sees them."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.apps.report.history import History
from seer_jax.data import pipeline
from seer_jax.evals import features, suite
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.weights import load

_log = logging.getLogger(__name__)

# Side of the thumbnails, in pixels.
SIDE = 96
# Largest batch: reports are also made on laptops.
_BATCH = 64
# Images in the bank per query.
_BANK_PER_QUERY = 4
# Seconds for the bank and for the queries: large networks are slow on CPUs.
_PATIENCE = 60


class Seen(NamedTuple):
  """Images, and the network's outputs."""

  thumbs_NxSxSx3: np.ndarray  # Clean views, uint8, at most `SIDE` pixels wide.
  features_NxD: np.ndarray  # Float32, all finite.
  labels_N: np.ndarray  # -1 for none.
  ids_N: np.ndarray  # Names of the images.
  # The nearest of the first head; -1 without prototypes.
  prototype_N: np.ndarray
  score_N: np.ndarray  # Cosine to it.

  def __len__(self) -> int:
    return len(self.ids_N)

  def as_features(self) -> features.Features:
    """For evaluators."""
    return features.Features(self.features_NxD, self.labels_N)

  def as_pixels(self, side: int = 32) -> features.Features:
    """Pixels of small pictures, centered, as features."""
    small = [
      cv2.resize(each, (side, side), interpolation=cv2.INTER_AREA)
      if len(each) > side
      else each
      for each in self.thumbs_NxSxSx3
    ]
    pixels_NxD = np.stack(small).reshape(len(self), -1).astype(np.float32)
    return features.Features(pixels_NxD / 127.5 - 1, self.labels_N)


@dataclasses.dataclass(frozen=True)
class Sample:
  """What pictures are made from."""

  bank: Seen  # Images to choose from.
  query: Seen  # Other images, if there are any.
  label_names: list[str]
  # Unit columns of the first head; None without prototypes.
  prototypes_PxK: np.ndarray | None


def take(history: History, most: int) -> Sample:
  """Runs the newest checkpoint over at most so many of its run's images.

  Raises UserError if the checkpoint or the images cannot be opened here, or no
  feature is finite.
  """
  config = history.config
  source = suite.open_source(config, "train")
  _, images = suite.split(config, source)
  mesh = _mesh(config)
  network, variables = load.load(history.workdir)
  variables = features.stored(variables, mesh)
  queries = max(1, most // (1 + _BANK_PER_QUERY))
  seen = []
  for part, count in ((images.bank, most - queries), (images.query, queries)):
    _log.info("looking at %d images for the report", count)
    some = features.ImageSet(part.source, _evenly(part.indices, count))
    with jax.set_mesh(mesh):
      seen.append(_look(network, variables, some, mesh, config))
  if not all(map(len, seen)):
    raise errors.UserError(
      "the features of no image are finite; the run diverged"
    )
  head = variables["params"].get("prototypes_0")
  kernel_PxK = None
  if head:
    kernel_PxK = np.asarray(head["kernel"], np.float32)
    # The mesh may have padded it.
    kernel_PxK = kernel_PxK[: network.out, : network.prototype_counts[0]]
  return Sample(*seen, list(source.label_names), kernel_PxK)


def _mesh(config):
  """All devices; each holds a part of large networks."""
  parts = config.mesh.fsdp
  return mesh_lib.make(fsdp=parts if jax.device_count() % parts == 0 else 1)


def _evenly(indices, count):
  """At most so many indices, evenly spaced."""
  positions = np.linspace(0, len(indices) - 1, min(count, len(indices)))
  return [indices[at] for at in positions.astype(int).tolist()]


def _look(network, variables, images, mesh, config):
  forward = features.compiled(
    network, _wanted, mesh, mesh_lib.DTYPES[mesh_lib.precision_here()[0]]
  )
  batches = pipeline.clean_batches(
    images.source,
    images.indices,
    images.view_for(network),
    mesh,
    min(config.eval.batch_size, _BATCH),
    config.data.max_pixels,
    config.data.reads,
  )
  parts, until = [], time.monotonic() + _PATIENCE
  for batch in batches:
    parts.append(_rows(batch, forward(variables, batch["image"])))
    if time.monotonic() > until:
      _log.info("%d s are enough; the rest is left out", _PATIENCE)
      break
  columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
  thumbs, found, labels_N, index_N, prototype_N, score_N = columns
  ids_N = np.array([images.source.id_of(int(at)) for at in index_N])
  return Seen(thumbs, found, labels_N, ids_N, prototype_N, score_N)


def _wanted(found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  features_BxD = found["avgpool"].astype(jnp.float32)
  none_B = jnp.full(len(features_BxD), -1)
  has_prototypes = "scores" in found and found["scores"]
  scores_BxK = found["scores"][0] if has_prototypes else None
  return {
    "features": features_BxD,
    "prototype": jnp.argmax(scores_BxK, -1) if has_prototypes else none_B,
    "score": jnp.max(scores_BxK, -1) if has_prototypes else none_B,
  }


def _rows(batch, found):
  """Columns of the usable images of a batch whose features are finite."""
  found = {name: np.asarray(x) for name, x in found.items()}
  good_B = np.asarray(batch["mask"])
  good_B = good_B & np.isfinite(found["features"]).all(1)
  return tuple(
    column[good_B]
    for column in (
      _shrunk(np.asarray(batch["image"])),
      found["features"],
      np.asarray(batch["label"]),
      np.asarray(batch["index"]),
      found["prototype"],
      found["score"],
    )
  )


def _shrunk(views_BxSxSx3):
  if views_BxSxSx3.shape[1] <= SIDE:
    return views_BxSxSx3
  return np.stack(
    [
      cv2.resize(view, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
      for view in views_BxSxSx3
    ]
  )
