"""What this machine has and what is installed on it, looked at once.

Needs nothing but Python: any package may be missing, or broken.
"""

import contextlib
import ctypes
import dataclasses
import functools
import glob
import json
import logging
import os
import pathlib
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import IO

from seer_jax.runtime import errors

_log = logging.getLogger(__name__)

_SHOWN = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
  *("opencv-python-headless", "tensorflow-datasets", "libtpu"),
  *("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-cuda12-pjrt"),
  *("jax-cuda13-pjrt", "torch", "tensorflow"),
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS", "XLA_FLAGS")
_NVIDIA = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
# Of TPU chips, as JAX tells them from Google's network cards.
_GOOGLE = "0x1ae0"
_TPUS = (
  *("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"),
)

# The ending of a file that is being written; a kill may leave one.
PART = ".part"

# JAX in a process of its own: it may hang or crash, and it must not hold the
# memory of a GPU that somebody trains on.
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
  """What JAX says of a device; memory in bytes, 0 if it does not say."""

  platform: str
  kind: str
  capability: str = ""
  memory: int = 0


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What NVIDIA's driver says of a GPU; memory in bytes."""

  name: str
  capability: str
  memory: int
  used: int
  driver: str


@dataclasses.dataclass(frozen=True)
class Facts:
  """A machine and its installation.

  Attributes:
    versions: of the installed distributions of interest, by name.
    devices: that JAX sees; none if it does not start.
    complaint: the last words of JAX when it did not start or did complain.
    precision: that a run would choose, and why; empty if JAX does not start.
    gpus: that nvidia-smi lists.
    nvidia: whether there is any sign of an NVIDIA GPU.
    tpu_chips: on the PCI bus.
    environment: the variables that matter, those that are set.
    foreign_cuda: folders of LD_LIBRARY_PATH that hold CUDA's libraries.
    cores: of the host.
    memory: of the host, bytes.
    shm: free in /dev/shm, bytes; -1 if there is none.
    cache: folder of compiled programs.
    cache_free: free on its disk, bytes.
    cache_writable: whether programs can be kept there.
  """

  versions: Mapping[str, str]
  devices: tuple[Device, ...] = ()
  complaint: str = ""
  precision: tuple[str, ...] = ()
  gpus: tuple[Gpu, ...] = ()
  nvidia: bool = False
  tpu_chips: int = 0
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  foreign_cuda: tuple[str, ...] = ()
  cores: int = 1
  memory: int = 0
  shm: int = -1
  cache: str = ""
  cache_free: int = 0
  cache_writable: bool = True


def gather() -> Facts:
  """Looks at everything once. Takes seconds: JAX is started."""
  gpus = _gpus()  # Before JAX takes its memory.
  devices, precision, complaint = _probe()
  shm = pathlib.Path("/dev/shm")
  folder = _wanted_cache("xla")
  above = _nearest_existing(folder)
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
    cores=cores(),
    memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    shm=shutil.disk_usage(shm).free if shm.exists() else -1,
    cache=str(folder),
    cache_free=shutil.disk_usage(above).free,
    cache_writable=_is_usable(folder),
  )


def cores() -> int:
  """How many this process may use: under SLURM, for one, not all there are."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def user_path(path: str) -> pathlib.Path:
  """A path as the user gave it, with `~` expanded.

  Raises:
    UserError: it is empty, or nobody knows what `~` is.
  """
  if not path:
    raise errors.UserError("a path is empty; give a file or a folder")
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise errors.UserError(
      f"{path}: the home folder is unknown (HOME is not set, and the user has"
      " no entry in /etc/passwd); give the path without ~"
    ) from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A file to write to, which is there whole afterwards, or not at all.

  Raises:
    UserError: it cannot be written.
    Lost: the disk is full.
  """
  # Hidden: who reads a folder of Parquet files takes all but such.
  part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PART}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except OSError as error:
    raise errors.of_disk(
      error, f"cannot write {path}: {error.strerror or error}"
    ) from error
  finally:
    part.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text, as `whole_file` does."""
  with whole_file(path) as file:
    # Names of files need not be text.
    file.write(text.encode(errors="surrogateescape"))


def cache_folder(name: str = "xla") -> pathlib.Path:
  """A folder of the user's cache: `$XDG_CACHE_HOME/seer_jax/NAME`.

  Containers often have no home, or one that cannot be written to: then a
  private folder of the system's temporary files, with a warning.
  """
  folder = _wanted_cache(name)
  if _is_usable(folder):
    return folder
  return _temporary_cache(folder.parent) / name


def _wanted_cache(name):
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  with contextlib.suppress(RuntimeError):  # No home: `~` stays.
    return pathlib.Path(cache).expanduser() / "seer_jax" / name
  return pathlib.Path(cache) / "seer_jax" / name


def _is_usable(folder):
  known = folder.parts[0] != "~"
  here = _nearest_existing(folder)
  effective = os.access in os.supports_effective_ids
  wanted = os.R_OK | os.W_OK | os.X_OK
  return known and os.access(here, wanted, effective_ids=effective)


def _nearest_existing(folder):
  # pathlib's `exists` raises where a parent is closed to us.
  return next(
    each for each in (folder, *folder.parents) if os.path.exists(each)
  )


@functools.cache
def _temporary_cache(instead_of):
  folder = pathlib.Path(tempfile.gettempdir(), f"seer_jax-{os.getuid()}")
  with contextlib.suppress(FileExistsError):
    folder.mkdir(mode=0o700)
  about = folder.lstat()
  private = about.st_uid == os.getuid() and not about.st_mode & 0o077
  if not (private and stat.S_ISDIR(about.st_mode)):
    # Compiled programs that another user put there would run as ours.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="seer_jax-"))
  _log.warning(
    "the cache %s cannot be used; compiled programs and indexes are kept in %s."
    " Set XDG_CACHE_HOME to a folder that lasts",
    instead_of,
    folder,
  )
  return folder


def has_glibc() -> bool:
  """Whether memory is allocated by glibc."""
  return platform.libc_ver()[0] == "glibc"


def give_back_memory() -> None:
  """Returns what is free now to the system: what compiling took, for one."""
  if has_glibc():
    ctypes.CDLL(None).malloc_trim(0)


def this_machine() -> str:
  """Same machine, same boot, same view of its processes."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return socket.gethostname()  # No Linux.


def start_of(process: int | str | None) -> str | None:
  """When a process of this machine started; None if it does not run.

  Numbers of processes are used again; together with its start one is unique.
  """
  try:
    status = pathlib.Path(f"/proc/{process}/stat").read_text()
    state, *rest = status.rsplit(")", 1)[1].split()
    return None if state == "Z" else rest[18]
  except OSError:
    pass
  if pathlib.Path("/proc/self/stat").exists():
    return None
  try:
    os.kill(int(process), 0)
  except (OSError, TypeError, ValueError):
    return None
  return ""


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
  complaint = last_words(run.stderr)
  if run.returncode:
    return (), (), complaint or f"it died with status {run.returncode}"
  found = json.loads(run.stdout.splitlines()[-1])
  devices = tuple(Device(**each) for each in found["devices"])
  return devices, tuple(found["precision"]), complaint


def last_words(stderr: str) -> str:
  """The line that most likely says why; '' if there is none."""
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  # "E0000 00:00:1795430051.7 ..." are the native libraries' own logs.
  plain = [line for line in lines if not re.match(r"[IWEF]\d{4} ", line)]
  telling = [line for line in plain if re.search(r"Error: |failed", line)]
  return (telling or plain or lines or [""])[-1]


def _gpus():
  """The GPUs that nvidia-smi lists; none without it."""
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
  """The lines of nvidia-smi; cells that it leaves open count as nothing."""
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
  """Folders in which a process would find CUDA before the wheels' one."""
  names = ("libcudart.so*", "libcudnn*.so*", "libcublas.so*")
  return tuple(
    folder
    for folder in dict.fromkeys(filter(None, library_path.split(":")))
    if any(glob.glob(os.path.join(glob.escape(folder), name)) for name in names)
  )


def number(version: str) -> tuple[int, ...]:
  """`"9.10.2.21"` -> (9, 10, 2, 21); what is no number ends it."""
  return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))
