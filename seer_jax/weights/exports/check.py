"""Checks an export: reads it back, and compares outputs."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from seer_jax.models import encoder
from seer_jax.runtime import errors
from seer_jax.weights import lazy_weights

# Largest difference of an output, as a share of its largest value.
BOUND = 1e-4
# Outputs of a function by name.
_Outputs = Mapping[str, np.ndarray]


def arrays(written: lazy_weights.Weights, opened: lazy_weights.Weights) -> str:
  """Compares written arrays, opened again, with their source, bit for bit.

  Returns a line to print. Raises UserError if an array differs.
  """
  for path in written.shapes:
    with written.array(path) as ours, opened.array(path) as theirs:
      wanted = np.asarray(theirs, np.float32)
      found = np.asarray(ours, np.float32)
      if not np.array_equal(found, wanted, equal_nan=True):
        raise errors.UserError(
          f"{path} differs from its source after writing; check the disk, and"
          " convert again"
        )
  return f"checked: {len(written.shapes)} arrays read back, bit for bit"


def function(
  call: Callable[[np.ndarray], _Outputs],
  network: encoder.Encoder,
  variables: Mapping[str, Any],
  any_size: bool,
) -> str:
  """Compares an exported function with the network on random images.

  Returns a line to print. Raises UserError if an output differs by more than
  `BOUND`.

  Args:
    call: maps `pixels_NxHxWx3` (uint8) to arrays by name.
    any_size: whether the function takes images of any size.
  """
  side = network.preprocessing.size
  shapes = [(2, side, side, 3)]
  if any_size:
    shapes.append((3, side + 32, max(33, side - 31), 3))
  live = jax.jit(
    lambda x: network.apply(variables, network.preprocessing.normalize(x))
  )
  apart = []
  for shape in shapes:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    wanted = live(jnp.float32(pixels))
    for name, found in call(pixels).items():
      most = max(float(np.abs(wanted[name]).max()), 1e-12)
      apart.append(float(np.abs(found - wanted[name]).max()) / most)
  sizes = " and of ".join(f"{shape[1]} x {shape[2]}" for shape in shapes)
  worst = np.max(apart)  # NaN if any is NaN.
  words = f"{worst:.1g} of the largest value (bound {BOUND:g})"
  if not worst <= BOUND:
    raise errors.UserError(
      f"on random images of {sizes} pixels the export differs from the network"
      f" by {words}; please report it. --no-check writes the file anyway"
    )
  return f"checked: random images of {sizes} pixels differ by {words}"


def stablehlo_of(path: pathlib.Path) -> Callable[[np.ndarray], _Outputs]:
  """Reads a function that `stablehlo.serialized` wrote."""
  return jax.export.deserialize(bytearray(path.read_bytes())).call


def onnx_of(path: pathlib.Path) -> Callable[[np.ndarray], _Outputs]:
  """Reads a function that `onnx.serialized` wrote, to run on the CPU.

  Raises UserError if onnxruntime is not installed.
  """
  try:
    import onnxruntime  # An extra.
  except ImportError as error:
    raise errors.UserError(
      "checking ONNX needs onnxruntime: pip install -e '.[onnx]'; or give"
      " --no-check"
    ) from error
  session = onnxruntime.InferenceSession(
    path, providers=["CPUExecutionProvider"]
  )
  names = [each.name for each in session.get_outputs()]
  return lambda pixels: dict(
    zip(names, session.run(names, {"pixels": pixels}), strict=True)
  )
