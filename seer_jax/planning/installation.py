"""The hardware and installed packages of this machine.

Needs only Python: any package may be missing or broken.
"""

import dataclasses
import glob
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

from seer_jax.runtime import errors, files, host

_SHOWN = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
  *("opencv-python-headless", "tensorflow-datasets", "libtpu"),
  *("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt"),
  *("jax-cuda13-pjrt", "torch", "tensorflow"),
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "XLA_FLAGS")
_NVIDIA = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
# PCI identifiers of TPU chips, as in JAX.
_GOOGLE = "0x1ae0"
_TPUS = (
  *("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"),
)

# Runs JAX in another process: it may hang or crash, and must not keep memory of
# a GPU in use.
_PROBE = """
import json, jax
devices = [
  {
    "platform": each.platform,
    "kind": each.device_kind,
    "capability": str(getattr(each, "compute_capability", "")),
    "memory": (each.memory_stats() or {}).get("bytes_limit", 0),
  }
  for each in jax.local_devices()
]
from seer_jax.runtime import mesh
print(json.dumps({"devices": devices, "precision": mesh.precision_here()}))
"""


@dataclasses.dataclass(frozen=True)
class Device:
  """A device of JAX; memory in bytes, 0 if unknown."""

  platform: str
  kind: str
  capability: str = ""
  memory: int = 0


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU of NVIDIA's driver; memory in bytes."""

  name: str
  capability: str
  memory: int
  used: int
  driver: str


@dataclasses.dataclass(frozen=True)
class Facts:
  """A machine and its installation."""

  versions: Mapping[str, str]  # Of packages, by name.
  devices: tuple[Device, ...] = ()  # Of JAX; none if it does not start.
  complaint: str = ""  # JAX's last error or warning.
  # Of a run, and why; empty if JAX does not start.
  precision: tuple[str, ...] = ()
  gpus: tuple[Gpu, ...] = ()  # Of nvidia-smi.
  nvidia: bool = False  # Whether there is any sign of an NVIDIA GPU.
  tpu_chips: int = 0  # On the PCI bus.
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # Folders of LD_LIBRARY_PATH with CUDA's libraries.
  foreign_cuda: tuple[str, ...] = ()
  cores: int = 1
  memory: int = 0  # Bytes of the host.
  shm: int = -1  # Free bytes of /dev/shm; -1 if there is none.
  cache: str = ""  # Folder of compiled programs.
  cache_free: int = 0  # Free bytes of its disk.
  cache_writable: bool = True


def gather() -> Facts:
  """Collects all facts. Takes seconds: JAX is started."""
  gpus = _gpus()  # Before JAX takes its memory.
  devices, precision, complaint = _probe()
  shm = pathlib.Path("/dev/shm")
  folder = files.wanted_cache("xla")
  above = files.nearest_existing(folder)
  return Facts(
    versions=_versions(),
    devices=devices,
    complaint=complaint,
    precision=precision,
    gpus=gpus,
    nvidia=bool(gpus) or any(map(os.path.exists, _NVIDIA)),
    tpu_chips=_tpu_chips(),
    environment={
      name: os.environ[name] for name in _VARIABLES if name in os.environ
    },
    foreign_cuda=foreign_cuda(os.environ.get("LD_LIBRARY_PATH", "")),
    cores=host.cores(),
    memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    shm=shutil.disk_usage(shm).free if shm.exists() else -1,
    cache=str(folder),
    cache_free=shutil.disk_usage(above).free,
    cache_writable=files.is_usable(folder),
  )


def _versions():
  found = {
    (each.metadata["Name"] or "").lower().replace("_", "-"): each.version
    for each in metadata.distributions()
  }
  return {
    name: version
    for name, version in sorted(found.items())
    if name.startswith("nvidia-") or name in _SHOWN
  }


def _probe():
  """(devices, precision, complaint) of JAX in another process."""
  quiet = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  try:
    run = subprocess.run(
      [sys.executable, "-c", _PROBE],
      env=quiet | os.environ,
      capture_output=True,
      text=True,
      timeout=180,
    )
  except subprocess.TimeoutExpired:
    return (), (), "it did not start within three minutes"
  complaint = errors.telling_line(run.stderr)
  if run.returncode:
    return (), (), complaint or f"it ended with status {run.returncode}"
  found = json.loads(run.stdout.splitlines()[-1])
  devices = tuple(Device(**each) for each in found["devices"])
  return devices, tuple(found["precision"]), complaint


def _gpus():
  """The GPUs of nvidia-smi; none without it."""
  asked = "name,compute_cap,memory.total,memory.used,driver_version"
  try:
    run = subprocess.run(
      ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"],
      capture_output=True,
      text=True,
      timeout=30,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ()
  return parse_gpus(run.stdout) if run.returncode == 0 else ()


def parse_gpus(table: str) -> tuple[Gpu, ...]:
  """Parses the table of nvidia-smi; empty cells are 0."""
  gpus = []
  for line in table.splitlines():
    name, capability, total, used, driver = map(str.strip, line.split(","))
    memory, taken = (
      int(cell) << 20 if cell.isdigit() else 0 for cell in (total, used)
    )
    gpus.append(Gpu(name, capability, memory, taken, driver))
  return tuple(gpus)


def _tpu_chips():
  count = 0
  for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
    vendor = pathlib.Path(path)
    if vendor.read_text().strip() == _GOOGLE:
      count += vendor.with_name("device").read_text().strip() in _TPUS
  return count


def foreign_cuda(library_path: str) -> tuple[str, ...]:
  """Folders with CUDA's libraries that a process searches before the wheels."""
  names = ("libcudart.so*", "libcudnn*.so*", "libcublas.so*")
  return tuple(
    folder
    for folder in dict.fromkeys(filter(None, library_path.split(":")))
    if any(glob.glob(os.path.join(glob.escape(folder), name)) for name in names)
  )


def number(version: str) -> tuple[int, ...]:
  """`"9.10.2.21"` -> (9, 10, 2, 21), up to the first other character."""
  return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))
