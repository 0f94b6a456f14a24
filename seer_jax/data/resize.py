"""Resizing as PIL does: fast for training, bit for bit for evaluation.

PIL's filters widen with the factor by which an image shrinks, so nothing
aliases (https://pillow.readthedocs.io, "Filters"). Published protocols use
them.
"""

import math

import cv2
import numpy as np
from PIL import Image

# Bits of the weights by which PIL sums bytes: those of a 32-bit integer minus
# eight for the byte and two for overshoot.
_WEIGHT_BITS = 32 - 8 - 2
# Axes that shrink by this factor are first averaged in blocks, in images of so
# many pixels by half the factor; at least a quarter is left to the triangle.
_POOLED_FROM, _LARGE = 8, 2**21
# An image this many times longer than wide is cut before it is resized.
_LONG = 4


def _bilinear(x):
  return np.maximum(1 - x, 0)


def _bicubic(x):
  """Keys' cubic with a = -1/2, from 0 to 2 and beyond."""
  a = -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0))


# The reach of each filter of `center_crop`, and its weight at a distance >= 0.
FILTERS = {"bilinear": (1.0, _bilinear), "bicubic": (2.0, _bicubic)}


def shrink(
  image_HxWx3: np.ndarray,
  box: tuple[float, float, float, float],
  out_SxTx3: np.ndarray,
) -> None:
  """Resizes a box of an image with PIL's bilinear filter, very nearly; uint8.

  If an axis shrinks by s, PIL's filter is a triangle s pixels to each side.
  Here a small blur is followed by bilinear sampling: exactly that triangle for
  whole s, for others a mixture of the two nearest with the same variance.
  OpenCV's INTER_AREA, a box filter, takes two to three times as long. For large
  s, blocks of pixels are averaged first, since the cost of the blur grows with
  its width. Enlarging is plain bilinear, as in PIL.

  Args:
    box: top, left, height and width, not necessarily whole.
    out_SxTx3: receives the result; uint8, contiguous.
  """
  (top, left, height, width), (out_h, out_w) = box, out_SxTx3.shape[:2]
  first_y, first_x = math.floor(top), math.floor(left)
  last_y, last_x = math.ceil(top + height), math.ceil(left + width)
  part = image_HxWx3[first_y:last_y, first_x:last_x]
  top, left = top - first_y, left - first_x
  if (pooled := _pooled(part.shape, min(height / out_h, width / out_w))) > 1:
    rows, columns = (size // pooled for size in part.shape[:2])
    part = cv2.resize(
      part[: rows * pooled, : columns * pooled],
      (columns, rows),
      interpolation=cv2.INTER_AREA,
    )
    top, left, height, width = (x / pooled for x in (top, left, height, width))
  scale_x, scale_y = width / out_w, height / out_h
  taps_x, taps_y = _taps(scale_x), _taps(scale_y)
  if len(taps_x) > 1 or len(taps_y) > 1:
    part = cv2.sepFilter2D(
      part, -1, taps_x, taps_y, borderType=cv2.BORDER_REPLICATE
    )
  if part.shape[:2] == (height, width):  # The box begins at the first pixel.
    cv2.resize(
      part, (out_w, out_h), dst=out_SxTx3, interpolation=cv2.INTER_LINEAR
    )
    return
  # Centers of pixels are at halves.
  offset_x = (scale_x - 1) / 2 + left
  offset_y = (scale_y - 1) / 2 + top
  cv2.warpAffine(
    part,
    np.array([[scale_x, 0, offset_x], [0, scale_y, offset_y]]),
    (out_w, out_h),
    dst=out_SxTx3,
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )


def _pooled(shape, shrinks):
  """The side of the blocks to average, a power of two; 1 for none."""
  least = _POOLED_FROM / (2 if shape[0] * shape[1] >= _LARGE else 1)
  return 2 ** max(0, math.floor(math.log2(max(shrinks, 1) * 2 / least)))


def _taps(shrinks: float) -> np.ndarray:
  """The blur that makes bilinear sampling a triangle `shrinks` wide."""
  if shrinks <= 1:
    return np.ones(1, np.float32)
  whole = math.floor(shrinks)
  offsets = np.arange(-whole, whole + 1)
  mixed = (shrinks**2 - whole**2) / (2 * whole + 1)
  taps = (1 - mixed) * _triangle(offsets, whole) + mixed * _triangle(
    offsets, whole + 1
  )
  # OpenCV sums bytes with weights of eight bits. Rounded one by one they would
  # not add up to 1, and change the brightness; so the sums from either end are
  # rounded, and no weight is off by more than 1.
  side = np.diff(np.round(np.cumsum(taps[:whole]) * 256), prepend=0)
  taps = np.concatenate((side, [256 - 2 * side.sum()], side[::-1]))
  return (taps / 256).astype(np.float32)


def _triangle(offsets, reach):
  return np.maximum(reach - np.abs(offsets), 0) / reach**2


def center_crop(
  image_HxWx3: np.ndarray, resize: int, size: int, interpolation: str
) -> np.ndarray:
  """PIL's resize of the shorter side to `resize`, then the central square.

  Bit for bit what torchvision's Resize and CenterCrop make of a PIL image, with
  their rounding of the longer side and of the margins: crop_SxSx3, uint8. PIL
  resizes rows, rounds to bytes and resizes columns. (From version 13 columns
  come first if images about twice as tall as wide shrink, which changes some
  bytes by one; published numbers are older, so that is not followed.) `resize`
  is at least `size`; `interpolation` is a name in `FILTERS`.
  """
  height, width = image_HxWx3.shape[:2]
  short, long = min(height, width), max(height, width)
  out_long = int(resize * long / short)
  out_h, out_w = (resize, out_long) if height < width else (out_long, resize)
  top, left = round((out_h - size) / 2), round((out_w - size) / 2)
  if long <= _LONG * short:
    image_HxWx3 = whole(image_HxWx3, out_h, out_w, interpolation)
  elif height < width:
    columns = _weights(width, out_w, left, size, interpolation)
    image_HxWx3 = _weigh(image_HxWx3.swapaxes(0, 1), *columns).swapaxes(0, 1)
    image_HxWx3 = whole(image_HxWx3, out_h, size, interpolation)
    left = 0
  else:
    rows_SxK, weights_SxK = _weights(height, out_h, top, size, interpolation)
    first, last = rows_SxK.min(), rows_SxK.max() + 1
    image_HxWx3 = whole(
      image_HxWx3[first:last], last - first, out_w, interpolation
    )
    image_HxWx3 = _weigh(image_HxWx3, rows_SxK - first, weights_SxK)
    top = 0
  return image_HxWx3[top : top + size, left : left + size]


def whole(
  image_HxWx3: np.ndarray, height: int, width: int, interpolation: str
) -> np.ndarray:
  """PIL's resize of the whole image, rows first; `interpolation` in `FILTERS`.

  Proportions may change.
  """
  image = Image.fromarray(np.ascontiguousarray(image_HxWx3))
  how = getattr(Image.Resampling, interpolation.upper())
  # One axis per call; Pillow does nothing if the size is the same.
  along_rows = image.resize((width, image.height), how)
  return np.asarray(along_rows.resize((width, height), how))


def _weights(size, out_size, begin, count, interpolation):
  """What PIL sums along an axis, for `count` outputs from `begin` on.

  Returns `pixels_SxK` and `weights_SxK`, integers, S = count: output s is the
  sum of K pixels by weights of `_WEIGHT_BITS` bits. Pixels beyond the image
  have weight 0. In float64 and in PIL's order, to round alike.
  """
  reach, function = FILTERS[interpolation]
  scale = size / out_size
  widened = max(scale, 1.0)
  support = reach * widened
  center_Sx1 = (np.arange(begin, begin + count)[:, None] + 0.5) * scale
  first_Sx1 = np.maximum(np.trunc(center_Sx1 - support + 0.5), 0)
  last_Sx1 = np.minimum(np.trunc(center_Sx1 + support + 0.5), size)
  pixels_SxK = first_Sx1 + np.arange(2 * math.ceil(support) + 1)
  weights_SxK = function(
    np.abs((pixels_SxK - center_Sx1 + 0.5) * (1 / widened))
  )
  weights_SxK = np.where(pixels_SxK < last_Sx1, weights_SxK, 0)
  weights_SxK /= np.cumsum(weights_SxK, axis=1)[:, -1:]
  weights_SxK *= 1 << _WEIGHT_BITS
  # Rounds half away from zero, as C does with 0.5 added.
  weights_SxK = np.trunc(weights_SxK + np.copysign(0.5, weights_SxK))
  pixels_SxK = np.minimum(pixels_SxK, size - 1)
  return pixels_SxK.astype(np.int64), weights_SxK.astype(np.int64)


def _weigh(pixels_NxMx3, which_SxK, weights_SxK):
  """The sums along the first axis, rounded to bytes: SxMx3."""
  half = 1 << (_WEIGHT_BITS - 1)
  sums_SxMx3 = np.full((len(which_SxK), *pixels_NxMx3.shape[1:]), half)
  for which_S, weights_S in zip(which_SxK.T, weights_SxK.T, strict=True):
    sums_SxMx3 += pixels_NxMx3[which_S] * weights_S[:, None, None]
  return np.clip(sums_SxMx3 >> _WEIGHT_BITS, 0, 255).astype(np.uint8)
