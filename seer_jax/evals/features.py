"""The trunk over a set of images: clean views in, features and labels out."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from seer_jax.data import pipeline, sources
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib
from seer_jax.tasks import augment, state, swav

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Features:
  """Pooled trunk features of a set of images.

  Attributes:
    features_NxD: float32.
    labels_N: -1 where there is none.
  """

  features_NxD: np.ndarray
  labels_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Chosen images of a source."""

  source: sources.Source
  indices: Sequence[int]


class Extractor:
  """Runs a task's trunk in evaluation mode over image sets.

  Keeps what it computed of each set until it is told to forget, so that several
  evaluators of one state pay for one pass.
  """

  def __init__(
    self,
    task: swav.SwAV,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    between: Callable[[], None] = lambda: None,
  ):
    """`between` is called before each batch; what it raises ends the pass."""
    self._config, self._mesh, self.between = config, mesh, between
    self._kept: dict[int, Features] = {}
    self._told: set[tuple[int, int]] = set()
    self._forward: Callable[..., jax.Array] = jax.jit(
      lambda params, batch_stats, image_BxHxWx3: task.model.apply(
        {"params": params, "batch_stats": batch_stats},
        augment.normalize(
          augment.to_float(image_BxHxWx3), config.augment, task.dtype
        ),
        method="features",
      ),
      out_shardings=mesh_lib.replicated(mesh),
    )

  def __call__(self, now: state.State, images: ImageSet) -> Features:
    """Features of every usable image of the set, in order."""
    if id(images) not in self._kept:
      self._kept[id(images)] = self.of(now.params, now.batch_stats, images)
    return self._kept[id(images)]

  def forget(self) -> None:
    """The next state is another."""
    self._kept = {}

  def of(self, params: Any, batch_stats: Any, images: ImageSet) -> Features:
    """The same for parameters and statistics of your own, not kept."""
    params = mesh_lib.store(params, "params", self._mesh)
    batch_stats = mesh_lib.store(batch_stats, "batch_stats", self._mesh)
    features, labels = [], []
    batches = pipeline.clean_batches(
      images.source, images.indices, self._config, self._mesh
    )
    for batch in batches:
      self.between()
      feature_BxD = self._forward(params, batch_stats, batch["image"])
      mask_B = mesh_lib.to_host(batch["mask"])
      features.append(np.asarray(feature_BxD)[mask_B])
      labels.append(mesh_lib.to_host(batch["label"])[mask_B])
      index_B = mesh_lib.to_host(batch["index"])
      self._tell_unusable(images.source, index_B[~mask_B])
    if not any(map(len, features)):
      raise errors.UserError(
        f"none of the {len(images.indices)} images to evaluate is usable; look"
        " at the warnings above"
      )
    return Features(np.concatenate(features), np.concatenate(labels))

  def _tell_unusable(self, source, indices):
    for index in indices.tolist():
      if index >= 0 and (id(source), index) not in self._told:
        self._told.add((id(source), index))
        name, reason = pipeline.describe(
          source, index, self._config.data.max_pixels
        )
        _log.warning("left out of evaluation: %r: %s", name, reason)
