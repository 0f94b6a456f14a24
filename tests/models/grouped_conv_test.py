import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seer_jax.models import cpu_kernels, grouped_conv
from seer_jax.runtime import mesh

# Groups, channels a group, stride, side: whole merges and ragged ones, one
# group, odd widths, and the merge of two groups of 16 whose plain form crashes
# XLA:CPU in jax 0.10. Of the compiled kernels: one, two and three vectors a
# group, chunks of several images and of some rows.
SHAPES = [
  (1, 16, 1, 4),
  (2, 16, 1, 8),
  (2, 16, 2, 8),
  (3, 8, 2, 5),
  (7, 8, 1, 4),
  (2, 37, 1, 3),
  (2, 56, 2, 6),
  (1, 64, 1, 5),
  (2, 8, 2, 33),
]


@pytest.fixture(params=["kernels", "xla"])
def path(request):
  """The compiled kernels, and what there is without them."""
  if request.param == "xla":
    with cpu_kernels.portable():
      yield request.param
  elif cpu_kernels.is_there():
    yield request.param
  else:
    pytest.skip("needs a C++ compiler")


def operands(groups, width, side):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (8, side, side, groups * width))
  kernel = jax.random.normal(keys[1], (3, 3, width, groups * width))
  return x, kernel / (9 * width) ** 0.5


def native(x, kernel, groups, stride):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def value_and_gradients(fn, groups, stride):
  def loss(x, kernel):
    y = fn(x, kernel, groups, stride)
    return jnp.mean(jnp.sin(y)), y

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("groups", "width", "stride", "side"), SHAPES)
def test_value_and_gradients_equal_the_native_convolution(
  groups, width, stride, side, devices, path
):
  x, kernel = operands(groups, width, side)
  wanted = value_and_gradients(native, groups, stride)(x, kernel)
  here = mesh.make(devices)
  with jax.set_mesh(here):
    x = jax.device_put(x, mesh.rows(here))
    compiled = (
      value_and_gradients(grouped_conv.grouped_conv3x3, groups, stride)
      .lower(x, kernel)
      .compile()
    )
    found = compiled(x, kernel)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    found,
    wanted,
  )
  # The batch stays where it is: the kernel's gradient is all that is summed.
  text = compiled.as_text()
  assert "all-gather" not in text
  taken = path == "kernels" and width % 8 == 0
  assert ("SeerGroupedConvGradients" in text) == taken


def test_other_platforms_get_the_native_convolution():
  x, kernel = operands(7, 8, 4)
  forward = jax.jit(lambda x, k: grouped_conv.grouped_conv3x3(x, k, 7, 1))
  text = forward.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
  assert "feature_group_count = 7" in text


@pytest.mark.parametrize("stride", [1, 2])
def test_padded_groups_are_the_same_convolution(stride):
  """As GPUs have it, for groups such as SEER's of 373 channels."""
  x, kernel = (each.astype(jnp.bfloat16) for each in operands(3, 13, 6))
  found, wanted = (
    jax.vjp(
      lambda x, k, path=path: path(x, k, groups=3, stride=stride), x, kernel
    )
    for path in (grouped_conv._aligned, grouped_conv._native)
  )
  np.testing.assert_array_equal(
    *(y.astype(jnp.float32) for y in (found[0], wanted[0]))
  )
  for one, other in zip(found[1](found[0]), wanted[1](found[0]), strict=True):
    assert one.shape == other.shape
    np.testing.assert_allclose(
      one.astype(jnp.float32), other.astype(jnp.float32), rtol=0.05, atol=0.05
    )


def test_gpus_get_padded_groups_of_short_numbers_alone():
  def text(dtype):
    x, kernel = (each.astype(dtype) for each in operands(3, 13, 6))
    forward = jax.jit(lambda x, k: grouped_conv.grouped_conv3x3(x, k, 3, 1))
    lowered = forward.trace(x, kernel).lower(lowering_platforms=("cuda",))
    return lowered.as_text()

  assert "3x3x16x48xbf16" in text(jnp.bfloat16)
  assert "3x3x16x48" not in text(jnp.float32)
