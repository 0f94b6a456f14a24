"""An encoder over a set of images: clean views in, features and labels out."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from seer_jax.data import pipeline, preprocessing, sources
from seer_jax.runtime import errors
from seer_jax.runtime import mesh as mesh_lib

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of a set of images; only those that are finite.

  Attributes:
    features_NxD: float32.
    labels_N: -1 where there is none.
    nonfinite: share of the images whose features are not; they are left out.
  """

  features_NxD: np.ndarray
  labels_N: np.ndarray
  nonfinite: float = 0.0


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Chosen images of a source."""

  source: sources.Source
  indices: Sequence[int]


class Encoder(Protocol):
  """Anything that turns images into features, and how it wants them.

  `models.encoder.Encoder` is one: that of a task, or what `seer_jax.load`
  returns for a run, an export or a file of another project.
  """

  preprocessing: preprocessing.Preprocessing

  def apply(
    self, variables: Any, x_NxHxWx3: jax.Array
  ) -> Mapping[str, jax.Array]:
    """Normalised float images to taps; `avgpool`, NxD, is the features."""
    ...


class Extractor:
  """Runs an encoder over image sets, with the preprocessing it wants.

      model, variables = seer_jax.load("regnety_320.seer")
      extract = Extractor(model, mesh)
      found = extract.of(variables, ImageSet(source, range(1000)))

  Calling it keeps what it computed of each set until it is told to forget, so
  that several evaluators of the same variables pay for one pass.
  """

  def __init__(
    self,
    encoder: Encoder,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int = 64,
    max_pixels: int = preprocessing.MAX_PIXELS,
    dtype: Any = np.float32,
    between: Callable[[], None] = lambda: None,
  ):
    """Nothing is computed yet.

    Args:
      encoder: whose features are wanted.
      mesh: where it runs.
      batch_size: images at once, over all devices.
      max_pixels: as for `crops.decode`.
      dtype: what the network computes in.
      between: called before each batch; what it raises ends the pass.
    """
    self._preprocessing, self._mesh = encoder.preprocessing, mesh
    self._batch_size, self._max_pixels = batch_size, max_pixels
    self.between = between
    self._kept: dict[int, Features] = {}
    self._told: set[tuple[int, int]] = set()

    def forward(variables, pixels_BxSxSx3):
      x = encoder.preprocessing.normalize(pixels_BxSxSx3.astype(np.float32))
      return encoder.apply(variables, x.astype(dtype))["avgpool"]

    self._forward: Callable[..., jax.Array] = jax.jit(
      forward, out_shardings=mesh_lib.replicated(mesh)
    )

  def __call__(self, variables: Any, images: ImageSet) -> Features:
    """Finite features of the usable images of the set, in order."""
    if id(images) not in self._kept:
      self._kept[id(images)] = self.of(variables, images)
    return self._kept[id(images)]

  def forget(self) -> None:
    """The next variables are others."""
    self._kept = {}

  def of(self, variables: Any, images: ImageSet) -> Features:
    """The same, not kept."""
    variables = {
      kind: mesh_lib.store(tree, kind, self._mesh)
      for kind, tree in variables.items()
    }
    features, labels = [], []
    batches = pipeline.clean_batches(
      images.source,
      images.indices,
      self._preprocessing,
      self._mesh,
      self._batch_size,
      self._max_pixels,
    )
    for batch in batches:
      self.between()
      feature_BxD = self._forward(variables, batch["image"])
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
    return _finite(np.concatenate(features), np.concatenate(labels))

  def _tell_unusable(self, source, indices):
    for index in indices.tolist():
      if index >= 0 and (id(source), index) not in self._told:
        self._told.add((id(source), index))
        name, reason = pipeline.describe(source, index, self._max_pixels)
        _log.warning("left out of evaluation: %r: %s", name, reason)


def _finite(features_NxD, labels_N):
  """Leaves out rows that are not finite, of which one would spoil every sum."""
  finite_N = np.isfinite(features_NxD).all(1)
  if finite_N.all():
    return Features(features_NxD, labels_N)
  share = 1 - float(finite_N.mean())
  _log.warning(
    "the features of %d of %d images are not finite; they are left out of the"
    " evaluation",
    (~finite_N).sum(),
    len(finite_N),
  )
  return Features(features_NxD[finite_N], labels_N[finite_N], share)
