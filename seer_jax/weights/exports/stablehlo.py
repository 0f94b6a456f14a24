"""A network as one serialized function, to call without this package.

    data = pathlib.Path("model.stablehlo").read_bytes()
    found = jax.export.deserialize(bytearray(data)).call(pixels_NxSxSx3)

Pixels are uint8, N is any. The weights and the normalization are in it; it runs
on CPU, CUDA and TPU.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from seer_jax.models import cpu_kernels, encoder
from seer_jax.runtime import errors

PLATFORMS = ("cpu", "cuda", "tpu")
# Its container has offsets of 32 bits.
_LARGEST = 2**31 - 2**24


def serialized(network: encoder.Encoder, variables: Mapping[str, Any]) -> bytes:
  """The bytes of a function of `pixels_NxSxSx3` (uint8) to a dict of arrays.

  These are the pooled taps: `avgpool`, `projection`, `logits`. Raises UserError
  if the weights are too large for one file.
  """
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  if size > _LARGEST:
    raise errors.UserError(
      f"the weights have {size / 2**30:.1f} GiB, but a serialized function has"
      " at most 2; --to orbax or huggingface has no limit"
    )

  def see(pixels_NxSxSx3):
    x = network.preprocessing.normalize(pixels_NxSxSx3.astype(jnp.float32))
    found = network.apply(variables, x)
    return {
      name: found[name]
      for name in ("avgpool", "projection", "logits")
      if name in found
    }

  side = network.preprocessing.size
  (count,) = jax.export.symbolic_shape("n")
  pixels = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8)
  with cpu_kernels.portable():
    exported = jax.export.export(jax.jit(see), platforms=PLATFORMS)(pixels)
  return exported.serialize()
