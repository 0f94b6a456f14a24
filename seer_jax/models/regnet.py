"""RegNet, the trunk: a stem, four stages of bottleneck blocks, a mean.

A Linen module: float images in, a dict of named taps out (`conv1, res2 ...
res5, avgpool`, as in VISSL). `architectures.py` has the shapes.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from seer_jax.models import architectures, cpu_kernels, grouped_conv
from seer_jax.models.batch_norm import BatchNorm
from seer_jax.runtime import errors, mesh


def he_fan_out(key, shape, dtype=jnp.float32):
  """N(0, 2 / (k k out)), whatever the number of groups; as in SEER."""
  return jax.random.normal(key, shape, dtype) * jnp.sqrt(
    2 / (shape[0] * shape[1] * shape[-1])
  ).astype(dtype)


def uniform_fan_in(fan_in: int):
  """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for a bias."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def kernel_of(
  module: nn.Module, init: Any, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
  """A layer's whole `kernel` in its dtype, however the mesh stores it."""
  if module.is_initializing():
    return module.param("kernel", init, shape).astype(dtype)
  # Not `param`, which would refuse the padded shape of a split kernel.
  return mesh.whole(module.get_variable("params", "kernel"), shape, dtype)


class Conv1x1(nn.Module):
  """A 1x1 convolution: a stride slices first, then a matrix product."""

  features: int
  stride: int = 1
  bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (1, 1, x.shape[-1], self.features)
    kernel = kernel_of(self, he_fan_out, shape, x.dtype)
    if self.stride > 1:
      x = x[:, :: self.stride, :: self.stride]
    y = x @ kernel[0, 0]
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
    kernel = kernel_of(self, he_fan_out, shape, x.dtype)
    return grouped_conv.grouped_conv3x3(x, kernel, self.groups, self.stride)


class SqueezeExcite(nn.Module):
  """Scales channels by a gate computed from their global mean."""

  squeeze: int
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
    gate = gate.astype(x.dtype)
    gate = Conv1x1(self.squeeze, bias=True, name="reduce")(gate)
    gate = self.activation(gate)
    gate = Conv1x1(x.shape[-1], bias=True, name="expand")(gate)
    return x * nn.sigmoid(gate)


def _check_images(x):
  """Raises a clearer error than Flax would, about a kernel's shape."""
  fits = x.ndim == 4 and x.shape[3] == 3
  if fits and jnp.issubdtype(x.dtype, jnp.floating):
    return
  hint = "model.preprocessing(images) makes them from files, bytes or arrays"
  if fits and x.dtype == jnp.uint8:
    hint = "model.preprocessing.normalize(x) makes them from pixels of 0 to 255"
  elif x.ndim == 4 and x.shape[1] == 3:
    hint = "channels must come last: x.transpose(0, 2, 3, 1)"
  elif x.ndim == 3:
    hint = "a single image must be a batch of one: x[None]"
  raise errors.UserError(
    "the network takes normalized float images of shape NxHxWx3, but was given"
    f" {x.dtype} of shape {tuple(x.shape)}; {hint}"
  )


def activation_of(linear: bool) -> Callable[[jax.Array], jax.Array]:
  """ReLU, or SiLU for networks of linear blocks."""
  return nn.silu if linear else nn.relu


class Block(nn.Module):
  """The bottleneck block: 1x1, grouped 3x3 (strided), SE, 1x1, shortcut."""

  width: int  # Channels that leave the block.
  inner: int  # Channels of its 3x3 convolution.
  group_width: int  # Channels per group.
  stride: int
  se_ratio: float  # Squeeze width over the input width; 0 for none.
  linear: bool  # See `architectures.Architecture`.
  bn_groups: int  # See `batch_norm.BatchNorm`.

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, keep_N: jax.Array | None = None
  ) -> jax.Array:
    def norm(name, y, **then):
      return BatchNorm(self.bn_groups, name=name)(y, train, **then)

    def active(name, y):
      return nn.silu(norm(name, y)) if self.linear else norm(name, y, relu=True)

    activation = activation_of(self.linear)
    groups = self.inner // self.group_width
    y = active("bn_a", Conv1x1(self.inner, name="a")(x))
    y = Conv3x3(self.inner, groups, self.stride, name="b")(y)
    y = active("bn_b", y)
    if self.se_ratio:
      # Of the block's input width, rounded half to even, as in SEER's code.
      squeezed = max(1, round(self.se_ratio * x.shape[-1]))
      y = SqueezeExcite(squeezed, activation, name="se")(y)
    y = Conv1x1(self.width, name="c")(y)
    changes = x.shape[-1] != self.width or self.stride != 1
    if changes and not self.linear:
      x = Conv1x1(self.width, self.stride, name="shortcut")(x)
      x = norm("bn_shortcut", x)
    if not self.linear and keep_N is None:
      return norm("bn_c", y, add=x, relu=True)
    y = norm("bn_c", y)
    if keep_N is not None and not (self.linear and changes):
      y *= keep_N.astype(y.dtype)[:, None, None, None]
    if self.linear:
      return y if changes else x + y
    return nn.relu(x + y)


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a trunk is computed; the result does not depend on it.

  Attributes:
    remat: what the backward pass recomputes: "none"; the first blocks,
      "first-9" for nine, which have the largest maps; each "block"; or "group"s
      of blocks. It costs up to a third more arithmetic, and keeps the
      activations of one block or group at a time, and those between them.
    groups: for "group": for each stage, the blocks at which groups end. Later
      blocks are kept. SEER-10B: ((2,), (7,), (9, 17), ()).
    scan: whether the equal blocks of a stage (all but the first) become one
      loop: compiles in a fraction of the time, for a copy of their kernels.
  """

  remat: str = "none"
  groups: tuple[tuple[int, ...], ...] = ()
  scan: bool = False

  def recomputed(self, blocks: int) -> int:
    """How many of so many blocks, from the first, are each recomputed."""
    if first := re.fullmatch(r"first-(\d+)", self.remat):
      return min(blocks, int(first[1]))
    return blocks if self.remat == "block" else 0


def drawn_depth(keys_N: jax.Array, rate: float, blocks: int) -> jax.Array:
  """Stochastic depth: keep_blocksxN, factors for `RegNet` (Huang et al. 2016).

  A block is skipped with a probability that rises linearly with its depth, from
  0 for the first to `rate` for the last; kept blocks are scaled so that the
  mean stays.
  """
  kept_blocks = 1 - jnp.linspace(0, rate, blocks)

  def draw(key):
    return jax.random.bernoulli(key, kept_blocks) / kept_blocks

  return jax.vmap(draw, out_axes=1)(keys_N)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(block, train, portable, params, batch_stats, x, keep_N):
  """Applies a block by itself, so that equal blocks are traced once."""
  del portable  # What is traced depends on it.
  return block.apply(
    {"params": params, "batch_stats": batch_stats},
    x,
    train,
    keep_N,
    mutable=["batch_stats"],
  )


class RegNet(nn.Module):
  """The trunk."""

  architecture: architectures.Architecture
  bn_groups: int = 1  # Parts of the batch that BatchNorm normalizes separately.
  execution: Execution = Execution()  # How it is computed.

  @nn.compact
  def __call__(
    self,
    x_NxHxWx3: jax.Array,
    train: bool,
    keep_blocksxN: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """Float images to taps; `avgpool` is NxD in float32, the others are maps.

    Raises UserError if the images have another shape or dtype.

    Args:
      x_NxHxWx3: normalized images.
      train: whether BatchNorm uses statistics of the batch.
      keep_blocksxN: factors of what each block adds to its input, per image,
        for stochastic depth (`drawn_depth`); None keeps every block.
    """
    _check_images(x_NxHxWx3)
    arch = self.architecture
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
    norm = BatchNorm(self.bn_groups, name="bn_stem")
    x = nn.silu(norm(x, train)) if arch.linear else norm(x, train, relu=True)
    taps = {"conv1": x}
    for stage, depth in enumerate(arch.depths, 1):
      for first, last, again in self._groups(stage, depth):
        x = self._run(stage, first, last, again, x, train, keep_blocksxN)
      taps[f"res{stage + 1}"] = x
    if arch.last_activation:
      x = activation_of(arch.linear)(x)
    taps["avgpool"] = jnp.mean(x, (1, 2), dtype=jnp.float32)
    return taps

  def _groups(self, stage, depth):
    """Runs of blocks: (first, last + 1, whether to recompute them)."""
    again = self.execution.recomputed(sum(self.architecture.depths))
    again = min(max(again - self._before(stage), 0), depth)
    if self.execution.remat == "group":
      ends = tuple(self.execution.groups[stage - 1])
    else:
      ends = tuple(range(1, again + 1))
    firsts = (0, *ends)
    runs = [(*run, True) for run in zip(firsts, ends, strict=False)]
    rest = range(firsts[-1], depth)
    if self.execution.scan and again > 1:
      runs = [runs[0], (1, again, True)]
    return runs + ([(rest.start, depth, False)] if rest else [])

  def _run(self, stage, first, last, again, x, train, keep):
    """Blocks `first` to `last - 1` of a stage."""
    if self.execution.scan and not self.is_initializing() and last - first > 1:
      if first > 0:
        return self._scan(stage, first, last, again, x, train, keep)
      x = self._run(stage, 0, 1, again, x, train, keep)
      return self._run(stage, 1, last, again, x, train, keep)

    def run(trunk, x):
      for index in range(first, last):
        x = trunk._apply_block(stage, index, x, train, keep)
      return x

    return (nn.remat(run) if again else run)(self, x)

  def _before(self, stage):
    """How many blocks precede a stage."""
    return sum(self.architecture.depths[: stage - 1])

  def _apply_block(self, stage, index, x, train, keep):
    name = f"stage{stage}_block{index}"
    keep_N = None if keep is None else keep[self._before(stage) + index]
    if self.is_initializing():
      return self._block(stage, index, name=name)(x, train, keep_N)
    params = self.get_variable("params", name)
    if mesh.is_split():
      params = mesh.after(params, x)
    block = self._block(stage, index, parent=None)
    with jax.named_scope(name):
      y, changed = _apply(
        block,
        train,
        cpu_kernels.is_portable(),
        params,
        self.get_variable("batch_stats", name),
        x,
        keep_N,
      )
    if train and self.is_mutable_collection("batch_stats"):
      self.put_variable("batch_stats", name, changed["batch_stats"])
    return y

  def _block(self, stage, index, **kwargs):
    arch, at = self.architecture, stage - 1
    return Block(
      width=arch.widths[at],
      inner=arch.inner[at],
      group_width=arch.group_widths[at],
      stride=arch.strides[at] if index == 0 else 1,
      se_ratio=arch.se_ratio,
      linear=arch.linear,
      bn_groups=self.bn_groups,
      **kwargs,
    )

  def _scan(self, stage, first, last, again, x, train, keep):
    """Equal blocks as one loop over their stacked variables."""
    names = [f"stage{stage}_block{index}" for index in range(first, last)]
    block = self._block(stage, first, parent=None)

    def short(path, leaf):
      # The loop's copies of the kernels have the layers' dtype.
      is_kernel = mesh.path_of(path).endswith("kernel")
      return leaf.astype(x.dtype) if is_kernel else leaf

    stacked = {}
    for kind in ("params", "batch_stats"):
      each = [self.get_variable(kind, name) for name in names]
      each = jax.tree.map_with_path(short, each)
      stacked[kind] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def body(x, each):
      variables, keep_N = each
      y, changed = block.apply(
        variables, x, train, keep_N, mutable=["batch_stats"]
      )
      return y, changed["batch_stats"]

    body = jax.checkpoint(body, prevent_cse=False) if again else body
    if keep is not None:
      keep = keep[self._before(stage) :][first:last]
    x, stats = jax.lax.scan(body, x, (stacked, keep))
    if train and self.is_mutable_collection("batch_stats"):
      for index, name in enumerate(names):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], stats)
        self.put_variable("batch_stats", name, own)
    return x
