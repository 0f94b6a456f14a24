"""What an image file's header says, with no pixel decoded.

Bytes in, numbers out, `struct` alone; `crops.py` asks before it decodes.
"""

import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_START_OF_SCAN = 0xDA
# SOF0..SOF15 less the three codes among them that mean other things.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP1 = 0xE1
_ORIENTATION = 0x0112


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


def upright_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) in pixels of a JPEG as it decodes, EXIF applied.

  None for other formats, and for headers that cannot be read. Orientations 5
  to 8 lie on their side (EXIF 2.3, 4.6.4 A): height and width change places.
  """
  try:
    size = _jpeg_size(data) if data.startswith(b"\xff\xd8") else None
    if size is None:
      return None
    return size[::-1] if jpeg_orientation(data) in (5, 6, 7, 8) else size
  except struct.error:
    return None


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


def jpeg_orientation(data: bytes) -> int:
  """The EXIF orientation, 1 to 8; 1 where none is given.

  Raises:
    struct.error: the header is cut short.
  """
  for marker, start in _jpeg_segments(data):
    if marker == _APP1 and data.startswith(b"Exif\0\0", start):
      return _tiff_orientation(data, start + 6)
  return 1


def _tiff_orientation(data: bytes, start: int) -> int:
  order = "<" if data.startswith(b"II", start) else ">"
  (directory,) = struct.unpack_from(order + "I", data, start + 4)
  directory += start
  (entries,) = struct.unpack_from(order + "H", data, directory)
  for i in range(entries):
    entry = directory + 2 + 12 * i
    tag, _, _, value = struct.unpack_from(order + "HHIH", data, entry)
    if tag == _ORIENTATION:
      return value
  return 1


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
