"""How images are prepared for weights.

Weights expect a size, a filter and a normalization. With others they still give
answers, only worse, so the preprocessing belongs to them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from seer_jax.data import crops
from seer_jax.runtime import errors, files

# Images with more pixels are refused, if no config sets the limit.
MAX_PIXELS = 2**28


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The shorter side to `resize`, the central square of `size`, normalized."""

  resize: int = 256  # Pixels of the shorter side.
  size: int = 224  # Pixels of the square's side, S.
  interpolation: str = "bilinear"  # Or "bicubic", as in PIL; or "area".
  # Per channel, for pixels from 0 to 1.
  mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  std: tuple[float, float, float] = (0.229, 0.224, 0.225)

  def __call__(self, images: Sequence[Any] | Any) -> np.ndarray:
    """Images to `x_NxSxSx3`, float32, the network's input.

    Takes one or several: paths, encoded bytes, arrays HxWx3 of uint8, or PIL
    images. Raises UserError if one is not an image.
    """
    if isinstance(images, (str, bytes, pathlib.Path)) or not isinstance(
      images, Sequence
    ):
      images = [images]
    views_NxSxSx3 = np.stack([self.view(image) for image in images])
    return self.normalize(views_NxSxSx3)

  def view(self, image: Any) -> np.ndarray:
    """The central square of an image, SxSx3, uint8."""
    return crops.center_crop(
      _pixels(image), self.resize, self.size, self.interpolation
    )

  def normalize(self, x: Any) -> Any:
    """Pixels from 0 to 255 to normalized floats; NumPy or JAX."""
    return normalize(x / np.float32(255), self.mean, self.std)


class View(Protocol):
  """How an evaluation sees the images of a set.

  A frozen dataclass: its `repr` tells it from other views, in the cache of
  features too.
  """

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width of every result."""
    ...

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    """The network's input, uint8, of a decoded image and its index."""
    ...


@dataclasses.dataclass(frozen=True)
class CleanView:
  """The view that belongs to weights: `Preprocessing.view`."""

  preprocessing: Preprocessing

  @property
  def shape(self) -> tuple[int, int]:
    return self.preprocessing.size, self.preprocessing.size

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    del index
    return self.preprocessing.view(image_HxWx3)


def normalize(x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
  """Pixels from 0 to 1 to normalized floats, by channel; NumPy or JAX."""
  return (x - np.float32(mean)) / np.float32(std)


def _pixels(image):
  if isinstance(image, (str, pathlib.Path)):
    with errors.reading(f"the image {image}"):
      image = files.user_path(str(image)).read_bytes()
  if isinstance(image, bytes):
    try:
      return crops.decode(image, MAX_PIXELS)
    except errors.BadImage as error:
      raise errors.UserError(f"cannot decode an image: {error}") from error
  if hasattr(image, "convert"):
    image = image.convert("RGB")
  pixels = np.asarray(image)
  if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
    raise errors.UserError(
      f"an image is {pixels.dtype} of shape {pixels.shape}; it must be an array"
      " HxWx3 of uint8"
    )
  return pixels
