"""Where images come from: a folder, TFDS, handwritten digits, or noise.

A source hands out encoded bytes and decodes nothing, so that it is cheap to
open in every worker process and a broken image is somebody else's problem.
"""

import collections
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import ClassVar, Protocol, TypedDict

import cv2
import numpy as np

from seer_jax import errors, tfds_source

EXTENSIONS = (
  *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff"),
  *("gif", "ppm", "pgm", "pbm", "jp2", "avif"),
)
KINDS = ("folder", "tfds", "digits", "synthetic")
UNLABELLED = -1


class Example(TypedDict):
  """One encoded image; `label` indexes `label_names`, or is -1: unlabelled."""

  image: bytes
  label: int
  id: str


class Source(Protocol):
  """Random access to examples, in an order that never changes.

  Implementations are picklable and cheap to open. `label_names` is empty when
  nothing is labelled. Indices run from 0; others raise IndexError. `id_of` and
  `label_of` decode no image, and read none where the format allows it.
  `fingerprint` tells two sets of images apart.
  """

  label_names: tuple[str, ...]
  fingerprint: str

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def id_of(self, i: int) -> str: ...

  def label_of(self, i: int) -> int: ...


class Folder:
  """The image files under a folder, at any depth, sorted by relative path.

  Files are recognised by extension (`EXTENSIONS`, in either case); hidden files
  and folders are skipped, links to folders are followed. The label is the
  first-level sub-folder an image lies in, numbered by sorted name; images
  directly in `path` have none. The id is the relative path, with `/`.

  Reading a file that has gone or is locked raises OSError; an empty one is b"".

  Raises:
    UserError: `path` is missing, not a folder, unreadable or without images.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._root = os.fsencode(pathlib.Path(path).expanduser().absolute())
    paths = _find_images(self._root)

    # One blob and two arrays: a million str objects would cost each worker
    # process seconds of unpickling and some 100 MB.
    self._paths = b"".join(paths)
    self._offsets = np.cumsum([0, *map(len, paths)], dtype=np.int64)
    folders = [path.rpartition(b"/")[0].partition(b"/")[0] for path in paths]
    names = sorted(set(folders) - {b""})
    label_of = {b"": UNLABELLED} | {name: i for i, name in enumerate(names)}
    self._labels = np.array([label_of[name] for name in folders], np.int32)
    self.label_names = tuple(map(os.fsdecode, names))
    self.fingerprint = hashlib.sha256(b"\0".join(paths)).hexdigest()

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, i: int) -> Example:
    with open(os.path.join(self._root, self._path_of(i)), "rb") as file:
      image = file.read()
    return Example(image=image, label=self.label_of(i), id=self.id_of(i))

  def id_of(self, i: int) -> str:
    return os.fsdecode(self._path_of(i))

  def label_of(self, i: int) -> int:
    return int(self._labels[i])

  def _path_of(self, i):
    _check_index(i, len(self))
    return self._paths[self._offsets[i] : self._offsets[i + 1]]

  def __repr__(self) -> str:
    return f"Folder({os.fsdecode(self._root)!r}, {len(self)} images)"


class Digits:
  """The 1,797 handwritten 8x8 digits inside scikit-learn, as grey PNGs.

  Real images with real labels, without a download. The splits are parts of one
  fixed permutation: 'train' its first 1,297, 'test' the other 500, 'all' both.

  Raises:
    UserError: `split` is none of these, or scikit-learn is not installed.
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
        f"no such split of digits: {split!r}; use one of "
        + ", ".join(self._SPLITS)
      )
    try:
      from sklearn import datasets
    except ImportError:
      raise errors.UserError(
        "the digits are a part of scikit-learn, which is not installed; "
        "run: pip install scikit-learn"
      ) from None
    digits = datasets.load_digits()
    self._split = split
    self.fingerprint = f"digits/{split}"
    self._numbers = np.random.default_rng(0).permutation(1797)[
      self._SPLITS[split]
    ]
    # Ink is counted in 0..16, sixteen being a fully covered cell.
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    self._images_Nx8x8 = grey[self._numbers]
    self._labels = digits.target[self._numbers]

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> Example:
    _check_index(i, len(self))
    image = _encode(".png", self._images_Nx8x8[i])
    return Example(image=image, label=self.label_of(i), id=self.id_of(i))

  def id_of(self, i: int) -> str:
    return f"digits/{self._numbers[i]:04d}"

  def label_of(self, i: int) -> int:
    return int(self._labels[i])

  def __repr__(self) -> str:
    return f"Digits({self._split!r})"


class Synthetic:
  """Smooth random pictures made on access: for measuring without data.

  Low-frequency noise, because the cost of decoding a JPEG grows with its
  detail, and white noise has more than any photograph. Labels (`i % classes`)
  say nothing about the pixels.
  """

  def __init__(self, size: int = 4096, side: int = 256, classes: int = 10):
    self._size, self._side, self._classes = size, side, classes
    self.label_names = tuple(str(label) for label in range(classes))
    self.fingerprint = repr(self)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, i: int) -> Example:
    _check_index(i, len(self))
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


def open_source(kind: str, path: str, split: str, name: str = "") -> Source:
  """Opens the source a config names.

  Args:
    kind: one of `KINDS`.
    path: the folder of images; for TFDS, its data_dir ('' for the default).
    split: for a folder, its sub-folder to read ('' for the folder itself); for
      TFDS, as in `Tfds`; for digits, as in `Digits` ('' for all); synthetic
      images have none.
    name: the dataset of TFDS, as in `Tfds`.

  Raises:
    UserError: the kind is unknown or its source cannot be opened.
  """
  match kind:
    case "folder":
      if not path:
        raise errors.UserError(
          "no folder given: path is ''; set it to a folder of images"
        )
      return Folder(pathlib.Path(path, split))
    case "tfds":
      return tfds_source.Tfds(name, path, split)
    case "digits":
      return Digits(split or "all")
    case "synthetic":
      return Synthetic()
  raise errors.UserError(
    f"no such kind of source: {kind!r}; use one of {', '.join(KINDS)}"
  )


def _find_images(root: bytes) -> list[bytes]:
  """Relative paths of the images under `root`, sorted; at least one."""
  name = os.fsdecode(root)
  if not os.path.exists(root):
    raise errors.UserError(
      f"no such folder: {name}; give the path of a folder of images"
    )
  if not os.path.isdir(root):
    raise errors.UserError(
      f"not a folder but a file: {name}; give the folder that holds it"
    )
  images = []
  others = collections.Counter()
  for path in _walk(root, b"", ()):
    extension = os.path.splitext(path)[1][1:].lower().decode("ascii", "replace")
    if extension in EXTENSIONS:
      images.append(path)
    else:
      others[extension] += 1
  if not images:
    raise errors.UserError(
      f"no images in {name}: found {_count_files(others)}; "
      f"recognised extensions are {' '.join(EXTENSIONS)}"
    )
  # Directory order is the file system's whim. Bytes sort alike in all locales.
  return sorted(images)


def _walk(
  root: bytes, folder: bytes, parents: tuple[tuple[int, int], ...]
) -> Iterator[bytes]:
  """Relative paths of the files that are not hidden, in no order."""
  path = os.path.join(root, folder)
  try:
    status = os.stat(path)
    entries = list(os.scandir(path))
  except OSError as error:
    raise errors.UserError(
      f"cannot read folder {os.fsdecode(path)}: {error.strerror}; "
      "mend its permissions or move it elsewhere"
    ) from None
  # A link may lead back to a folder we are inside of; elsewhere, seeing one
  # folder under two names is what the user asked for.
  identity = (status.st_dev, status.st_ino)
  if identity in parents:
    return
  for entry in entries:
    if entry.name.startswith(b"."):
      continue
    relative = folder + entry.name
    if _is_folder(entry):
      yield from _walk(root, relative + b"/", (*parents, identity))
    else:
      yield relative


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # A link to itself; reading it as a file will say so.
    return False


def _count_files(counts: collections.Counter[str]) -> str:
  """`{"txt": 3, "": 1}` -> '4 other files (3 txt, 1 without extension)'."""
  if not counts:
    return "no files at all"
  shown = [
    f"{count} {extension or 'without extension'}"
    for extension, count in counts.most_common(5)
  ]
  more = ["..."] if len(counts) > len(shown) else []
  return f"{counts.total()} other files ({', '.join(shown + more)})"


def _encode(extension: str, image: np.ndarray) -> bytes:
  return cv2.imencode(extension, image)[1].tobytes()


def _check_index(i: int, size: int) -> None:
  if not 0 <= i < size:
    raise IndexError(f"index {i} is outside 0..{size - 1}")
