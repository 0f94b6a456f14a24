"""Host pixels: decode, random-resized and multi-crop, center crop.

Bytes and NumPy, one image at a time. Expensive operations that need no decoding
(flip, color, blur) happen on the device, in `tasks/augment.py`. Never calls
JAX.
"""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from seer_jax.data import image_header, quiet_codecs
from seer_jax.data import resize as resize_lib
from seer_jax.runtime import errors

# The pipeline runs one process or thread per core. OpenCV's own pool in each of
# them would make cores^2 threads compete, and hangs after a fork.
cv2.setNumThreads(0)
# A broken image is reported once, by name, through BadImage.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # The last chunk is empty: its CRC is constant.
# libjpeg skips high frequencies, and with them most of the work.
_REDUCED = {
  1: cv2.IMREAD_COLOR,
  2: cv2.IMREAD_REDUCED_COLOR_2,
  4: cv2.IMREAD_REDUCED_COLOR_4,
  8: cv2.IMREAD_REDUCED_COLOR_8,
}

Box = tuple[int, int, int, int]  # Top, left, height, width in pixels.

image_size = image_header.image_size


def decode(data: bytes, max_pixels: int) -> np.ndarray:
  """Decodes an image of any common format to `image_HxWx3`, uint8 RGB.

  Grey and palette images become RGB, 16 bits become 8, an animation gives its
  first frame, and an EXIF orientation is applied. Alpha is dropped and the
  colors under it are kept, as by PIL's `convert("RGB")` (except that libtiff
  blends a TIFF onto black). Images with more pixels than `max_pixels`, by their
  header, are refused before any pixel is decoded. Raises BadImage if the file
  is empty, cut short, damaged, too large, or not an image.
  """
  image_HxWx3 = _decode_bgr(data, max_pixels)
  return _swap_red_and_blue(image_HxWx3)


def random_box(
  rng: np.random.Generator,
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> Box:
  """Draws the box of a random-resized crop: (top, left, h, w) in pixels.

  Its share of the area is uniform in `scale` and its aspect ratio w / h
  log-uniform in `ratio`. If ten draws in a row exceed the image, the largest
  central box within `ratio` is taken. (Szegedy et al. 2014,
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
  drawn in order from `rng`: equal generator states give equal crops.
  """
  boxes = _draw(rng, *image_HxWx3.shape[:2], groups, ratio)
  return _views(image_HxWx3, boxes, groups)


def multi_crop_bytes(
  data: bytes,
  rng: np.random.Generator,
  groups: Sequence[CropGroup],
  ratio: tuple[float, float],
  max_pixels: int,
) -> tuple[np.ndarray, ...]:
  """`multi_crop` of an encoded image: same draws, same boxes, less work.

  A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if every box, drawn
  beforehand from the header, remains as large as its crop. Raises BadImage like
  `decode`, and then leaves `rng` as it was. `ratio` limits the boxes' width
  over height; `max_pixels` is that of `decode`, for the whole image.
  """
  before = rng.bit_generator.state
  size = image_header.upright_jpeg_size(data)
  if size is not None and 0 not in size:
    boxes = _draw(rng, *size, groups, ratio)
    reduction = _reduction(boxes, groups)
    try:
      image_HxWx3 = _decode_bgr(data, max_pixels, reduction)
    except errors.BadImage:
      rng.bit_generator.state = before
      raise
    if image_HxWx3.shape[:2] == tuple(-(-n // reduction) for n in size):
      boxes = [tuple(n / reduction for n in box) for box in boxes]
      return _in_rgb(_views(image_HxWx3, boxes, groups))
    # The header is wrong; the fully decoded image decides.
    rng.bit_generator.state = before
  image_HxWx3 = _decode_bgr(data, max_pixels)
  return _in_rgb(multi_crop(image_HxWx3, rng, groups, ratio))


def center_crop(
  image_HxWx3: np.ndarray, resize: int, size: int, interpolation: str = "area"
) -> np.ndarray:
  """The evaluation view: shorter side to `resize`, then the central square.

  With "bilinear" or "bicubic", crop_SxSx3 (S = `size`) equals, bit for bit,
  PIL's antialiased resize as used by torchvision's Resize and CenterCrop, the
  protocol of published evaluations; "area" averages. Raises ValueError if
  `size` is larger than `resize`, or there is no such interpolation.
  """
  if size > resize:
    raise ValueError(f"cannot cut {size} pixels out of {resize}: size > resize")
  if interpolation in resize_lib.FILTERS:
    return resize_lib.center_crop(image_HxWx3, resize, size, interpolation)
  if interpolation != "area":
    raise ValueError(
      f"interpolation is {interpolation!r}; it must be 'area',"
      " 'bilinear' or 'bicubic'"
    )
  # Only the central square is visible afterwards. Resizing the rest would be a
  # waste, and of an image one pixel high it would not fit into memory.
  height, width = image_HxWx3.shape[:2]
  side = min(height, width)
  box = (height - side) // 2, (width - side) // 2, side, side
  square = cv2.resize(
    _cut(image_HxWx3, box),
    (resize, resize),
    # INTER_LINEAR uses the four nearest pixels however far apart the samples
    # are, so shrinking with it aliases.
    interpolation=cv2.INTER_AREA if side >= resize else cv2.INTER_LINEAR,
  )
  margin = (resize - size) // 2
  return square[margin : margin + size, margin : margin + size]


def resize(
  image_HxWx3: np.ndarray, height: int, width: int, interpolation: str
) -> np.ndarray:
  """The whole image at another size, uint8.

  "bilinear" and "bicubic" are PIL's; "area" averages.
  """
  if interpolation in resize_lib.FILTERS:
    return resize_lib.whole(image_HxWx3, height, width, interpolation)
  how = cv2.INTER_AREA
  return cv2.resize(image_HxWx3, (width, height), interpolation=how)


def upright_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) of an image as it decodes, by its header; None if unknown.

  Of EXIF orientations, those of JPEGs are applied.
  """
  return image_header.upright_jpeg_size(data) or image_header.image_size(data)


def _decode_bgr(data: bytes, max_pixels: int, reduction: int = 1) -> np.ndarray:
  # OpenCV's decoders give RGB as well, but JPEGs a third slower than BGR with
  # the channels swapped afterwards.
  if not data:
    raise errors.BadImage("empty file")
  size = image_header.image_size(data)
  if size is None:  # Decoding an unknown format may take any amount of memory.
    raise errors.BadImage("not an image")
  _check_pixels(*size, max_pixels)
  # OpenCV refuses this too, without saying why.
  if data.startswith(_PNG) and _PNG_END not in data:
    raise errors.BadImage("cut short")
  try:
    quiet_codecs.silence(cv2.__file__)
    image_HxWx3 = cv2.imdecode(
      np.frombuffer(data, np.uint8), _REDUCED[reduction]
    )
  except cv2.error as error:
    raise errors.BadImage(f"cannot be decoded: {error.err}") from None
  if image_HxWx3 is None:
    raise errors.BadImage("damaged or cut short")
  _check_pixels(*image_HxWx3.shape[:2], max_pixels)
  return image_HxWx3


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
  if height * width > max_pixels:
    raise errors.BadImage(
      f"too large: {height} x {width} is more than {max_pixels} pixels"
    )


def _swap_red_and_blue(image_HxWx3: np.ndarray) -> np.ndarray:
  return cv2.cvtColor(image_HxWx3, cv2.COLOR_BGR2RGB, dst=image_HxWx3)


def _draw(rng, height, width, groups, ratio) -> list[Box]:
  return [
    random_box(rng, height, width, group.scale, ratio)
    for group in groups
    for _ in range(group.count)
  ]


def _reduction(boxes: list[Box], groups: Sequence[CropGroup]) -> int:
  """The largest reduction at which each box is still as large as its crop."""
  sizes = [group.size for group in groups for _ in range(group.count)]
  spare = min(
    min(box[2:]) / size for box, size in zip(boxes, sizes, strict=True)
  )
  return next((n for n in (8, 4, 2) if spare >= n), 1)


def _cut(image_HxWx3: np.ndarray, box: Box) -> np.ndarray:
  top, left, h, w = box
  return image_HxWx3[top : top + h, left : left + w]


def _views(image_HxWx3, boxes, groups) -> tuple[np.ndarray, ...]:
  views, boxes = [], iter(boxes)
  for group in groups:
    shape = (group.count, group.size, group.size, 3)
    crops_VxSxSx3 = np.empty(shape, np.uint8)
    for crop_SxSx3 in crops_VxSxSx3:
      resize_lib.shrink(image_HxWx3, next(boxes), crop_SxSx3)
    views.append(crops_VxSxSx3)
  return tuple(views)


def _in_rgb(views: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
  for crops_VxSxSx3 in views:
    for crop_SxSx3 in crops_VxSxSx3:
      _swap_red_and_blue(crop_SxSx3)
  return views
