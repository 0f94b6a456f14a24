"""What the backward pass computes again: the least that fits a device.

Keeping all activations costs memory; computing them again costs arithmetic, up
to a third more. Blocks in front have the largest maps for the same arithmetic,
so theirs are given up first.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import ml_collections

from seer_jax.models import encoder, regnet
from seer_jax.models.architectures import Architecture

# Of a device's memory; estimates and fragments need the rest.
MARGIN = 0.9
# Bytes of an activation and of a kernel, in the layers' precision.
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# A loop over blocks keeps all that its derivative names, some of it in float32:
# so many times what a compiler keeps otherwise (RG-256 on TPU v5p).
_IN_LOOPS = 5


class _Block(NamedTuple):
  """Sizes of a block: numbers, for one image, of one resolution."""

  inside: int  # Kept if it is not computed again.
  out: int  # Of its result, which is kept in any case.
  parameters: int  # Of its layers.


def least(
  config: ml_collections.ConfigDict,
  devices: int,
  memory: int,
  scale: float = 1.0,
) -> tuple[str, str]:
  """The value of `model.remat` to take, and why.

  Args:
    memory: bytes that a program has on each; 0 where it is the host's.
    scale: what a compiler needed, over what was estimated for it.
  """
  if not memory:
    return "none", "memory is the host's, or not known"
  more = ""
  for rung in _rungs(config):
    size = scale * estimate(config, devices, rung)
    words = f"{_gib(size)} of {_gib(memory)} GiB by estimate"
    if size <= MARGIN * memory:
      return rung, words + more
    more = f"; {rung} would take {_gib(size)}"
  return "block", f"the least there is: {words}"


def dearer(config: ml_collections.ConfigDict) -> str | None:
  """The next value of `model.remat` that computes less again; None at best."""
  rungs = _rungs(config)
  if config.model.remat not in rungs[1:]:
    return None
  return rungs[rungs.index(config.model.remat) - 1]


def _rungs(config):
  """From the quickest to what needs least memory."""
  blocks = sum(encoder.architecture(config.model).depths)
  return ["none", *(f"first-{n}" for n in range(1, blocks)), "block"]


def _gib(size):
  return f"{size / 2**30:.1f}"


def estimate(config: ml_collections.ConfigDict, devices: int, rung: str) -> int:
  """Bytes that a device needs for a step.

  Parameters, momentum and gradients in float32; the maps that the forward pass
  leaves to the backward pass; of blocks that are computed again, those of the
  largest. docs/performance.md compares it with what compilers need.
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
        # Beside them their gradients.
        again = max(again, 2 * maps * block.inside)
        continue
      kept += maps * block.inside * (_IN_LOOPS if config.model.scan else 1)
      if config.mesh.fsdp > 1:
        # Kernels stay as they were gathered for each resolution.
        gathered += block.parameters * size
  parameters = sum(each.parameters for each in _blocks(arch, crops.sizes[0]))
  parameters += _of_head(config, arch.features)
  # A loop over blocks stacks copies of their kernels, and of the gradients.
  each = 3 * 4 + 2 * size * bool(config.model.scan)
  state = each * parameters / config.mesh.fsdp
  if config.mesh.fsdp > 1:
    # At least one block's are there whole.
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
      # What is in front of each norm, and behind squeeze-and-excitation;
      # compilers compute again what is behind norms.
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
