"""RandAugment's operations against PIL's, and how they are drawn."""

import jax
import numpy as np
import photos
import pytest
from PIL import Image, ImageEnhance, ImageOps

from seer_jax.tasks import randaugment

LEVEL = 0.5


@pytest.fixture(scope="module")
def picture():
  return photos.scene(48, 40)


def ours(operation, pixels, sign=1.0, level=LEVEL):
  x_3xHxW = pixels.transpose(2, 0, 1).astype(np.float32) / 255
  found = jax.jit(operation, static_argnums=2)(x_3xHxW, sign, level)
  return np.asarray(found).transpose(1, 2, 0) * 255


def factor(sign):
  return 1 + sign * 0.9 * LEVEL


PIL = {
  "auto_contrast": lambda image, sign: ImageOps.autocontrast(image),
  "equalize": lambda image, sign: ImageOps.equalize(image),
  "solarize": lambda image, sign: ImageOps.solarize(image, 128),
  "posterize": lambda image, sign: ImageOps.posterize(image, 2),
  "color": lambda image, sign: ImageEnhance.Color(image).enhance(factor(sign)),
  "contrast": lambda image, sign: ImageEnhance.Contrast(image).enhance(
    factor(sign)
  ),
  "brightness": lambda image, sign: ImageEnhance.Brightness(image).enhance(
    factor(sign)
  ),
  "sharpness": lambda image, sign: ImageEnhance.Sharpness(image).enhance(
    factor(sign)
  ),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", PIL)
def test_colours_are_pil_s(picture, name, sign):
  wanted = np.asarray(PIL[name](Image.fromarray(picture), sign), np.float32)
  found = ours(getattr(randaugment, name), picture, sign)
  # PIL rounds to whole numbers, once or twice.
  assert np.abs(found - wanted).max() <= 2


def test_shapes_are_pil_s(picture):
  """Away from the border, where PIL has no half pixels."""
  for name, matrix in {
    "shear_x": (1, 0.15, -0.15 * 23.5, 0, 1, 0),
    "translate_x": (1, 0, 0.225 * 40, 0, 1, 0),
    "translate_y": (1, 0, 0, 0, 1, 0.225 * 48),
  }.items():
    wanted = Image.fromarray(picture).transform(
      (40, 48), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    found = ours(getattr(randaugment, name), picture)
    middle = np.s_[14:34, 12:28]
    error = np.abs(found[middle] - np.asarray(wanted, np.float32)[middle])
    assert error.mean() < 2, name


def test_a_turn_there_and_back(picture):
  there = ours(randaugment.rotate, picture, 1.0)
  back = ours(randaugment.rotate, there.round().astype(np.uint8), -1.0)
  middle = np.s_[16:32, 12:28]
  assert np.abs(back - picture)[middle].mean() < 5
  assert np.abs(there - picture)[middle].mean() > 8


def test_each_image_has_its_own_operations_and_keeps_them(picture):
  pixels = np.stack([picture] * 6).astype(np.float32) / 255
  keys = jax.random.split(jax.random.key(0), 6)
  apply = jax.jit(randaugment.apply, static_argnums=(2, 3))
  found = np.asarray(apply(pixels, keys, 2, 9.0))
  assert found.shape == pixels.shape
  assert found.min() >= 0 and found.max() <= 1
  assert len({each.tobytes() for each in found}) > 3
  alone = apply(pixels[:1], keys[3:4], 2, 9.0)
  np.testing.assert_allclose(alone[0], found[3], atol=1e-6)
  assert apply(pixels, keys, 0, 9.0) is not None
  np.testing.assert_array_equal(apply(pixels, keys, 0, 9.0), pixels)
