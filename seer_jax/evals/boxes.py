"""Views of a part of each image: a face, or a person."""

import dataclasses

import ml_collections
import numpy as np

from seer_jax.data import crops, preprocessing
from seer_jax.data.published import rows
from seer_jax.evals import features
from seer_jax.evals.groups import rates
from seer_jax.runtime import errors, files


@dataclasses.dataclass(frozen=True)
class Boxed:
  """The view of a box of the image, or the box resized to its square."""

  preprocessing: preprocessing.Preprocessing
  boxes_Nx4: np.ndarray = dataclasses.field(repr=False, compare=False)
  first: int  # Index of the image that the first row is of.
  squashed: bool
  fingerprint: str  # Of the boxes.

  @property
  def shape(self) -> tuple[int, int]:
    return self.preprocessing.size, self.preprocessing.size

  def __call__(self, image_HxWx3: np.ndarray, index: int) -> np.ndarray:
    height, width = image_HxWx3.shape[:2]
    x0, y0, x1, y1 = np.rint(self.boxes_Nx4[index - self.first]).astype(int)
    # At least a pixel, inside the image.
    left, top = np.clip((x0, y0), 0, (width - 1, height - 1))
    right, bottom = max(left + 1, x1), max(top + 1, y1)
    part_HxWx3 = np.ascontiguousarray(image_HxWx3[top:bottom, left:right])
    if self.squashed:
      how = self.preprocessing.interpolation
      return crops.resize(part_HxWx3, *self.shape, how)
    return self.preprocessing.view(part_HxWx3)


def of_config(
  config: ml_collections.ConfigDict,
  images: features.ImageSet,
  encoder: features.Encoder,
) -> features.ImageSet:
  """The images, seen through the boxes of their table if it has any.

  With `eval.published_views` a box is resized to the square, as VISSL does for
  MIAP. Raises UserError if the table has boxes, but not for an image.
  """
  table = rates.table_of(config, images, needed=False)
  if table is None or not set(rows.BOX) <= set(table.names):
    return images
  texts = np.array([table.of(name, images.indices) for name in rows.BOX]).T
  without = np.flatnonzero((texts == "").any(1))
  if len(without):
    name = images.source.id_of(images.indices[without[0]])
    raise errors.UserError(
      f"{len(without)} of {len(texts)} images have no box (x0, y0, x1, y1) in"
      f" their table, the first {errors.shown(name)}; complete or remove their"
      " rows"
    )
  columns = [table.numbers(name, images.indices) for name in rows.BOX]
  first = min(images.indices)
  boxes_Nx4 = np.zeros((max(images.indices) - first + 1, 4))
  boxes_Nx4[np.asarray(images.indices) - first] = np.array(columns).T
  view = Boxed(
    encoder.preprocessing,
    boxes_Nx4,
    first,
    config.eval.published_views,
    files.fingerprint(boxes_Nx4.tobytes()),
  )
  return features.ImageSet(images.source, images.indices, view)
