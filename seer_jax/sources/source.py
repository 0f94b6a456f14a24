"""What a source of images is."""

from typing import Protocol, TypedDict

EXTENSIONS = (
  *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff"),
  *("gif", "ppm", "pgm", "pbm", "jp2", "avif"),
)
UNLABELLED = -1


class Example(TypedDict):
  """One encoded image; `label` indexes `label_names`, or is -1: unlabelled."""

  image: bytes
  label: int
  id: str


class Source(Protocol):
  """Random access to examples, in an order that never changes.

  A source hands out encoded bytes and decodes nothing, so that it is cheap to
  open in every worker process and a broken image is somebody else's problem.

  Implementations are picklable and cheap to open. `label_names` is empty when
  nothing is labelled. Indices run from 0; others raise IndexError. `id_of` and
  `label_of` decode no image, and read none where the format allows it. Reading
  what cannot be read raises OSError. `fingerprint` tells two sets of images
  apart.
  """

  label_names: tuple[str, ...]
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def id_of(self, i: int) -> str: ...

  def label_of(self, i: int) -> int: ...


def check_index(i: int, size: int) -> None:
  """Raises IndexError outside 0..size - 1."""
  if not 0 <= i < size:
    raise IndexError(f"index {i} is outside 0..{size - 1}")
