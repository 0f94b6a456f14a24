import io

import cv2
import numpy as np
import pytest
from photos import encode, scene
from PIL import Image, PngImagePlugin

from seer_jax.data import crops, strip_metadata
from seer_jax.runtime import errors

MOST = 10**8
SECRET = b"5 Main Street"


def saved(image, kind, **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind, **options)
  return file.getvalue()


def exif(orientation=None):
  found = Image.Exif()
  found[0x010E] = SECRET.decode()
  found[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}  # GPS.
  if orientation:
    found[0x0112] = orientation
  return found.tobytes()


def decoded(data):
  return crops.decode(data, MOST)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"optimize": True}])
def test_a_jpeg_keeps_its_pixels_and_nothing_else(how):
  data = saved(
    scene(40, 60), "JPEG", exif=exif(), comment=SECRET, dpi=(300, 300), **how
  )
  data += SECRET + data  # A film, or another picture.
  assert SECRET in data
  stripped = strip_metadata.strip(data, MOST)
  assert SECRET not in stripped and b"Exif" not in stripped
  assert not Image.open(io.BytesIO(stripped)).getexif()
  np.testing.assert_array_equal(decoded(stripped), decoded(data))


def test_restart_markers_and_stuffed_bytes_end_no_scan():
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[
    1
  ].tobytes()
  assert b"\xff\xd3" in data and b"\xff\x00" in data
  np.testing.assert_array_equal(
    decoded(strip_metadata.strip(data, MOST)), decoded(data)
  )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_stay_what_they_are(mode):
  image = Image.fromarray(scene(40, 60)).convert(mode)
  file = io.BytesIO()
  image.save(file, "JPEG", exif=exif())
  stripped = strip_metadata.strip(file.getvalue(), MOST)
  assert b"Exif" not in stripped
  np.testing.assert_array_equal(decoded(stripped), decoded(file.getvalue()))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_turned_for_good(orientation):
  data = saved(scene(40, 60), "JPEG", exif=exif(orientation), quality=95)
  stripped = strip_metadata.strip(data, MOST)
  assert b"Exif" not in stripped
  before, after = decoded(data).astype(int), decoded(stripped).astype(int)
  assert before.shape == after.shape
  assert np.abs(before - after).mean() < 4


def test_a_png_keeps_its_pixels_and_nothing_else():
  text = PngImagePlugin.PngInfo()
  text.add_text("Comment", SECRET.decode())
  data = saved(scene(40, 60), "PNG", pnginfo=text) + SECRET
  stripped = strip_metadata.strip(data, MOST)
  assert SECRET not in stripped
  np.testing.assert_array_equal(decoded(stripped), decoded(data))
  turned = saved(scene(40, 60), "PNG", exif=exif(6))
  stripped = strip_metadata.strip(turned, MOST)
  assert SECRET not in stripped and b"eXIf" not in stripped
  np.testing.assert_array_equal(decoded(stripped), decoded(turned))


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_become_png_without_loss(kind):
  options = {} if kind in ("BMP", "GIF") else {"exif": exif()}
  data = saved(scene(40, 60), kind, **options)
  stripped = strip_metadata.strip(data, MOST)
  assert stripped.startswith(b"\x89PNG") and SECRET not in stripped
  np.testing.assert_array_equal(decoded(stripped), decoded(data))


def test_large_pictures_are_shrunk_where_that_is_asked_for():
  data = saved(scene(60, 90), "PNG", exif=exif())
  small = strip_metadata.strip(data, MOST, side=30)
  assert decoded(small).shape == (30, 45, 3) and SECRET not in small
  assert decoded(strip_metadata.strip(data, MOST, side=60)).shape == (60, 90, 3)


def test_what_is_no_image_is_told():
  for data in (b"", b"nonsense", encode(".jpg", scene(40, 60))[:200]):
    with pytest.raises(errors.BadImage):
      strip_metadata.strip(data, MOST)


def test_nothing_hides_behind_what_says_how_colours_are_stored():
  data = saved(scene(40, 60), "JPEG")
  adobe = b"\xff\xee" + (14 + len(SECRET)).to_bytes(2, "big")
  adobe += b"Adobe\0\x64\0\0\0\0\1" + SECRET
  with_it = data[:2] + adobe + data[2:]
  stripped = strip_metadata.strip(with_it, MOST)
  assert SECRET not in stripped
  assert b"Adobe" in stripped
  np.testing.assert_array_equal(decoded(stripped), decoded(with_it))


def test_nothing_hides_behind_the_pixels_of_a_png():
  data = saved(scene(40, 60), "PNG")
  end = data.index(b"IEND") - 4
  more = strip_metadata._chunk(b"IDAT", SECRET)
  first = data.index(b"IDAT") - 4
  size = int.from_bytes(data[first : first + 4], "big")
  own = data[first + 8 : first + 8 + size]
  longer = strip_metadata._chunk(b"IDAT", own + SECRET)
  for hidden in (
    data[:end] + more + data[end:],
    data[:first] + longer + data[first + 12 + size :],
  ):
    stripped = strip_metadata.strip(hidden, MOST)
    assert SECRET not in stripped
    np.testing.assert_array_equal(decoded(stripped), decoded(data))
