"""The trunk over a set of images: clean views in, features and labels out."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from seer_jax import augment, pipeline, sources, state, tasks
from seer_jax import mesh as mesh_lib


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

  Keeps what it last computed of each set, so that several evaluators at one
  step pay for one pass.
  """

  def __init__(
    self,
    task: tasks.SwAV,
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
  ):
    self._config, self._mesh = config, mesh
    self._kept: dict[int, tuple[int, Features]] = {}
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
    step = int(now.step)
    kept_step, kept = self._kept.get(id(images), (None, None))
    if kept_step == step:
      return kept
    features, labels = [], []
    batches = pipeline.clean_batches(
      images.source, images.indices, self._config, self._mesh
    )
    for batch in batches:
      feature_BxD = self._forward(now.params, now.batch_stats, batch["image"])
      mask_B = mesh_lib.to_host(batch["mask"])
      features.append(np.asarray(feature_BxD)[mask_B])
      labels.append(mesh_lib.to_host(batch["label"])[mask_B])
    found = Features(np.concatenate(features), np.concatenate(labels))
    self._kept[id(images)] = (step, found)
    return found
