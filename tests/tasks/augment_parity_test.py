"""Augmentation against torchvision's, with the same parameters fed in.

Two references an operation. torchvision's float tensors show that the formulas
are the same. PIL's bytes are what SwAV was trained on: they round after each
operation, and PIL's blur is no Gaussian, so these bounds are wider, and each
says why.
"""

import functools
import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from seer_jax.config import keys
from seer_jax.data import preprocessing
from seer_jax.tasks import augment


@functools.cache
def images():
  """Smooth, coarse and pure noise, and a ramp of all greys and hues."""
  rng = np.random.default_rng(0)
  pictures = [
    cv2.resize(rng.integers(0, 256, (*grid, 3), np.uint8), (96, 64))
    for grid in [(3, 4), (6, 9), (20, 30)]
  ]
  pictures.append(rng.integers(0, 256, (64, 96, 3), np.uint8))
  hsv = np.zeros((64, 96, 3), np.uint8)
  hsv[..., 0] = np.linspace(0, 179, 96)
  hsv[..., 1] = np.linspace(0, 255, 64)[:, None]
  hsv[..., 2] = 230
  pictures.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
  return pictures


def planes(image_HxWx3):
  return augment.to_float(jnp.moveaxis(jnp.asarray(image_HxWx3), -1, 0))


def levels_apart(x_3xHxW, pil_image):
  """Distances from a PIL image, in its 255 levels."""
  bytes_HxWx3 = np.asarray(pil_image.convert("RGB"), np.float32)
  return np.abs(np.asarray(x_3xHxW) * 255 - np.moveaxis(bytes_HxWx3, -1, 0))


ADJUST = {
  "brightness": augment.adjust_brightness,
  "contrast": augment.adjust_contrast,
  "saturation": augment.adjust_saturation,
  "hue": augment.shift_hue,
}
FACTORS = [(name, f) for name in list(ADJUST)[:3] for f in (0.2, 0.6, 1, 1.8)]
FACTORS += [("hue", turn) for turn in (-0.2, -0.05, 0.0, 0.13, 0.2)]
# torchvision's grey has 0.2989 for red where PIL and we have 0.299; blends
# carry 0.8 of that. Otherwise only float32 rounds.
FLOAT = {"brightness": 1e-6, "contrast": 1e-4, "saturation": 1e-4, "hue": 1e-5}
# Greatest and mean difference from PIL in levels. A blend is cut to a byte, up
# to one level; contrast and saturation blend with a grey that was rounded
# before, 0.4 more. Hue goes through HSV in bytes: 256 hues are 1.4 degrees
# apart, at full saturation six levels, and turn and hue are both cut.
BYTES = {
  "brightness": (1, 0.5),
  "contrast": (1.5, 0.9),
  "saturation": (1.5, 0.6),
  "hue": (14, 2.5),
}


@pytest.mark.parametrize(("name", "factor"), FACTORS)
def test_a_colour_operation_is_that_of_torchvision(
  torch, transforms, name, factor
):
  theirs = getattr(transforms.functional, f"adjust_{name}")
  for image in images():
    mine = ADJUST[name](planes(image), factor)
    wanted = theirs(torch.tensor(np.array(planes(image))), factor).numpy()
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=FLOAT[name])
    apart = levels_apart(mine, theirs(Image.fromarray(image), factor))
    assert apart.max() <= BYTES[name][0]
    assert apart.mean() <= BYTES[name][1]


def options_with(**probabilities):
  options = keys.base().augment
  for name in ("flip", "jitter", "grey", "blur"):
    options[name] = probabilities.get(name, 0.0)
  return options


def drawn_with(**changed):
  """Parameters by which nothing happens, but for what is changed."""
  nothing = augment.Drawn(
    flip=False,
    jitter=False,
    factor_3=np.ones(3, np.float32),
    order_3=np.arange(3),
    before_hue=0,
    turn=0.0,
    grey=False,
    blur=False,
    sigma=1.0,
  )
  return jax.tree.map(jnp.asarray, nothing._replace(**changed))


@functools.cache
def program():
  options = options_with(flip=1.0, jitter=1.0, grey=1.0, blur=1.0)
  return jax.jit(lambda crop, drawn: augment.apply(crop, drawn, options))


def test_grey_is_that_of_torchvision(torch, transforms):
  for image in images():
    mine = jnp.moveaxis(program()(image, drawn_with(grey=True)), -1, 0)
    tensor = torch.tensor(np.array(planes(image)))
    wanted = transforms.functional.rgb_to_grayscale(tensor, 3).numpy()
    # Again 0.2989 against 0.299.
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1.1e-4)
    grey = transforms.functional.to_grayscale(Image.fromarray(image), 3)
    assert levels_apart(mine, grey).max() <= 0.51  # Rounded to a byte, once.


def test_flip_is_that_of_torchvision(transforms):
  for image in images():
    mine = jnp.moveaxis(program()(image, drawn_with(flip=True)), -1, 0)
    flipped = transforms.functional.hflip(Image.fromarray(image))
    assert levels_apart(mine, flipped).max() < 1e-4


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_any_order_of_jitter_is_that_of_torchvision(torch, transforms, order):
  rng = np.random.default_rng(order)
  factor_3, turn = rng.uniform(0.2, 1.8, 3), rng.uniform(-0.2, 0.2)
  drawn = drawn_with(
    jitter=True,
    factor_3=factor_3.astype(np.float32),
    order_3=np.array([op for op in order if op < 3]),
    before_hue=order.index(3),
    turn=np.float32(turn),
  )
  for image in images():
    wanted = torch.tensor(np.array(planes(image)))
    for op in order:
      theirs = getattr(transforms.functional, f"adjust_{list(ADJUST)[op]}")
      wanted = theirs(wanted, float([*factor_3, turn][op]))
    mine = jnp.moveaxis(program()(image, drawn), -1, 0)
    # The greys' 1e-4, stretched by the factors that follow; a hue is steep
    # where colours are almost grey, so not every pixel need be as near.
    apart = np.abs(mine - wanted.numpy())
    assert apart.mean() < 2e-4
    assert np.quantile(apart, 0.999) < 2e-3


SIGMAS = (0.1, 0.3, 0.5, 0.8, 1.0, 1.3, 1.6, 2.0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_is_the_gaussian_of_torchvision(torch, transforms, sigma):
  for image in images():
    mine = augment.gaussian_blur(planes(image), sigma)
    tensor = torch.tensor(np.array(planes(image)))
    # 13 taps as we have; edges are mirrored there and repeated here.
    wanted = transforms.functional.gaussian_blur(tensor, 13, sigma).numpy()
    inner = np.s_[:, 6:-6, 6:-6]
    np.testing.assert_allclose(mine[inner], wanted[inner], rtol=0, atol=2e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_blur_is_near_the_boxes_with_which_pil_imitates_a_gaussian(sigma):
  """PIL runs three box filters, of bytes, wide enough for the same variance.

  Most images cannot tell. Noise of single pixels can: at a sigma of 0.3 three
  boxes barely wider than a pixel are no Gaussian, and near the edges each box
  repeats what the box before has smoothed.
  """
  for number, image in enumerate(images()):
    mine = augment.gaussian_blur(planes(image), sigma)
    boxes = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    apart = levels_apart(mine, boxes)
    noise = number == 3
    assert apart.mean() <= (11 if noise else 1)
    assert apart.max() <= (40 if noise else 10)


def test_normalised_pixels_are_those_of_torchvision(torch, transforms):
  options = keys.base().augment
  for image in images():
    mine = preprocessing.normalize(
      augment.to_float(image), options.mean, options.std
    )
    tensor = transforms.functional.to_tensor(Image.fromarray(image))
    wanted = transforms.functional.normalize(tensor, options.mean, options.std)
    np.testing.assert_allclose(
      np.moveaxis(np.asarray(mine), -1, 0), wanted.numpy(), atol=1e-6
    )
