"""Host pixels: decode, random-resized and multi-crop, centre crop.

Bytes and NumPy, one image at a time; what is dear and needs no decoding (flip,
colour, blur) happens on the device, in `augment.py`. Never calls JAX.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from seer_jax import errors

# The pipeline runs one process or thread a core. OpenCV's own pool inside each
# of them would only make cores^2 threads fight, and hangs after a fork.
cv2.setNumThreads(0)
# A broken image is reported once, by name, through BadImage.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # The last chunk is empty: its CRC is constant.
_START_OF_SCAN = 0xDA
# SOF0..SOF15 less the three codes among them that mean other things.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode(data: bytes, max_pixels: int) -> np.ndarray:
  """Decodes an image of any usual format to `image_HxWx3`, uint8 RGB.

  Grey and palette images become RGB, 16 bits become 8, an animation gives its
  first frame, and an EXIF orientation is applied. Alpha is dropped, leaving the
  colours stored under it, as PIL's `convert("RGB")` does (except that libtiff
  blends a TIFF onto black).

  Args:
    data: the encoded file.
    max_pixels: largest height x width accepted. Formats known to `image_size`
      are refused before any pixel is decoded, others afterwards; beyond 2^30
      pixels OpenCV itself declines.

  Raises:
    BadImage: empty, cut short, damaged, too large, or not an image.
  """
  if not data:
    raise errors.BadImage("empty file")
  size = image_size(data)
  if size is not None:
    _check_pixels(*size, max_pixels)
  # OpenCV refuses this too, but not before libpng has complained on stderr,
  # which nothing in OpenCV can silence.
  if data.startswith(_PNG) and _PNG_END not in data:
    raise errors.BadImage("cut short")
  try:
    image_HxWx3 = cv2.imdecode(
      np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
    )
  except cv2.error as error:
    raise errors.BadImage(f"cannot be decoded: {error.err}") from None
  if image_HxWx3 is None:
    raise errors.BadImage("damaged or cut short" if size else "not an image")
  _check_pixels(*image_HxWx3.shape[:2], max_pixels)
  return image_HxWx3


def image_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) as stored, from the header of `data`; None if unknown.

  Reads JPEG, PNG, GIF, BMP and WebP, decodes nothing, and ignores any EXIF
  orientation. The first 64 KiB of a file are almost always enough.
  """
  readers = {
    b"\xff\xd8": _jpeg_size,
    _PNG: _png_size,
    b"GIF8": _gif_size,
    b"BM": _bmp_size,
    b"RIFF": _webp_size,
  }
  try:
    for magic, size in readers.items():
      if data.startswith(magic):
        return size(data)
  except struct.error:  # The header itself is cut short.
    pass
  return None


def random_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
  """Draws the box of a random-resized crop: (top, left, h, w) in pixels.

  Its share of the area is uniform in `scale` and its aspect ratio w / h
  log-uniform in `ratio`. Should ten draws all stick out of the image, the
  largest central box within `ratio` is taken. (Szegedy et al. 2014,
  https://arxiv.org/abs/1409.4842, with torchvision's fallback.)
  """
  log_ratio = math.log(ratio[0]), math.log(ratio[1])
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(*log_ratio))
    h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if 0 < h <= height and 0 < w <= width:
      top = rng.integers(height - h, endpoint=True)
      left = rng.integers(width - w, endpoint=True)
      return int(top), int(left), h, w
  h = min(height, max(1, round(width / ratio[0])))
  w = min(width, max(1, round(height * ratio[1])))
  return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
  image_HxWx3: np.ndarray,
  rng: np.random.Generator,
  size: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> np.ndarray:
  """Cuts a `random_box` and resizes it to `crop_SxSx3`, S = size."""
  top, left, h, w = random_box(rng, *image_HxWx3.shape[:2], scale, ratio)
  return _resize(image_HxWx3[top : top + h, left : left + w], size)


@dataclasses.dataclass(frozen=True)
class CropGroup:
  """`count` crops of side `size`, each covering a `scale` share of the area."""

  count: int
  size: int
  scale: tuple[float, float]


def multi_crop(
  image_HxWx3: np.ndarray,
  rng: np.random.Generator,
  groups: Sequence[CropGroup],
  ratio: tuple[float, float],
) -> tuple[np.ndarray, ...]:
  """SwAV's multi-crop: for each group its `crops_VxSxSx3`, uint8.

  Few large views and many small ones (https://arxiv.org/abs/2006.09882, 3.3),
  all drawn in order from `rng`: same generator state, same crops.
  """
  views = []
  for group in groups:
    shape = (group.count, group.size, group.size, 3)
    crops_VxSxSx3 = np.empty(shape, np.uint8)
    for v in range(group.count):
      crops_VxSxSx3[v] = random_resized_crop(
        image_HxWx3, rng, group.size, group.scale, ratio
      )
    views.append(crops_VxSxSx3)
  return tuple(views)


def center_crop(image_HxWx3: np.ndarray, resize: int, size: int) -> np.ndarray:
  """The evaluation view: shorter side to `resize`, then the central square.

  Returns `crop_SxSx3`, S = size.

  Raises:
    ValueError: `size` is larger than `resize`.
  """
  if size > resize:
    raise ValueError(f"cannot cut {size} pixels out of {resize}: size > resize")
  # Only the central square can be seen afterwards. Resizing the rest would be
  # waste, and for an image one pixel high it would not fit in memory.
  height, width = image_HxWx3.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = _resize(image_HxWx3[top : top + side, left : left + side], resize)
  margin = (resize - size) // 2
  return square[margin : margin + size, margin : margin + size]


def _resize(image_HxWx3: np.ndarray, size: int) -> np.ndarray:
  # INTER_LINEAR looks at the four nearest pixels however far apart the samples
  # lie, so shrinking aliases; PIL's bilinear, with which SwAV was trained,
  # widens its filter by the factor instead. INTER_AREA averages as that does.
  shrinks = min(image_HxWx3.shape[:2]) >= size
  return cv2.resize(
    image_HxWx3,
    (size, size),
    interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
  )


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise errors.BadImage(
      f"too large: {height} x {width} is more than {max_pixels} pixels"
    )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  for marker, start in _jpeg_segments(data):
    if marker in _START_OF_FRAME:
      return struct.unpack_from(">HH", data, start + 1)
  return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
  """(marker, where its payload starts) up to the first scan."""
  position = data.find(b"\xff", 2)
  while 0 <= position < len(data) - 3:
    marker, length = struct.unpack_from(">BH", data, position + 1)
    if marker == _START_OF_SCAN:
      return
    if marker in (0x00, 0xFF):  # Stuffing and padding: no segment.
      position += 1
    else:
      yield marker, position + 4
      position += 2 + length
    position = data.find(b"\xff", position)


def _png_size(data: bytes) -> tuple[int, int]:
  width, height = struct.unpack_from(">II", data, 16)
  return height, width


def _gif_size(data: bytes) -> tuple[int, int]:
  width, height = struct.unpack_from("<HH", data, 6)
  return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
  (header,) = struct.unpack_from("<I", data, 14)
  # 12 bytes of header are OS/2's; a negative height means top row first.
  width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
  return abs(height), width


def _webp_size(data: bytes) -> tuple[int, int] | None:
  match data[8:16]:
    case b"WEBPVP8X":  # Canvas, in 24 bits each, less one.
      low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
      return (high_h << 16 | low_h) + 1, (high_w << 16 | low_w) + 1
    case b"WEBPVP8L":  # 14 bits each, less one, after a signature byte.
      (bits,) = struct.unpack_from("<I", data, 21)
      return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    case b"WEBPVP8 ":  # 14 bits each; the upper two are a display hint.
      width, height = struct.unpack_from("<HH", data, 26)
      return height & 0x3FFF, width & 0x3FFF
  return None
