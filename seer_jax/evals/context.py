"""What evaluators are made from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from seer_jax.evals import features
from seer_jax.evals.groups import rates


class Sets(NamedTuple):
  """Image sets of an evaluation."""

  bank: features.ImageSet  # Training images, whose labels may be learned from.
  query: features.ImageSet  # Images to test on.
  choice: features.ImageSet | None = None  # Held out, to choose a head by.


class Context(NamedTuple):
  """An encoder, the images to evaluate it on, and how."""

  config: ml_collections.ConfigDict
  images: Sets
  encoder: features.Encoder
  mesh: jax.sharding.Mesh
  extract: features.Extractor  # Of `config.eval.taps`; shared.
  options: dict[str, Any]  # Of any pass over images: batch size, dtype, ...
  store: features.Store | None  # Keeps features between processes.
  strict: bool  # Whether features that are not finite are an error.
  split: rates.Split  # Of figures of the test images.
  class_names: Sequence[str]  # Of the encoder's classes; () if unknown.

  def extractor(
    self,
    taps: Sequence[str],
    encoder: features.Encoder | None = None,
    batch_size: int = 0,
  ) -> features.Extractor:
    """Another extractor with the same options."""
    options = dict(self.options)
    if batch_size:
      options["batch_size"] = min(batch_size, options["batch_size"])
    return features.Extractor(
      encoder or self.encoder,
      self.mesh,
      taps=taps,
      store=self.store,
      strict=self.strict,
      **options,
    )
