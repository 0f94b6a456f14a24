"""Accelerators that need not exist here: their names, and their devices.

A topology is written as `v100:64x8` (hosts x GPUs per host) or, for TPUs, as
libtpu names slices: `v5p:8x8x8` chips; `2xv5p:8x8x8` are two slices, connected
by the data centre's network. Programs for `devices` can be compiled on any
machine with a CPU.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from seer_jax.planning.chips import CHIPS, Chip
from seer_jax.runtime import errors

# Other names, in lower case.
_ALIASES = {
  "v100-32": "v100",
  "a100-40": "a100",
  "h100-80": "h100",
  "h200-141": "h200",
  "b200-180": "b200",
  "v5litepod": "v5e",
  "trillium": "v6e",
}
# Cloud's accelerator types count TensorCores, two per chip, in these families.
_TWO_CORES = ("v4", "v5p")
# Cloud's slices, in chips.
_SLICES = {
  2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
  3: (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x12", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Connected devices of one kind."""

  kind: str  # A name of `CHIPS`.
  shape: tuple[int, ...]  # Hosts and GPUs per host, or a TPU slice's sides.
  note: str = ""  # How an ambiguous name was read.
  slices: int = 1  # Of a TPU, each of that shape.

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def name(self) -> str:
    one = f"{self.kind}:{'x'.join(map(str, self.shape))}"
    return one if self.slices == 1 else f"{self.slices}x{one}"

  @property
  def size(self) -> int:
    """The number of devices."""
    return self.slices * math.prod(self.shape)

  @property
  def is_tpu(self) -> bool:
    return self.chip.gpu is None


def parse(name: str) -> Topology:
  """A topology by its name.

  Raises UserError if the name is unknown.

  Args:
    name: such as "v100:64x8", "a100-80:4x8", "v5p:8x8x8", "v5e:16x16"; one of
      Cloud's accelerator types, such as "v5p-1024"; or several slices, such as
      "2xv5p:8x8x8".
  """
  name = name.strip().lower()
  if match := re.fullmatch(r"(\d+)x([a-z].*)", name):
    one, slices = parse(match[2]), int(match[1])
    if not one.is_tpu or slices < 1:
      raise errors.UserError(
        f"--topology={name}: only TPUs have slices, as in 2xv5p:8x8x8; GPUs"
        " are given as hosts x GPUs per host, as in h100:16x8"
      )
    return dataclasses.replace(one, slices=slices)
  if match := re.fullmatch(r"([a-z0-9-]+):(\d+(?:x\d+)*)", name):
    kind = _ALIASES.get(match[1], match[1])
    if kind in CHIPS:
      return _checked(kind, tuple(map(int, match[2].split("x"))))
  if match := re.fullmatch(r"(v\d+[a-z]*)-(\d+)", name):
    kind = _ALIASES.get(match[1], match[1])
    if kind in CHIPS and CHIPS[kind].gpu is None:
      return _of_cloud(name, kind, int(match[2]))
  raise errors.UserError(
    f"--topology={name} is unknown. Give GPUs as hosts x GPUs per host, such as"
    f" v100:64x8, of {', '.join(k for k in CHIPS if CHIPS[k].gpu)}; TPUs as the"
    " sides of a slice, such as v5p:8x8x8 or v5e:16x16, of"
    f" {', '.join(k for k in CHIPS if not CHIPS[k].gpu)}"
  )


def _checked(kind, shape, note=""):
  topology = Topology(kind, shape, note)
  chip = topology.chip
  if topology.is_tpu:
    sides = 3 if kind in _TWO_CORES else 2
    right = len(shape) == sides and 0 < topology.size <= chip.most
    example = "x".join("4" * sides)
    must = (
      f"{sides} sides and at most {chip.most} chips, such as {kind}:{example}"
    )
  else:
    right = len(shape) == 2 and shape[0] > 0 and 0 < shape[1] <= chip.per_host
    must = f"hosts x GPUs per host, at most {chip.per_host}, as {kind}:64x8"
  if not right:
    raise errors.UserError(f"--topology={topology.name} must be {must}")
  return topology


def _of_cloud(name, kind, count):
  cores = kind in _TWO_CORES
  chips = count / 2 if cores else count
  shapes = (
    tuple(map(int, sides.split("x"))) for sides in _SLICES[3 if cores else 2]
  )
  shape = next((each for each in shapes if math.prod(each) == chips), None)
  if shape is None:
    raise errors.UserError(
      f"--topology={name}: Google Cloud has no slice of that name"
      f"{' (it counts TensorCores, two per chip)' if cores else ''}; give the"
      f" sides in chips, such as {kind}:{'4x4x4' if cores else '4x4'}"
    )
  counted = f"{count} TensorCores, " * cores + f"{int(chips)} chips"
  sides = "x".join(map(str, shape))
  note = f"{name} is Google Cloud's name for {counted}, {kind}:{sides}"
  return _checked(kind, shape, note)


def devices(topology: Topology) -> list[jax.Device]:
  """Descriptions of the devices, for which programs can be compiled.

  Raises UserError if the compiler for them is not installed, or refuses the
  topology.
  """
  try:
    if topology.is_tpu:
      return _tpu_devices(topology)
    return _gpu_devices(topology)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise errors.UserError(
      f"the compiler refuses --topology={topology.name}:"
      f" {' '.join(str(error).split())}"
    ) from error


def _tpu_devices(topology):
  _need("plan-tpu", "libtpu")
  # Without these libtpu queries Google Cloud's metadata server.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.kind}-8")
  # By default one process per machine may load it, even to compile.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # One device per chip: its two TensorCores work as one.
  cores = "megacore" if topology.kind in _TWO_CORES else "default"
  more = {}
  if topology.size == 1:
    more["chips_per_host_bounds"] = (1, 1, 1)
  if topology.slices > 1:
    more["num_slices"] = topology.slices
  one = dataclasses.replace(topology, slices=1)
  return topologies.get_topology_desc(
    platform="tpu", topology_name=one.name, chip_config_name=cores, **more
  ).devices


def _gpu_devices(topology):
  _need("plan-gpu", "jax_plugins.xla_cuda12", "nvidia.cuda_nvcc")
  hosts, each = topology.shape
  return topologies.get_topology_desc(
    platform="cuda",
    target_config=target_config(topology.chip),
    topology=f"1x{hosts}x{each}",
  ).devices


def _need(extra, *modules):
  for module in modules:
    try:
      found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # Of the package around it.
      found = None
    if found is None:
      raise errors.UserError(
        f"compiling for this hardware needs {module}, which is not installed:"
        f" pip install 'seer_jax[{extra}]'"
      )


def target_config(chip: Chip) -> str:
  """A GPU as XLA's GpuTargetConfigProto, in text format.

  The limits that all GPUs here share are CUDA's (programming guide, compute
  capabilities). CUDA and cuDNN are of the last versions that support a V100.
  """
  gpu = chip.gpu
  major, minor = gpu.capability
  return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.name}"
    dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
    gpu_device_info {{
      name: "{gpu.name}"
      device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {gpu.cores}
      fpus_per_core: {gpu.lanes}
      clock_rate_ghz: {gpu.clock}
      device_memory_size: {chip.memory}
      memory_bandwidth: {chip.bandwidth:.0f}
      l2_cache_size: {gpu.cache}
      shared_memory_per_core: {gpu.shared}
      shared_memory_per_block: 49152
      shared_memory_per_block_optin: {gpu.shared_block}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      runtime_version: "12.8.0"
      driver_version: "12.8.0"
      compile_time_toolkit_version: "12.8.0"
    }}
  """
