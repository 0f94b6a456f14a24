"""Whole images in their own proportions, in sets of one shape each."""

import concurrent.futures
import dataclasses
import logging

import numpy as np

from seer_jax.data import crops
from seer_jax.data.storage import retry
from seer_jax.evals import features
from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

# Headers read at once.
_READS = 16


@dataclasses.dataclass(frozen=True)
class Whole:
  """The whole image, resized to a height and width."""

  shape: tuple[int, int]
  interpolation: str

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    del index
    return crops.resize(image_HxWx3, *self.shape, self.interpolation)


def by_shape(
  images: features.ImageSet,
  longest: int,
  round_to: int,
  encoder: features.Encoder,
) -> list[features.ImageSet]:
  """The images in sets of one shape, so that batches have one.

  Unusable images are left out. An encoder without maps, such as raw pixels or
  hashes, gets its own view of all. Raises UserError if no image is usable.

  Args:
    longest: pixels of the longer side.
    round_to: what both sides are rounded to, which changes the proportions
      by at most half of it; 1 keeps them.
  """
  if getattr(encoder, "whole_views", False):
    return [images]
  by: dict[tuple[int, int], list[int]] = {}
  with concurrent.futures.ThreadPoolExecutor(_READS) as pool:
    sizes = list(
      pool.map(lambda index: _size(images.source, index), images.indices)
    )
  for index, size in zip(images.indices, sizes, strict=True):
    if size:
      by.setdefault(fitted(*size, longest, round_to), []).append(index)
  lost = sizes.count(None)
  if lost and by:
    _log.warning("%d of %d images cannot be read", lost, len(sizes))
  if not by:
    raise errors.UserError(
      f"none of the {len(images.indices)} images is usable; check the paths of"
      f" {images.source!r}"
    )
  how = encoder.preprocessing.interpolation
  how = "bilinear" if how == "area" else how
  return [
    features.ImageSet(images.source, indices, Whole(shape, how))
    for shape, indices in sorted(by.items())
  ]


def fitted(
  height: int, width: int, longest: int, round_to: int
) -> tuple[int, int]:
  """The shape of an image whose longer side becomes `longest` pixels."""
  scale = longest / max(height, width)
  rounded = (
    round_to * max(1, round(side * scale / round_to))
    for side in (height, width)
  )
  return tuple(rounded)


def _size(source, index):
  """Upright height and width; None for an unusable image."""
  try:
    data = retry.read(source, index)["image"]
  except (OSError, errors.BadImage):
    return None
  return crops.upright_size(data)
