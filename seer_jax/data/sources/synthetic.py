"""Images that need no files: handwritten digits, and noise."""

from typing import ClassVar

import cv2
import numpy as np

from seer_jax.data.storage.example import Example, check_index
from seer_jax.runtime import errors


class Digits:
  """The 1,797 handwritten 8x8 digits of scikit-learn, as grey PNGs.

  Real images with real labels, without a download. Of one fixed permutation,
  'train' is the first 1,297 images, 'test' the other 500, 'all' both. Raises
  UserError if `split` is another.
  """

  label_names = tuple("0123456789")

  _SPLITS: ClassVar = {
    "train": slice(0, 1297),
    "test": slice(1297, 1797),
    "all": slice(0, 1797),
  }

  def __init__(self, split: str):
    if split not in self._SPLITS:
      raise errors.UserError(
        f"no such split of digits: {split!r}; use {', '.join(self._SPLITS)}"
      )
    from sklearn import datasets  # Slow to import.

    digits = datasets.load_digits()
    self._split = split
    self.fingerprint = f"digits/{split}"
    self._numbers = np.random.default_rng(0).permutation(1797)[
      self._SPLITS[split]
    ]
    # scikit-learn's values go from 0 to 16.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    self._images_Nx8x8 = grey[self._numbers]
    self._labels = digits.target[self._numbers]

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> Example:
    check_index(i, len(self))
    image = _encode(".png", self._images_Nx8x8[i])
    return Example(image=image, label=self.label_of(i), id=self.id_of(i))

  def id_of(self, i: int) -> str:
    return f"digits/{self._numbers[i]:04d}"

  def label_of(self, i: int) -> int:
    return int(self._labels[i])

  def __repr__(self) -> str:
    return f"Digits({self._split!r})"


class Synthetic:
  """Smooth random pictures made on access, for measurements without data.

  Low-frequency noise, because the cost of decoding a JPEG grows with its
  detail, and white noise has more than any photograph. Labels (`i % classes`)
  do not depend on the pixels.
  """

  def __init__(self, size: int = 4096, side: int = 256, classes: int = 10):
    self._size, self._side, self._classes = size, side, classes
    self.label_names = tuple(str(label) for label in range(classes))
    self.fingerprint = repr(self)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, i: int) -> Example:
    check_index(i, len(self))
    noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    side = (self._side, self._side)
    image = cv2.resize(noise, side, interpolation=cv2.INTER_CUBIC)
    return Example(
      image=_encode(".jpg", image), label=self.label_of(i), id=self.id_of(i)
    )

  def id_of(self, i: int) -> str:
    return f"synthetic/{i:06d}"

  def label_of(self, i: int) -> int:
    return int(i % self._classes)

  def __repr__(self) -> str:
    return f"Synthetic({self._size}, {self._side}, {self._classes})"


def _encode(extension, image):
  return cv2.imencode(extension, image)[1].tobytes()
