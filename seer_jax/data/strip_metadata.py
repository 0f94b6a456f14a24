"""Removes from image files what cameras and phones write beside the pixels.

Location and time, serial numbers, names, comments, thumbnails of the picture
before it was cropped, a second picture or a film after the end: training needs
none of it, and all of it is about people.
"""

import struct
import zlib
from collections.abc import Iterator

import cv2

from seer_jax.data import crops, image_header

_QUALITY = 95  # Of a JPEG that has to be encoded again.
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_JFIF, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE
_SCAN, _END = 0xDA, 0xD9


def strip(data: bytes, max_pixels: int, side: int = 0) -> bytes:
  """The same picture as an image file without metadata.

  JPEGs and PNGs are cut; their pixels stay the same, bit for bit. A JPEG whose
  EXIF rotates it is rotated and encoded again, with a quality of 95; every
  other format becomes a PNG without loss, of its first picture. Pictures whose
  shorter side is longer than `side` are shrunk to it and become JPEGs; 0
  changes no sizes. Raises BadImage if the file cannot be decoded.
  """
  image_HxWx3 = crops.decode(data, max_pixels)
  shorter = min(image_HxWx3.shape[:2])
  if side and shorter > side:
    height, width = (
      max(1, round(n * side / shorter)) for n in image_HxWx3.shape[:2]
    )
    small = cv2.resize(
      image_HxWx3, (width, height), interpolation=cv2.INTER_AREA
    )
    return _encoded(small, ".jpg")
  if data.startswith(b"\xff\xd8"):
    if _is_rotated(data):
      return _encoded(image_HxWx3, ".jpg")
    return _strip_jpeg(data)
  if data.startswith(_PNG):
    chunks = list(_png_chunks(data))
    # The rotation is a part of the metadata.
    if not any(kind == b"eXIf" for kind, _ in chunks):
      return _PNG + b"".join(_pixels_of(chunks))
  return _encoded(image_HxWx3, ".png")


def _encoded(image_HxWx3, extension):
  options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] * (extension == ".jpg")
  bgr = cv2.cvtColor(image_HxWx3, cv2.COLOR_RGB2BGR)
  return cv2.imencode(extension, bgr, options)[1].tobytes()


def _is_rotated(data):
  """Whether the EXIF of a JPEG rotates it; True if that is unclear."""
  try:
    return image_header.jpeg_orientation(data) not in (0, 1)
  except struct.error:
    return True


def _strip_jpeg(data: bytes) -> bytes:
  """Keeps the segments with pixels."""
  kept = [data[:2]]
  for marker, start, end in _jpeg_segments(data):
    payload = data[start + 4 : end]
    if marker == _JFIF and payload.startswith(b"JFIF\0"):
      kept.append(_without_thumbnail(data[start:end]))
    elif marker == _ADOBE and payload.startswith(b"Adobe"):
      kept.append(_adobe(data[start:end]))
    elif not (0xE0 <= marker <= 0xEF or marker == _COMMENT):
      kept.append(data[start:end])
  kept.append(b"\xff\xd9")
  return b"".join(kept)


def _without_thumbnail(segment):
  if len(segment) < 18:
    return segment
  return segment[:2] + struct.pack(">H", 16) + segment[4:16] + b"\0\0"


def _adobe(segment):
  """Says how colors are stored, in twelve bytes; more is not in the format."""
  return segment[:2] + struct.pack(">H", 14) + segment[4:16]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
  """(marker, start, end) up to the end of the first picture.

  A segment that starts a scan extends to the next marker.
  """
  at = 2
  while True:
    at = data.find(b"\xff", at)
    if at < 0 or at + 4 > len(data):
      return
    marker = data[at + 1]
    if marker == _END:
      return
    if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
      at += 1 if marker == 0xFF else 2
      continue
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if marker == _SCAN:
      end = _end_of_scan(data, end)
    yield marker, at, min(end, len(data))
    at = end


def _end_of_scan(data, at):
  """The position of the next marker that is not part of a scan."""
  while True:
    at = data.find(b"\xff", at)
    if at < 0 or at + 1 >= len(data):
      return len(data)
    if data[at + 1] == 0xFF:
      at += 1
    elif data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
      at += 2
    else:
      return at


def _pixels_of(chunks) -> Iterator[bytes]:
  """The chunks of the picture itself.

  Pixels are one compressed stream; bytes after its end are not pixels.
  """
  stream = zlib.decompressobj()
  for kind, chunk in chunks:
    if kind == b"IDAT":
      if stream.eof:
        continue
      stream.decompress(chunk[8:-4])
      if stream.unused_data:
        chunk = _chunk(kind, chunk[8 : -4 - len(stream.unused_data)])
    if kind in _PNG_KEPT:
      yield chunk


def _chunk(kind, data):
  body = kind + data
  return (
    struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
  )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """(kind, the whole chunk) up to the end of the first picture."""
  at = len(_PNG)
  while at + 12 <= len(data):
    (size,) = struct.unpack_from(">I", data, at)
    kind = data[at + 4 : at + 8]
    yield kind, data[at : at + 12 + size]
    if kind == b"IEND":
      return
    at += 12 + size
