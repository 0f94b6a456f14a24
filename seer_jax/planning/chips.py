"""Accelerators' published figures.

The vendors': of dense arithmetic, of decimal bytes a second, and of one
direction of a link. They are ceilings, which no program reaches.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Nvidia:
  """What the compiler asks of a GPU."""

  name: str  # As the driver says it.
  capability: tuple[int, int]  # Compute capability.
  cores: int  # Multiprocessors.
  clock: float  # Of these, in GHz.
  lanes: int  # Fp32 units a multiprocessor.
  shared: int  # Memory a multiprocessor shares, in bytes.
  shared_block: int  # Most of it that one block may ask for.
  cache: int  # Second level, in bytes.


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device: what it holds, and how fast it can be at best."""

  memory: int  # Bytes that a program may see.
  bandwidth: float  # Of that memory, bytes a second.
  # Operations a second, by the precision of a config. Multiplications of fp32
  # are counted at the speed that JAX's default takes for them: TF32 on Ampere
  # and later, one pass of bf16 on TPUs.
  peak: Mapping[str, float]
  precision: str  # The one it is made for.
  # Bytes a second out of one device to its neighbours: all of its NVLinks to
  # GPUs of its host, all of its ICI links in a TPU's slice.
  link: float
  # Bytes a second out of one device to other hosts; of a host, this times
  # `per_host`.
  network: float
  per_host: int  # Devices of one host.
  gpu: Nvidia | None = None  # What the compiler needs besides; None of TPUs.
  most: int = 0  # Chips of the largest slice; 0 of GPUs.

  @property
  def cache(self) -> int:
    """Bytes that it can keep beside its arithmetic, at most.

    Of GPUs the second-level cache, of TPUs v4's, which has most: 128 MiB of
    CMEM and 32 of VMEM.
    """
    return self.gpu.cache if self.gpu else 160 << 20


def _v100(memory, name):
  # NVIDIA V100 data sheet (SXM2): 15.7 and 125 TFLOP/s, 900 GB/s, NVLink 300
  # GB/s both ways. bf16 is emulated, at fp32's rate at most. Network: a DGX-1's
  # four 100 Gb/s InfiniBand ports for 8 GPUs, which is an assumption.
  return Chip(
    memory=memory,
    bandwidth=900e9,
    peak={"fp32": 15.7e12, "bf16": 15.7e12, "fp16": 125e12},
    precision="fp16",
    link=150e9,
    network=6.25e9,
    per_host=8,
    gpu=Nvidia(name, (7, 0), 80, 1.53, 64, 98304, 98304, 6 << 20),
  )


def _a100(memory, bandwidth, name):
  # NVIDIA A100 data sheet (SXM4): TF32 156, bf16 and fp16 312 TFLOP/s, NVLink
  # 600 GB/s both ways. Network: a DGX A100's eight 200 Gb/s ports for 8 GPUs,
  # which is an assumption; many clouds give half, or less.
  return Chip(
    memory=memory,
    bandwidth=bandwidth,
    peak={"fp32": 156e12, "bf16": 312e12, "fp16": 312e12},
    precision="bf16",
    link=300e9,
    network=25e9,
    per_host=8,
    gpu=Nvidia(name, (8, 0), 108, 1.41, 64, 167936, 166912, 40 << 20),
  )


def _hopper(memory, bandwidth, name):
  # NVIDIA H100 and H200 data sheets (SXM5), halved where they count sparsity:
  # TF32 494.7, bf16 and fp16 989.4 TFLOP/s; NVLink 900 GB/s both ways. Network:
  # a DGX H100's eight 400 Gb/s ports for 8 GPUs, which is an assumption.
  return Chip(
    memory=memory,
    bandwidth=bandwidth,
    peak={"fp32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
    precision="bf16",
    link=450e9,
    network=50e9,
    per_host=8,
    gpu=Nvidia(name, (9, 0), 132, 1.98, 128, 233472, 232448, 50 << 20),
  )


def _blackwell(memory, bandwidth, name):
  # An eighth of NVIDIA's DGX B200 data sheet, halved where it counts sparsity:
  # bf16 and fp16 2.25, TF32 1.125 PFLOP/s; NVLink 1800 GB/s both ways. Network:
  # its eight 400 Gb/s ports for 8 GPUs, which is an assumption.
  return Chip(
    memory=memory,
    bandwidth=bandwidth,
    peak={"fp32": 1125e12, "bf16": 2250e12, "fp16": 2250e12},
    precision="bf16",
    link=900e9,
    network=50e9,
    per_host=8,
    gpu=Nvidia(name, (10, 0), 148, 1.965, 128, 233472, 232448, 132644864),
  )


def _tpu(gib, bandwidth, rate, link, network, most):
  # Four chips a host: multi-host slices of every generation below have that.
  peak = dict.fromkeys(("fp32", "bf16", "fp16"), rate)
  memory = int(gib * GIB)
  return Chip(memory, bandwidth, peak, "bf16", link, network, 4, most=most)


# Memory of GPUs: what drivers report, from openxla/xla's target_config specs;
# of the V100-32GB, nvidia-smi's 32,480 MiB. Of TPUs: what libtpu 0.0.52 calls
# available when it refuses a program. The rest of TPUs: Google Cloud's page of
# each; ICI there is printed for both directions (v5p: 1200 GB/s) or in Gb/s for
# one (v4: 2400); network from the NICs of a host or "DCN bandwidth per chip".
# That of v4 is an assumption: v5p's.
CHIPS: Mapping[str, Chip] = {
  "v100": _v100(32480 << 20, "Tesla V100-SXM2-32GB"),
  "v100-16": _v100(16935682048, "Tesla V100-SXM2-16GB"),
  "a100": _a100(42298834944, 1555e9, "NVIDIA A100-SXM4-40GB"),
  "a100-80": _a100(85100068864, 2039e9, "NVIDIA A100-SXM4-80GB"),
  "h100": _hopper(84942979072, 3350e9, "NVIDIA H100 80GB HBM3"),
  "h200": _hopper(151397597184, 4800e9, "NVIDIA H200 141GB HBM3e"),
  "b200": _blackwell(191514411008, 8000e9, "NVIDIA B200"),
  "v4": _tpu(30.75, 1200e9, 275e12, 300e9, 6.25e9, 4096),
  "v5e": _tpu(15.75, 819e9, 197e12, 200e9, 3.125e9, 256),
  "v5p": _tpu(95.73, 2765e9, 459e12, 600e9, 6.25e9, 6144),
  "v6e": _tpu(31.24, 1640e9, 918e12, 400e9, 12.5e9, 256),
}
