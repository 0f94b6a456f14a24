"""Published figures of accelerators.

From vendors: dense arithmetic, decimal bytes per second, one direction of a
link. They are upper bounds, which no program reaches.
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Nvidia:
  """Properties of a GPU for its compiler."""

  name: str  # The driver's.
  capability: tuple[int, int]  # Compute capability.
  cores: int  # Multiprocessors.
  clock: float  # GHz.
  lanes: int  # Fp32 units per multiprocessor.
  shared: int  # Bytes of shared memory per multiprocessor.
  shared_block: int  # Most of it for one block.
  cache: int  # Bytes of the second-level cache.


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device: its memory and peak rates."""

  memory: int  # Bytes visible to a program.
  bandwidth: float  # Of that memory, bytes per second.
  # Operations per second, by the precision of a config. That of fp32 is for
  # JAX's default: TF32 on Ampere and later, one pass of bf16 on TPUs.
  peak: Mapping[str, float]
  precision: str  # The native one.
  # Bytes per second out of one device: all NVLinks to GPUs of its host, or all
  # ICI links in a TPU's slice.
  link: float
  network: float  # Bytes per second out of one device to other hosts.
  per_host: int  # Devices per host.
  gpu: Nvidia | None = None  # None for TPUs.
  most: int = 0  # Chips of the largest slice; 0 for GPUs.

  @property
  def cache(self) -> int:
    """The most bytes that it can keep near its arithmetic.

    For GPUs the second-level cache; for TPUs that of v4, the largest: 128 MiB
    of CMEM and 32 of VMEM.
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


def _with_tf32(memory, bandwidth, rate, link, network, gpu):
  # The rate is of 16 bits; that of TF32 is half of it.
  peak = {"fp32": rate / 2, "bf16": rate, "fp16": rate}
  return Chip(memory, bandwidth, peak, "bf16", link, network, 8, gpu)


def _a100(memory, bandwidth, name):
  # NVIDIA A100 data sheet (SXM4): TF32 156, bf16 and fp16 312 TFLOP/s, NVLink
  # 600 GB/s both ways. Network: a DGX A100's eight 200 Gb/s ports for 8 GPUs,
  # which is an assumption; many clouds give half, or less.
  gpu = Nvidia(name, (8, 0), 108, 1.41, 64, 167936, 166912, 40 << 20)
  return _with_tf32(memory, bandwidth, 312e12, 300e9, 25e9, gpu)


def _hopper(memory, bandwidth, name):
  # NVIDIA H100 and H200 data sheets (SXM5), halved where they count sparsity:
  # TF32 494.7, bf16 and fp16 989.4 TFLOP/s; NVLink 900 GB/s both ways. Network:
  # a DGX H100's eight 400 Gb/s ports for 8 GPUs, which is an assumption.
  gpu = Nvidia(name, (9, 0), 132, 1.98, 128, 233472, 232448, 50 << 20)
  return _with_tf32(memory, bandwidth, 989.4e12, 450e9, 50e9, gpu)


def _blackwell(memory, bandwidth, name):
  # An eighth of NVIDIA's DGX B200 data sheet, halved where it counts sparsity:
  # bf16 and fp16 2.25, TF32 1.125 PFLOP/s; NVLink 1800 GB/s both ways. Network:
  # its eight 400 Gb/s ports for 8 GPUs, which is an assumption.
  gpu = Nvidia(name, (10, 0), 148, 1.965, 128, 233472, 232448, 132644864)
  return _with_tf32(memory, bandwidth, 2250e12, 900e9, 50e9, gpu)


def _tpu(gib, bandwidth, rate, link, network, most):
  # Four chips a host: multi-host slices of every generation below have that.
  peak = dict.fromkeys(("fp32", "bf16", "fp16"), rate)
  memory = int(gib * GIB)
  return Chip(memory, bandwidth, peak, "bf16", link, network, 4, most=most)


# Memory of GPUs: as drivers report it, from openxla/xla's target_config specs;
# of the V100-32GB, nvidia-smi's 32,480 MiB. Of TPUs: as libtpu 0.0.52 prints it
# when it refuses a program. The rest of TPUs: Google Cloud's pages; ICI there
# is for both directions (v5p: 1200 GB/s) or in Gb/s for one (v4: 2400); network
# from the NICs of a host or "DCN bandwidth per chip". That of v4 is assumed to
# be v5p's.
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
