"""RegNets from five numbers (Radosavovic et al. 2020, section 3).

    depth, w_0, w_a, w_m, group_width  ->  widths and depths of the stages

X is plain, Y has squeeze-and-excitation (SEER's trunks are Y), Z (Dollar et al.
2021) has wide linear bottlenecks. `MODELS` has the published ones by name.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_DEEPEST = 1000


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The shape of a trunk, stage by stage."""

  depths: tuple[int, ...]  # Blocks of each stage.
  widths: tuple[int, ...]  # Channels of each stage.
  # Channels a group of each stage's 3x3 convolution.
  group_widths: tuple[int, ...]
  # Squeeze width relative to the block's input width; 0 for none.
  se_ratio: float = 0.25
  stem_width: int = 32  # Channels after the first convolution.
  stem_stride: int = 2  # 2 as published; 1 keeps the pixels of small images.
  # Of each stage's first block; 2 as published.
  strides: tuple[int, ...] = (2, 2, 2, 2)
  bottleneck: float = 1.0  # Channels inside a block over its width; 4 for Z.
  # Z's blocks: SiLU instead of ReLU, no activation after the sum, and a
  # shortcut only where shapes agree.
  linear: bool = False
  # Whether an activation follows the last stage of such a trunk, as in timm but
  # not in Classy Vision.
  last_activation: bool = False

  def __post_init__(self):
    stages = {len(self.depths), len(self.widths), len(self.group_widths)}
    if stages != {len(self.strides)}:
      raise ValueError(
        f"depths={self.depths}, widths={self.widths}, group_widths="
        f"{self.group_widths} and strides={self.strides} must each have one"
        " entry per stage"
      )
    for width, group in zip(self.inner, self.group_widths, strict=True):
      if width < 1 or group < 1 or width % group:
        raise ValueError(
          f"a stage of {width} channels cannot be divided into groups of"
          f" {group}"
        )
    if min(self.depths) < 1 or sum(self.depths) > _DEEPEST:
      raise ValueError(
        f"depths={self.depths}: each stage needs at least one block, and all"
        f" together may have {_DEEPEST}"
      )

  @property
  def inner(self) -> tuple[int, ...]:
    """Channels of each stage's 3x3 convolutions."""
    return tuple(round(width * self.bottleneck) for width in self.widths)

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
  strides: tuple[int, ...] = (2, 2, 2, 2),
  bottleneck: float = 1.0,
  lenient: bool = False,
  **others: Any,
) -> Architecture:
  """Widths and depths by the paper's rule, rounded as in SEER's code.

  Widths grow linearly, u_j = w_0 + w_a j, and are quantized to powers of w_m
  times w_0; a stage is a run of equal widths. Each width is then rounded to
  whole groups, but not to a multiple of 8 again: hence SEER's 4103 channels.
  Raises ValueError if the numbers break the rule's conditions, or make more or
  fewer stages than `strides` has entries.

  Args:
    depth: number of blocks.
    w_0: the first width, a multiple of 8.
    w_a: how much wider each block is.
    w_m: the ratio of neighbouring widths.
    group_width: channels per group, if a stage has as many.
    lenient: round as torchvision does: one more group if a stage would lose a
      tenth of its width.
    **others: fields of `Architecture`.
  """
  _check_numbers(depth, w_0, w_a, w_m, group_width)
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
  inner = (widths * bottleneck).astype(int)
  group_widths = np.minimum(group_width, inner)
  if lenient:
    groups = np.floor(inner / group_widths + 0.5)
    groups += groups * group_widths < 0.9 * inner
  else:
    groups = np.round(inner / group_widths)
  widths = (groups * group_widths / bottleneck).astype(int)
  return Architecture(
    depths=tuple(depths.tolist()),
    widths=tuple(widths.tolist()),
    group_widths=tuple(group_widths.tolist()),
    strides=tuple(strides),
    bottleneck=bottleneck,
    **others,
  )


def _check_numbers(depth, w_0, w_a, w_m, group_width):
  whole = isinstance(depth, int) and isinstance(group_width, int)
  if not whole or not 0 < depth <= _DEEPEST or not 0 < group_width <= 2**16:
    raise ValueError(
      f"a RegNet needs whole numbers, a depth from 1 to {_DEEPEST} and a group"
      f" width from 1 to {2**16}; got depth={depth}, group width={group_width}"
    )
  if w_a < 0 or not 0 < w_0 <= 2**16 or w_m <= 1 or w_0 % 8:
    raise ValueError(
      "a RegNet needs w_a >= 0, w_0 > 0 and a multiple of 8, w_m > 1; got"
      f" w_a={w_a}, w_0={w_0}, w_m={w_m}"
    )


def name_of(architecture: Architecture) -> str:
  """Its name in `MODELS`, or a description."""
  alike = dataclasses.replace(architecture, last_activation=False)
  for name, known in MODELS.items():
    if known == alike:
      return name
  return (
    f"a RegNet of depths {architecture.depths}, widths {architecture.widths},"
    f" group widths {architecture.group_widths}"
  )


# name: depth, w_0, w_a, w_m, group_width.
# Sources: Radosavovic et al. 2020; Dollar et al. 2021 (Z); Goyal et al. 2021
# and 2022 (seer_*). The Y of 256 GF that is not SEER's is in no paper, but in
# files of VISSL and Hugging Face under SEER's name.
_NUMBERS: Mapping[str, tuple[int, int, float, float, int]] = {
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
  "regnety_256gf": (27, 640, 124.47, 2.04, 848),
  "regnetz_500mf": (21, 16, 10.7, 2.51, 4),
  "regnetz_4gf": (28, 48, 14.5, 2.226, 8),
  "seer_256gf": (27, 640, 230.83, 2.53, 373),
  "seer_10b": (27, 1744, 620.83, 2.52, 1010),
}

# torchvision rounds these differently, and uses the same names.
_LENIENT = ("regnetx_400mf", "regnety_800mf", "regnety_8gf")


def _family():
  kinds = {
    "regnetx": {"se_ratio": 0.0},
    "regnetz": {"bottleneck": 4.0, "linear": True},
  }
  for name, numbers in _NUMBERS.items():
    yield name, from_numbers(*numbers, **kinds.get(name.split("_")[0], {}))
  for name in _LENIENT:
    kind = kinds.get(name.split("_")[0], {})
    yield (f"{name}_tv", from_numbers(*_NUMBERS[name], lenient=True, **kind))
  # Between RG-256 and RG-10B; not made by the rule.
  yield (
    "seer_3b",
    Architecture((1, 4, 4, 1), (1840, 3680, 10120, 25760), (920,) * 4),
  )


MODELS: Mapping[str, Architecture] = dict(_family())

# timm's names count in tens of MF; a suffix means torchvision's rounding.
_TENS = {
  "002": "200mf", "004": "400mf", "006": "600mf", "008": "800mf",
  "016": "1.6gf", "032": "3.2gf", "040": "4.0gf", "064": "6.4gf",
  "080": "8gf", "120": "12gf", "160": "16gf", "320": "32gf",
  "640": "64gf", "1280": "128gf",
}  # fmt: skip


def find(name: str) -> Architecture:
  """A published trunk, by its name in `MODELS`, timm or torchvision.

  Raises ValueError if the name is unknown.
  """
  return MODELS[canonical(name)]


def canonical(name: str) -> str:
  """The name in `MODELS` for another project's name.

  `regnety_320` and `regnety_320.seer` are timm's, `regnet_y_32gf` is
  torchvision's, `regnet-y-320-seer` is Hugging Face's. Raises ValueError if the
  name is unknown.
  """
  if name in MODELS:
    return name
  plain = name.lower().removeprefix("timm/").removeprefix("facebook/")
  if (
    ours := re.fullmatch(r"regnet_([xy])_(\d+)(mf|_\dgf|gf)", plain)
  ) is not None:
    size = ours[2] + ours[3].replace("_", ".")
    found = f"regnet{ours[1]}_{size}"
    found += "_tv" if f"{found}_tv" in MODELS else ""
  elif plain.startswith("regnet-y-10b"):
    found = "seer_10b"
  elif theirs := re.match(r"regnet-?([xyz])[-_](\d+)(_tv)?(?=[.-]|$)", plain):
    found = f"regnet{theirs[1]}_{_TENS.get(theirs[2], theirs[2])}"
    found += theirs[3] or ""
    found = {
      "regnety_2560": "seer_256gf",
      "regnetz_4.0gf": "regnetz_4gf",
      "regnetz_005": "regnetz_500mf",
    }.get(found, found)
  else:
    found = ""
  if found in MODELS:
    return found
  near = difflib.get_close_matches(name, MODELS, 1, cutoff=0.8)
  hint = f"did you mean {near[0]}? " if near else ""
  raise ValueError(
    f"there is no trunk {name!r}; {hint}use one of {', '.join(MODELS)}"
  )
