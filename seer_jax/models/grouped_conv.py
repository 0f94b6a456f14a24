"""The grouped 3x3 convolution: one function, with a path per platform.

It is the one operation of a RegNet that compilers handle badly:

* XLA:CPU differentiates `feature_group_count` a hundred times slower than
  necessary. On a CPU our own kernels do it (`cpu_kernels.py`), or else
  neighbouring groups are merged into block-diagonal dense kernels, with which
  XLA takes three to four times as long.
* Under plain `jit` the GPU and CPU partitioners gather the whole global batch
  into a grouped convolution, so it runs under `shard_map` and never sees a
  sharded batch: 593 GiB per device become 24.5 for SEER's RG-256.

The path is chosen when the function is lowered, not when it is traced: a CPU
process can compile it for a TPU.
"""

import functools

import jax
import jax.numpy as jnp

from seer_jax.models import cpu_kernels

# Dense CPU kernels narrower than this leave vector units idle; wider ones pay
# for more zeros than they save in calls.
_MERGED_CHANNELS = 32
# Channels of 16-bit numbers that tensor cores process at a time.
_ALIGNED = 8
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def grouped_conv3x3(
  x_NxHxWxC: jax.Array, kernel_3x3xGxC: jax.Array, groups: int, stride: int
) -> jax.Array:
  """Convolves each group of channels with its own 3x3 kernels, padding 1.

  Args:
    x_NxHxWxC: activations.
    kernel_3x3xGxC: HWIO kernel, G input channels per group; its last axis has
      the output channels of group 0, then of group 1, and so on.
    groups: a divisor of C.
    stride: 1 or 2.

  Returns:
    Activations of H and W divided by `stride`, rounded up.
  """
  return _on_each_shard(
    functools.partial(_forward, groups=groups, stride=stride),
    x_NxHxWxC,
    kernel_3x3xGxC,
  )


def _save_operands(x, kernel, groups, stride):
  return grouped_conv3x3(x, kernel, groups, stride), (x, kernel)


def _pull_back(groups, stride, operands, dy):
  """The convolution is linear in each operand, so nothing is recomputed."""
  x, kernel = operands
  backward = functools.partial(_backward, groups=groups, stride=stride)
  return _on_each_shard(backward, x, kernel, dy)


grouped_conv3x3.defvjp(_save_operands, _pull_back)


def _forward(x, kernel, *, axes, groups, stride):
  del axes  # Every output row comes from one input row.
  return jax.lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_on_cpu, groups=groups, stride=stride),
    cuda=functools.partial(_aligned, groups=groups, stride=stride),
    default=functools.partial(_native, groups=groups, stride=stride),
  )


def _backward(x, kernel, dy, *, axes, groups, stride):
  def vjp_of(path):
    conv = functools.partial(path, groups=groups, stride=stride)
    return lambda x, kernel, dy: jax.vjp(conv, x, kernel)[1](dy)

  def on_cpu(x, kernel, dy):
    if cpu_kernels.can_convolve(x, kernel):
      return cpu_kernels.grouped_conv_gradients(x, kernel, dy, stride)
    return vjp_of(_merged)(x, kernel, dy)

  dx, dkernel = jax.lax.platform_dependent(
    x, kernel, dy, cpu=on_cpu, cuda=vjp_of(_aligned), default=vjp_of(_native)
  )
  return dx, jax.lax.psum(dkernel, axes) if axes else dkernel


def _on_cpu(x, kernel, *, groups, stride):
  if cpu_kernels.can_convolve(x, kernel):
    return cpu_kernels.grouped_conv(x, kernel, stride)
  return _merged(x, kernel, groups=groups, stride=stride)


def _native(x, kernel, *, groups, stride):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=_DIMENSIONS,
    feature_group_count=groups,
  )


def _aligned(x, kernel, *, groups, stride):
  """Pads groups with zeros to a multiple of the tensor cores' channels.

  Exact; the cost of copying the maps has not been measured.
  """
  width_in, width_out = kernel.shape[2], kernel.shape[3] // groups
  more_in, more_out = -width_in % _ALIGNED, -width_out % _ALIGNED
  if x.dtype.itemsize != 2 or not (more_in or more_out):
    return _native(x, kernel, groups=groups, stride=stride)

  x = x.reshape(*x.shape[:3], groups, width_in)
  x = jnp.pad(x, ((0, 0),) * 4 + ((0, more_in),))
  x = x.reshape(*x.shape[:3], -1)
  kernel = kernel.reshape(9, width_in, groups, width_out)
  kernel = jnp.pad(kernel, ((0, 0), (0, more_in), (0, 0), (0, more_out)))
  kernel = kernel.reshape(3, 3, width_in + more_in, -1)
  y = _native(x, kernel, groups=groups, stride=stride)
  y = y.reshape(*y.shape[:3], groups, -1)[..., :width_out]
  return y.reshape(*y.shape[:3], -1)


def _merged(x, kernel, *, groups, stride):
  """Dense convolutions over runs of neighbouring groups."""
  width_in, width_out = kernel.shape[2], kernel.shape[3] // groups
  run = min(groups, -(-_MERGED_CHANNELS // width_in))
  pieces = []
  for first in range(0, groups, run):
    last = min(first + run, groups)
    dense = _block_diagonal(
      kernel[..., first * width_out : last * width_out], last - first
    )
    piece = x[..., first * width_in : last * width_in]
    pieces.append(_native(piece, dense, groups=1, stride=stride))
  return jnp.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0]


def _block_diagonal(kernel, groups):
  """[3, 3, G, groups * O] -> [3, 3, groups * G, groups * O], zero off-diagonal.

  Written with pads: the shorter product with an identity matrix compiles to
  code that crashes XLA:CPU in jax 0.10.
  """
  if groups == 1:
    return kernel
  width_in, width_out = kernel.shape[2], kernel.shape[3] // groups
  blocks = []
  for group in range(groups):
    block = kernel[..., group * width_out : (group + 1) * width_out]
    above, below = group * width_in, (groups - 1 - group) * width_in
    blocks.append(jnp.pad(block, ((0, 0), (0, 0), (above, below), (0, 0))))
  return jnp.concatenate(blocks, axis=-1)


def _on_each_shard(fn, x, kernel, *cotangent):
  """Runs `fn(x, kernel, ...)` on each device's own rows.

  The mesh is the one set around the trace (`jax.set_mesh`). Without one, or on
  one device, `fn` sees the whole array.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(name for name, size in mesh.shape.items() if size > 1)
  if not axes:
    return fn(x, kernel, *cotangent, axes=())
  rows, whole = jax.P(axes), jax.P()
  return jax.shard_map(
    functools.partial(fn, axes=axes),
    in_specs=(rows, whole) + (rows,) * len(cotangent),
    out_specs=(rows, whole) if cotangent else rows,
    check_vma=False,
  )(x, kernel, *cotangent)
