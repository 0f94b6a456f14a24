"""Resizing against PIL's own."""

import numpy as np
import pytest
from photos import scene
from PIL import Image

from seer_jax.data import crops
from seer_jax.data import resize as resize_lib

SIZES = [
  *[(37, 53), (53, 37), (64, 64), (33, 500), (500, 33), (480, 333)],
  *[(1, 1), (1, 700), (700, 1), (3, 64), (211, 2), (19, 20), (32, 900)],
]


def noise(height, width):
  rng = np.random.default_rng((height, width))
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def with_pil(image, resize, size, interpolation):
  """Resize and CenterCrop as torchvision has them, of the image in full."""
  how = Image.Resampling[interpolation.upper()]
  height, width = image.shape[:2]
  long = int(resize * max(height, width) / min(height, width))
  new_w, new_h = (resize, long) if width <= height else (long, resize)
  # Along rows first in every version of Pillow.
  resized = Image.fromarray(image).resize((new_w, height), how)
  resized = np.asarray(resized.resize((new_w, new_h), how))
  top, left = round((new_h - size) / 2.0), round((new_w - size) / 2.0)
  return resized[top : top + size, left : left + size]


@pytest.mark.parametrize("interpolation", resize_lib.FILTERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
  ("resize", "size"), [(64, 56), (33, 32), (8, 8), (2, 1)]
)
def test_the_centre_is_that_of_pil_bit_for_bit(
  height, width, resize, size, interpolation
):
  image = noise(height, width)
  mine = crops.center_crop(image, resize, size, interpolation)
  wanted = with_pil(image, resize, size, interpolation)
  np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("interpolation", resize_lib.FILTERS)
def test_the_centre_of_any_size_is_that_of_pil(interpolation):
  rng = np.random.default_rng(0)
  for _ in range(150):
    height, width = (int(n) for n in np.exp(rng.uniform(0, 6.5, 2)))
    resize = int(rng.integers(1, 60))
    size = int(rng.integers(1, resize + 1))
    image = noise(height, width)
    mine = crops.center_crop(image, resize, size, interpolation)
    wanted = with_pil(image, resize, size, interpolation)
    np.testing.assert_array_equal(mine, wanted, f"{height}x{width} {resize}")


@pytest.mark.parametrize("interpolation", resize_lib.FILTERS)
@pytest.mark.parametrize("shape", [(1, 1_000_000, 3), (1_000_000, 1, 3)])
def test_the_centre_of_a_hair_fits_in_memory(shape, interpolation):
  crop = crops.center_crop(np.full(shape, 7, np.uint8), 256, 224, interpolation)
  assert crop.shape == (224, 224, 3) and (crop == 7).all()


def test_an_unknown_interpolation_is_refused():
  with pytest.raises(ValueError, match="'lanczos'; it must be 'area'"):
    crops.center_crop(scene(), 32, 32, "lanczos")


def shrunk(image, size):
  out = np.empty((size, size, 3), np.uint8)
  resize_lib.shrink(image, (0, 0, *image.shape[:2]), out)
  return out


def test_shrinking_keeps_the_brightness_exactly():
  for side in range(20, 200, 7):
    for grey in (1, 100, 254):
      image = np.full((side, side + 5, 3), grey, np.uint8)
      assert (shrunk(image, 20) == grey).all()


@pytest.mark.parametrize("shrinks", [1, 2, 3, 4, 7])
def test_shrinking_by_a_whole_number_is_that_of_pil_within_rounding(shrinks):
  image = noise(24 * shrinks, 24 * shrinks)
  pil = Image.fromarray(image).resize((24, 24), Image.Resampling.BILINEAR)
  mine = shrunk(image, 24)[2:-2, 2:-2].astype(int)
  # Three roundings to bytes against two, and weights of eight bits.
  assert np.abs(mine - np.asarray(pil)[2:-2, 2:-2]).max() <= 2


@pytest.mark.parametrize("shrinks", [1.2, 1.5, 1.9, 2.5, 3.3, 5.7])
def test_shrinking_by_a_fraction_is_near_that_of_pil(shrinks):
  image = scene(round(60 * shrinks), round(60 * shrinks))
  pil = Image.fromarray(image).resize((60, 60), Image.Resampling.BILINEAR)
  apart = np.abs(shrunk(image, 60).astype(int) - np.asarray(pil))
  assert apart.mean() < 0.6


def test_stripes_that_cannot_be_shown_become_grey():
  image = np.zeros((240, 240, 3), np.uint8)
  image[:, ::2] = 255
  assert np.abs(shrunk(image, 40)[:, 2:-2].astype(int) - 128).max() <= 2


@pytest.mark.parametrize("shrinks", [7.9, 8, 9.3, 13, 20, 33.4])
def test_shrinking_by_much_is_near_that_of_pil(shrinks):
  """Averaged in blocks first, of 2 or 4 pixels a side."""
  image = scene(round(40 * shrinks), round(30 * shrinks))
  height, width = image.shape[:2]
  out = np.empty((40, 30, 3), np.uint8)
  for box in ((0, 0, height, width), (3.25, 1.5, height - 5, width - 4)):
    resize_lib.shrink(image, box, out)
    top, left, tall, wide = box
    wanted = Image.fromarray(image).resize(
      (30, 40),
      Image.Resampling.BILINEAR,
      box=(left, top, left + wide, top + tall),
    )
    apart = np.abs(out.astype(float) - np.asarray(wanted))
    assert apart.mean() < 1
    assert apart.max() < 12
    # No brighter or darker.
    assert abs(out.mean() - np.asarray(wanted).mean()) < 0.4


def test_one_axis_may_shrink_while_the_other_grows():
  image = scene(30, 200)
  pil = Image.fromarray(image).resize((60, 60), Image.Resampling.BILINEAR)
  assert np.abs(shrunk(image, 60).astype(int) - np.asarray(pil)).mean() < 1


def test_a_box_may_begin_and_end_between_pixels():
  """As PIL's own `box` has it."""
  image = scene(150, 200)
  box = (10.25, 20.5, 101.3, 117.75)  # Top, left, height, width.
  out = np.empty((60, 50, 3), np.uint8)
  resize_lib.shrink(image, box, out)
  corners = (box[1], box[0], box[1] + box[3], box[0] + box[2])
  pil = Image.fromarray(image).resize(
    (50, 60), Image.Resampling.BILINEAR, box=corners
  )
  assert np.abs(out.astype(int) - np.asarray(pil)).mean() < 0.6


@pytest.mark.parametrize("shrinks", [2, 3, 7, 40, 104])
def test_no_tap_is_far_from_the_triangle(shrinks):
  taps = resize_lib._taps(shrinks) * 256
  whole = len(taps) // 2
  exact = np.maximum(shrinks - np.abs(np.arange(-whole, whole + 1)), 0)
  assert taps.sum() == 256
  assert np.abs(taps - 256 * exact / exact.sum()).max() <= 1
  np.testing.assert_array_equal(taps, taps[::-1])
