"""What is random about a crop: its box and its augmentation, as published."""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from seer_jax.config import keys as config_keys
from seer_jax.data import crops
from seer_jax.tasks import augment

RATIO = (3 / 4, 4 / 3)
# Chance of a false alarm of one test of a distribution; the seeds are fixed, so
# an alarm that did not sound never will.
P_VALUE = 1e-3


def shares(boxes_Nx4, height, width):
  """Area share, log aspect ratio, and place from 0 to 1 down and across."""
  top, left, h, w = np.array(boxes_Nx4, float).T
  free_h, free_w = np.maximum(height - h, 1), np.maximum(width - w, 1)
  return {
    "area": h * w / (height * width),
    "aspect": np.log(w / h),
    "down": top / free_h,
    "across": left / free_w,
  }


def their_boxes(torch, transforms, height, width, scale, count):
  torch.manual_seed(0)
  image = torch.empty(3, height, width)
  draw = transforms.RandomResizedCrop.get_params
  return [draw(image, list(scale), list(RATIO)) for _ in range(count)]


def my_boxes(height, width, scale, count):
  rng = np.random.default_rng(0)
  return [
    crops.random_box(rng, height, width, scale, RATIO) for _ in range(count)
  ]


@pytest.mark.parametrize("scale", [(0.14, 1.0), (0.05, 0.14)])
# The last two are so long that many draws, not all, end in the fallback.
@pytest.mark.parametrize(
  ("height", "width"),
  [(375, 500), (500, 333), (64, 64), (100, 700), (700, 100)],
)
def test_boxes_are_distributed_as_torchvisions(
  torch, transforms, height, width, scale
):
  count = 5000
  mine = shares(my_boxes(height, width, scale, count), height, width)
  boxes = their_boxes(torch, transforms, height, width, scale, count)
  theirs = shares(boxes, height, width)
  for name, values in mine.items():
    p_value = stats.ks_2samp(values, theirs[name]).pvalue
    assert p_value > P_VALUE, name


@pytest.mark.parametrize(
  ("height", "width"), [(10, 1000), (1000, 10), (1, 50), (50, 1), (7, 333)]
)
def test_the_box_of_an_extreme_image_is_torchvisions(
  torch, transforms, height, width
):
  scale = (0.9, 1.0)
  (theirs,) = their_boxes(torch, transforms, height, width, scale, 1)
  assert my_boxes(height, width, scale, 1) == [theirs]


DRAWS = 20_000


@functools.cache
def drawn():
  """Parameters of many crops by the default options, as NumPy arrays."""
  options = config_keys.base().augment
  keys = jax.random.split(jax.random.key(0), DRAWS)
  many = jax.jit(jax.vmap(functools.partial(augment.draw, options=options)))
  return jax.tree.map(np.asarray, many(keys))


def orders():
  """The order of all four, each as the rank among the 24 permutations."""
  rank = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
  found = []
  for order_3, place in zip(drawn().order_3, drawn().before_hue, strict=True):
    order = [int(op) for op in order_3]
    order.insert(int(place), 3)
    found.append(rank[tuple(order)])
  return np.array(found)


@pytest.mark.parametrize(
  ("name", "probability"),
  [("flip", 0.5), ("jitter", 0.8), ("grey", 0.2), ("blur", 0.5)],
)
def test_operations_are_drawn_with_their_probabilities(name, probability):
  happened = int(getattr(drawn(), name).sum())
  assert stats.binomtest(happened, DRAWS, probability).pvalue > P_VALUE


def test_factors_turn_and_sigma_are_uniform():
  ranges = {
    "brightness": (drawn().factor_3[:, 0], 0.2, 1.8),
    "contrast": (drawn().factor_3[:, 1], 0.2, 1.8),
    "saturation": (drawn().factor_3[:, 2], 0.2, 1.8),
    "turn": (drawn().turn, -0.2, 0.2),
    "sigma": (drawn().sigma, 0.1, 2.0),
  }
  for name, (values, low, high) in ranges.items():
    uniform = stats.uniform(low, high - low)
    assert stats.kstest(values, uniform.cdf).pvalue > P_VALUE, name


def test_the_24_orders_are_equally_likely():
  counts = np.bincount(orders(), minlength=24)
  assert stats.chisquare(counts).pvalue > P_VALUE


def test_parameters_of_one_crop_are_independent():
  columns = np.stack(
    [
      *[drawn().flip, drawn().jitter, drawn().grey, drawn().blur],
      *[*drawn().factor_3.T, drawn().turn, drawn().sigma, orders()],
    ]
  )
  correlation = np.corrcoef(columns) - np.eye(len(columns))
  # Five standard errors, for 45 pairs.
  assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)


def test_jitter_is_drawn_as_torchvision_draws_it(torch, transforms):
  torch.manual_seed(0)
  jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
  ranges = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
  draws = [jitter.get_params(*ranges) for _ in range(4000)]
  order, *factors = zip(*draws, strict=True)
  mine = [*drawn().factor_3.T, drawn().turn]
  for values, theirs in zip(mine, factors, strict=True):
    assert stats.ks_2samp(values, theirs).pvalue > P_VALUE
  ranks = {o: i for i, o in enumerate(itertools.permutations(range(4)))}
  theirs = [ranks[tuple(o.tolist())] for o in order]
  table = [np.bincount(x, minlength=24) for x in (orders(), theirs)]
  assert stats.chi2_contingency(table).pvalue > P_VALUE
