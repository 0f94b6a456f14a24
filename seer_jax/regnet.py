"""RegNet: a network from five numbers (Radosavovic et al. 2020, section 3).

    depth, w_0, w_a, w_m, group_width  ->  widths and depths of the stages

SEER's trunks are RegNetY (with squeeze-and-excitation); `FAMILY` holds the
published ones by their usual names. The trunk is a Linen module of its own:
float images in, a dict of named taps out (`conv1, res2 ... res5, avgpool`, as
VISSL names them).
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from seer_jax import conv


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
  if w_a < 0 or w_0 <= 0 or w_m <= 1 or w_0 % 8:
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
FAMILY: Mapping[str, tuple[int, int, float, float, int]] = {
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


class BatchNorm(nn.Module):
  """Batch normalisation over the rows of the global batch, in float32.

  Under `jit` the mean over rows is the mean over every device's rows, which is
  what PyTorch calls SyncBN. `groups` > 1 normalises runs of neighbouring rows
  apart from each other, as SEER's SyncBN groups did. Running statistics keep
  PyTorch's convention: the unbiased variance, decay 0.9.
  """

  groups: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    mean_C = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
    var_C = self.variable("batch_stats", "var", jnp.ones, (channels,))
    mean, var = mean_C.value, var_C.value
    y = x.astype(jnp.float32)
    if train:
      # One part is the whole batch, which keeps its shape: compilers handle
      # the reshape badly.
      if self.groups > 1:
        y = y.reshape(self.groups, -1, *x.shape[1:])
      parts = int(self.groups > 1)
      mean, var = _moments(y, tuple(range(parts, y.ndim - 1)), around_C=mean)
      if not self.is_initializing():
        count = y.size / mean.size
        self._update(mean_C, mean)
        self._update(var_C, var * count / max(count - 1, 1))
    # One multiplication and addition an element; the rest is per channel.
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    y = y * factor + (bias - mean * factor)
    return y.astype(x.dtype).reshape(x.shape)

  def _update(self, running_C, batch):
    batch_C = jnp.mean(batch.reshape(-1, batch.shape[-1]), axis=0)
    running_C.value = (
      self.momentum * running_C.value + (1 - self.momentum) * batch_C
    )


def _moments(y, axes, around_C):
  """Mean and variance over `axes`, kept as axes of one.

  In one pass over the data, around the running mean: E[y^2] - E[y]^2 would
  cancel where the mean is large.
  """
  around_C = jax.lax.stop_gradient(around_C)
  shifted = y - around_C
  mean = jnp.mean(shifted, axes, keepdims=True)
  square = jnp.mean(jnp.square(shifted), axes, keepdims=True)
  return mean + around_C, jnp.maximum(square - jnp.square(mean), 0)


def he_fan_out(key, shape, dtype=jnp.float32):
  """N(0, 2 / (k k out)), whatever the number of groups: SEER's trunk init."""
  return jax.random.normal(key, shape, dtype) * jnp.sqrt(
    2 / (shape[0] * shape[1] * shape[-1])
  ).astype(dtype)


def uniform_fan_in(fan_in: int):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for a bias."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class Conv1x1(nn.Module):
  """A 1x1 convolution; a stride slices first, then it is a matrix product."""

  features: int
  stride: int = 1
  bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param("kernel", he_fan_out, shape)
    if self.stride > 1:
      x = x[:, :: self.stride, :: self.stride]
    y = x @ kernel[0, 0].astype(x.dtype)
    if self.bias:
      init = uniform_fan_in(x.shape[-1])
      y += self.param("bias", init, (self.features,)).astype(x.dtype)
    return y


class Conv3x3(nn.Module):
  """A grouped 3x3 convolution without bias, padding 1."""

  features: int
  groups: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (3, 3, x.shape[-1] // self.groups, self.features)
    kernel = self.param("kernel", he_fan_out, shape).astype(x.dtype)
    return conv.grouped_conv3x3(x, kernel, self.groups, self.stride)


class SqueezeExcite(nn.Module):
  """Scales channels by a gate computed from their global mean."""

  squeeze: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
    gate = gate.astype(x.dtype)
    gate = nn.relu(Conv1x1(self.squeeze, bias=True, name="reduce")(gate))
    gate = Conv1x1(x.shape[-1], bias=True, name="expand")(gate)
    return x * nn.sigmoid(gate)


class Block(nn.Module):
  """The bottleneck block: 1x1, grouped 3x3 (strided), SE, 1x1, shortcut."""

  width: int
  group_width: int
  stride: int
  se_ratio: float
  bn_groups: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def norm(name, y):
      return BatchNorm(self.bn_groups, name=name)(y, train)

    groups = self.width // self.group_width
    y = nn.relu(norm("bn_a", Conv1x1(self.width, name="a")(x)))
    y = Conv3x3(self.width, groups, self.stride, name="b")(y)
    y = nn.relu(norm("bn_b", y))
    if self.se_ratio:
      # Of the block's input width, half to even, as SEER's code computes it.
      y = SqueezeExcite(round(self.se_ratio * x.shape[-1]), name="se")(y)
    y = norm("bn_c", Conv1x1(self.width, name="c")(y))
    if x.shape[-1] != self.width or self.stride != 1:
      x = Conv1x1(self.width, self.stride, name="shortcut")(x)
      x = norm("bn_shortcut", x)
    return nn.relu(x + y)


class RegNet(nn.Module):
  """The trunk.

  Attributes:
    architecture: its shape.
    bn_groups: how many parts of the batch BatchNorm treats apart.
    remat: whether to recompute each block in the backward pass, trading about
      a third more arithmetic for activations of one block at a time.
  """

  architecture: Architecture
  bn_groups: int = 1
  remat: bool = False

  @nn.compact
  def __call__(self, x_NxHxWx3: jax.Array, train: bool) -> dict[str, jax.Array]:
    """Float images to taps; `avgpool` is N x D in float32, the rest maps."""
    arch = self.architecture
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    x = nn.Conv(
      arch.stem_width,
      (3, 3),
      (arch.stem_stride, arch.stem_stride),
      padding=1,
      use_bias=False,
      kernel_init=he_fan_out,
      dtype=x_NxHxWx3.dtype,
      name="stem",
    )(x_NxHxWx3)
    x = nn.relu(BatchNorm(self.bn_groups, name="bn_stem")(x, train))
    taps = {"conv1": x}
    stages = zip(
      arch.depths, arch.widths, arch.group_widths, arch.strides, strict=True
    )
    for stage, (depth, width, group_width, stride) in enumerate(stages, 1):
      for index in range(depth):
        x = block(
          width=width,
          group_width=group_width,
          stride=stride if index == 0 else 1,
          se_ratio=arch.se_ratio,
          bn_groups=self.bn_groups,
          name=f"stage{stage}_block{index}",
        )(x, train)
      taps[f"res{stage + 1}"] = x
    taps["avgpool"] = jnp.mean(x, (1, 2), dtype=jnp.float32)
    return taps
