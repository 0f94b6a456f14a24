"""RegNets from five numbers (Radosavovic et al. 2020, section 3).

    depth, w_0, w_a, w_m, group_width  ->  widths and depths of the stages

SEER's trunks are RegNetY (with squeeze-and-excitation); `MODELS` holds the
published ones by their usual names.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The shape of a trunk, stage by stage.

  Attributes:
    depths: blocks of each stage.
    widths: channels of each stage.
    group_widths: channels a group of each stage's 3x3 convolution.
    se_ratio: squeeze width over the block's input width; 0 for none.
    stem_width: channels after the first convolution.
    stem_stride: 2 as published; 1 keeps the pixels of small images.
    strides: of each stage's first block; 2 as published.
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  group_widths: tuple[int, ...]
  se_ratio: float = 0.25
  stem_width: int = 32
  stem_stride: int = 2
  strides: tuple[int, ...] = (2, 2, 2, 2)

  @property
  def features(self) -> int:
    """D, the width of the pooled features."""
    return self.widths[-1]


def from_numbers(
  depth: int,
  w_0: int,
  w_a: float,
  w_m: float,
  group_width: int,
  *,
  se_ratio: float = 0.25,
  stem_width: int = 32,
  stem_stride: int = 2,
  strides: tuple[int, ...] = (2, 2, 2, 2),
) -> Architecture:
  """Widths and depths by the paper's rule, as SEER's code rounds them.

  Widths grow linearly, u_j = w_0 + w_a j, and are quantised to powers of w_m
  times w_0; a stage is a run of equal widths. Each width is then rounded to
  whole groups, without rounding to 8 again: hence SEER's 4103 channels.

  Raises:
    ValueError: the numbers break the rule's conditions, or make more or fewer
      stages than `strides` has entries.
  """
  whole = isinstance(depth, int) and isinstance(group_width, int)
  if not whole or not 0 < depth <= 1000 or not 0 < group_width <= 2**16:
    raise ValueError(
      "a RegNet needs whole numbers, a depth from 1 to 1000 and a group width"
      f" from 1 to {2**16}; got depth={depth}, group width={group_width}"
    )
  if w_a < 0 or not 0 < w_0 <= 2**16 or w_m <= 1 or w_0 % 8:
    raise ValueError(
      "a RegNet needs w_a >= 0, w_0 > 0 and a multiple of 8, w_m > 1; got"
      f" w_a={w_a}, w_0={w_0}, w_m={w_m}"
    )
  u_d = w_0 + w_a * np.arange(depth)
  exponents_d = np.round(np.log(u_d / w_0) / np.log(w_m))
  widths_d = (8 * np.round(w_0 * w_m**exponents_d / 8)).astype(int)
  widths, depths = np.unique(widths_d, return_counts=True)
  if len(widths) != len(strides):
    raise ValueError(
      f"depth={depth}, w_0={w_0}, w_a={w_a}, w_m={w_m} make {len(widths)}"
      f" stages, of widths {widths.tolist()}, but strides={strides} is for"
      f" {len(strides)}"
    )
  group_widths = np.minimum(group_width, widths)
  widths = np.round(widths / group_widths).astype(int) * group_widths
  return Architecture(
    depths=tuple(depths.tolist()),
    widths=tuple(widths.tolist()),
    group_widths=tuple(group_widths.tolist()),
    se_ratio=se_ratio,
    stem_width=stem_width,
    stem_stride=stem_stride,
    strides=tuple(strides),
  )


# name: depth, w_0, w_a, w_m, group_width. X has no squeeze-and-excitation.
# Sources: Radosavovic et al. 2020; Goyal et al. 2021 and 2022 (seer_*).
MODELS: Mapping[str, tuple[int, int, float, float, int]] = {
  "regnetx_200mf": (13, 24, 36.44, 2.49, 8),
  "regnetx_400mf": (22, 24, 24.48, 2.54, 16),
  "regnetx_600mf": (16, 48, 36.97, 2.24, 24),
  "regnetx_800mf": (16, 56, 35.73, 2.28, 16),
  "regnetx_1.6gf": (18, 80, 34.01, 2.25, 24),
  "regnetx_3.2gf": (25, 88, 26.31, 2.25, 48),
  "regnetx_4.0gf": (23, 96, 38.65, 2.43, 40),
  "regnetx_6.4gf": (17, 184, 60.83, 2.07, 56),
  "regnetx_8gf": (23, 80, 49.56, 2.88, 120),
  "regnetx_12gf": (19, 168, 73.36, 2.37, 112),
  "regnetx_16gf": (22, 216, 55.59, 2.1, 128),
  "regnetx_32gf": (23, 320, 69.86, 2.0, 168),
  "regnety_200mf": (13, 24, 36.44, 2.49, 8),
  "regnety_400mf": (16, 48, 27.89, 2.09, 8),
  "regnety_600mf": (15, 48, 32.54, 2.32, 16),
  "regnety_800mf": (14, 56, 38.84, 2.4, 16),
  "regnety_1.6gf": (27, 48, 20.71, 2.65, 24),
  "regnety_3.2gf": (21, 80, 42.63, 2.66, 24),
  "regnety_4.0gf": (22, 96, 31.41, 2.24, 64),
  "regnety_6.4gf": (25, 112, 33.22, 2.27, 72),
  "regnety_8gf": (17, 192, 76.82, 2.19, 56),
  "regnety_12gf": (19, 168, 73.36, 2.37, 112),
  "regnety_16gf": (18, 200, 106.23, 2.48, 112),
  "regnety_32gf": (20, 232, 115.89, 2.53, 232),
  "regnety_64gf": (20, 352, 147.48, 2.4, 328),
  "regnety_128gf": (27, 456, 160.83, 2.52, 264),
  "seer_256gf": (27, 640, 230.83, 2.53, 373),
  "seer_10b": (27, 1744, 620.83, 2.52, 1010),
}
