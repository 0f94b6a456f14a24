"""Crops of encoded images: drawn first, decoded no larger than they need."""

import tarfile

import cv2
import numpy as np
import pytest
from photos import PHOTOS, encode, pil_bytes, scene
from PIL import Image, ImageOps

from seer_jax.data import crops, image_header
from seer_jax.runtime import errors

LIMIT = 1 << 24
RATIO = (3 / 4, 4 / 3)
# Any box of an image of 400 x 600 is 8 times as large as these.
TINY = (crops.CropGroup(2, 20, (0.4, 1.0)), crops.CropGroup(1, 10, (0.2, 0.4)))
SWAV = (
  crops.CropGroup(2, 224, (0.14, 1.0)),
  crops.CropGroup(4, 96, (0.05, 0.14)),
)


def both(data, groups, seed=0):
  """The crops of `data`, and those of the image decoded in full."""
  one, other = np.random.default_rng(seed), np.random.default_rng(seed)
  mine = crops.multi_crop_bytes(data, one, groups, RATIO, LIMIT)
  whole = crops.multi_crop(crops.decode(data, LIMIT), other, groups, RATIO)
  assert one.bit_generator.state == other.bit_generator.state
  return mine, whole


def mean_difference(a, b):
  return max(
    np.abs(x.astype(int) - y).mean() for x, y in zip(a, b, strict=True)
  )


@pytest.fixture
def reductions(monkeypatch):
  """The factors by which images are decoded smaller, as they are."""
  seen = []
  real = crops._decode_bgr

  def spy(data, max_pixels, reduction=1):
    seen.append(reduction)
    return real(data, max_pixels, reduction)

  monkeypatch.setattr(crops, "_decode_bgr", spy)
  return seen


@pytest.mark.parametrize(
  "extension", [".jpg", ".png", ".webp", ".bmp", ".tiff"]
)
def test_an_image_that_needs_all_its_pixels_gives_the_same_crops(extension):
  groups = (crops.CropGroup(3, 32, (0.1, 1.0)),)
  mine, whole = both(encode(extension, scene()), groups)
  np.testing.assert_array_equal(mine[0], whole[0])


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_smaller_by_what_the_boxes_allow(factor, reductions):
  groups = (crops.CropGroup(2, 190 // factor, (1.0, 1.0)),)
  rng = np.random.default_rng(0)
  data = encode(".jpg", scene(200, 200))
  (views,) = crops.multi_crop_bytes(data, rng, groups, (1.0, 1.0), LIMIT)
  assert reductions == [factor]
  assert views.shape == (2, 190 // factor, 190 // factor, 3)


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("side", [(400, 600), (403, 611)])
def test_reduced_crops_are_those_of_the_whole_image(
  side, progressive, reductions
):
  data = encode(".jpg", scene(*side), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
  mine, whole = both(data, TINY)
  assert reductions[0] == 8
  assert mean_difference(mine, whole) < 2


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_colours_keep_their_order_at_every_reduction(factor, reductions):
  image = np.zeros((256, 256, 3), np.uint8)
  image[:] = (200, 120, 30)
  groups = (crops.CropGroup(1, 256 // factor, (1.0, 1.0)),)
  rng = np.random.default_rng(0)
  (views,) = crops.multi_crop_bytes(
    encode(".jpg", image), rng, groups, (1.0, 1.0), LIMIT
  )
  assert reductions == [factor]
  assert np.abs(views.astype(int) - [200, 120, 30]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_reduced_images(orientation, reductions):
  image = Image.fromarray(scene(400, 600))
  exif = image.getexif()
  exif[0x0112] = orientation
  data = pil_bytes(image, "JPEG", exif=exif)
  image.getexif()[0x0112] = orientation
  upright = np.asarray(ImageOps.exif_transpose(image))
  assert image_header.upright_jpeg_size(data) == upright.shape[:2]
  mine, _ = both(data, TINY)
  wanted = crops.multi_crop(upright, np.random.default_rng(0), TINY, RATIO)
  assert reductions[0] == 8
  assert mean_difference(mine, wanted) < 3


def test_a_misleading_header_changes_nothing(monkeypatch):
  monkeypatch.setattr(
    image_header, "upright_jpeg_size", lambda data: (600, 400)
  )
  mine, whole = both(encode(".jpg", scene(400, 600)), TINY)
  for a, b in zip(mine, whole, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_leaves_the_size_unknown_or_as_stored(exif):
  data = pil_bytes(Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0" + exif)
  assert image_header.upright_jpeg_size(data) in (None, (40, 60))
  assert image_header.upright_jpeg_size(data[:30]) is None
  both(data, (crops.CropGroup(1, 8, (0.5, 1.0)),))


def test_a_bad_image_says_why_and_leaves_the_generator_alone():
  jpeg = encode(".jpg", scene(400, 600))
  bad = (b"", b"<html>", b"\xff\xd8", jpeg[:-9], jpeg[: len(jpeg) // 2])
  for data in (*bad, encode(".png", scene())[:-9]):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    with pytest.raises(errors.BadImage) as mine:
      crops.multi_crop_bytes(data, rng, TINY, RATIO, LIMIT)
    with pytest.raises(errors.BadImage) as wanted:
      crops.decode(data, LIMIT)
    assert str(mine.value) == str(wanted.value)
    assert rng.bit_generator.state == before


def test_the_limit_on_pixels_is_that_of_the_whole_image():
  data = encode(".jpg", scene(400, 600))
  rng = np.random.default_rng(0)
  crops.multi_crop_bytes(data, rng, TINY, RATIO, 240_000)
  with pytest.raises(errors.BadImage, match="too large: 400 x 600"):
    crops.multi_crop_bytes(data, rng, TINY, RATIO, 239_999)


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"needs {PHOTOS}")
def test_photographs_give_nearly_the_same_crops_when_decoded_smaller():
  small = tuple(crops.CropGroup(g.count, g.size // 4, g.scale) for g in SWAV)
  with tarfile.open(PHOTOS) as tar:
    members = [m for m in tar if m.isfile()][::8]
    datas = [tar.extractfile(m).read() for m in members]
  apart = [
    mean_difference(*both(data, small, seed=n)) for n, data in enumerate(datas)
  ]
  assert np.mean(apart) < 2
  assert np.max(apart) < 8
