"""Rematerialization: the least that fits a device.

Keeping activations costs memory; computing them again costs up to a third more
arithmetic. The first blocks have the largest activations for the same
arithmetic, so theirs are computed again first.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections

from seer_jax.models import encoder, regnet
from seer_jax.models.architectures import Architecture

# Share of a device's memory for estimates; errors and fragments need the rest.
MARGIN = 0.9
# Bytes of an activation and of a kernel, in the layers' precision.
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# A scan over blocks keeps all residuals of its derivative, some in float32: so
# many times what a compiler keeps otherwise (RG-256 on TPU v5p).
_IN_LOOPS = 5


class _Block(NamedTuple):
  """Element counts of a block, for one image of one resolution."""

  inside: int  # Kept unless it is rematerialized.
  out: int  # Of its result, which is always kept.
  parameters: int


def least(
  config: ml_collections.ConfigDict,
  devices: int,
  memory: int,
  scale: float = 1.0,
) -> tuple[str, str]:
  """The best value of `model.remat`, and why.

  Args:
    memory: bytes of each device; 0 if it is the host's.
    scale: a compiler's need divided by its estimate.
  """
  if not memory:
    return "none", "memory is the host's, or unknown"
  more = ""
  for rung in _rungs(config):
    size = scale * estimate(config, devices, rung)
    words = f"{_gib(size)} of {_gib(memory)} GiB by estimate"
    if size <= MARGIN * memory:
      return rung, words + more
    more = f"; {rung} would take {_gib(size)}"
  return "block", f"the least possible: {words}"


def dearer(config: ml_collections.ConfigDict) -> str | None:
  """The next faster value of `model.remat`, or None."""
  rungs = _rungs(config)
  if config.model.remat not in rungs[1:]:
    return None
  return rungs[rungs.index(config.model.remat) - 1]


def _rungs(config):
  """From the fastest to the one with least memory."""
  blocks = sum(encoder.architecture(config.model).depths)
  return ["none", *(f"first-{n}" for n in range(1, blocks)), "block"]


def _gib(size):
  return f"{size / 2**30:.1f}"


def estimate(config: ml_collections.ConfigDict, devices: int, rung: str) -> int:
  """Bytes of a device for a step.

  Parameters, momentum and gradients in float32; the activations kept for the
  backward pass; and those of the largest rematerialized block.
  docs/performance.md compares it with compilers.
  """
  arch, crops = encoder.architecture(config.model), config.crops
  execution, size = regnet.Execution(rung), _BYTES[config.precision]
  images = config.batch_size / devices / config.accumulate
  kept = again = gathered = 0
  for count, side in zip(crops.counts, crops.sizes, strict=True):
    maps = images * count * size
    for number, block in enumerate(_blocks(arch, side)):
      kept += maps * block.out
      if 0 < number <= execution.recomputed(sum(arch.depths)):
        # With their gradients.
        again = max(again, 2 * maps * block.inside)
        continue
      kept += maps * block.inside * (_IN_LOOPS if config.model.scan else 1)
      if config.mesh.fsdp > 1:
        # Gathered kernels are kept for each resolution.
        gathered += block.parameters * size
  parameters = sum(each.parameters for each in _blocks(arch, crops.sizes[0]))
  parameters += _of_head(config, arch.features)
  # A scan over blocks stacks copies of their kernels and gradients.
  each = 3 * 4 + 2 * size * bool(config.model.scan)
  state = each * parameters / config.mesh.fsdp
  if config.mesh.fsdp > 1:
    # At least one block's kernels are complete.
    largest = max(block.parameters for block in _blocks(arch, crops.sizes[0]))
    gathered += size * largest
  return int(state + gathered + kept + again)


def _blocks(arch: Architecture, side: int) -> Iterator[_Block]:
  """The stem and the blocks of a trunk, for images of `side` pixels."""
  side, before = -(-side // arch.stem_stride), arch.stem_width
  yield _Block(side**2 * before, 0, 27 * before)
  for stage, depth in enumerate(arch.depths):
    width, inner = arch.widths[stage], arch.inner[stage]
    group = arch.group_widths[stage]
    for index in range(depth):
      stride = arch.strides[stage] if index == 0 else 1
      after = -(-side // stride)
      # Inputs of norms and outputs of squeeze-and-excitation; compilers
      # rematerialize outputs of norms.
      inside = inner * side**2 + (1 + bool(arch.se_ratio)) * inner * after**2
      inside += (1 + (index == 0)) * width * after**2
      parameters = before * inner + 9 * group * inner + inner * width
      parameters += 2 * round(arch.se_ratio * before) * inner
      parameters += before * width * (index == 0)
      yield _Block(inside, width * after**2, parameters)
      side, before = after, width


def _of_head(config, features):
  """Parameters of the head and the prototypes."""
  head = config.model.head
  widths = (features, *head.hidden, head.out)
  dense = sum(a * b for a, b in itertools.pairwise(widths))
  return dense + head.out * sum(config.model.prototypes or ())
