"""Describes this machine, and finds faults of the installation.

`jax.print_environment_info` lists the versions of 2 of these 16 packages, and
neither memory, compute capability, precision nor the cache.
"""

import collections
import dataclasses
import platform
import re
from collections.abc import Callable, Iterator, Sequence

from seer_jax.planning.installation import Facts, number

_GIB = 2**30
# Older GPUs are not supported by cuDNN from 9.11 on, nor by CUDA 13.
_TURING = (7, 5)
_CUDNN_WITHOUT_VOLTA = (9, 11)
# Oldest Linux drivers for each line of CUDA toolkits, from its release notes.
_DRIVERS = {12: (525, 60), 13: (580, 65)}


@dataclasses.dataclass(frozen=True)
class Finding:
  """A fault and its fix; a note if there is nothing to fix."""

  fault: str
  fix: str = ""


def _sees(facts, *platforms):
  return any(device.platform in platforms for device in facts.devices)


def _old_gpus(facts):
  """GPUs that new CUDA libraries do not support."""
  gpus = {(each.name, each.capability) for each in facts.gpus} or {
    (each.kind, each.capability) for each in facts.devices
  }
  return sorted(
    f"{name} (compute capability {capability})"
    for name, capability in gpus
    if number(capability) and number(capability) < _TURING
  )


def _extra(facts):
  """The extra for this machine's accelerators."""
  if facts.tpu_chips:
    return "tpu"
  if _old_gpus(facts):
    return "v100"
  driver = min((number(gpu.driver) for gpu in facts.gpus), default=())
  return "cuda13" if driver >= _DRIVERS[13] else "cuda12"


def _install(extra):
  return f"pip install 'seer_jax[{extra}]'"


def _plugins(facts):
  return [n for n in (12, 13) if f"jax-cuda{n}-plugin" in facts.versions]


def jax_starts(facts: Facts) -> Iterator[Finding]:
  if not facts.devices:
    yield Finding(
      f"JAX does not start: {facts.complaint or 'no message'}",
      _install(_extra(facts))
      if facts.nvidia or facts.tpu_chips
      else "pip install --upgrade jax jaxlib",
    )


def versions_agree(facts: Facts) -> Iterator[Finding]:
  ours = {
    name: version
    for name, version in facts.versions.items()
    if name in ("jax", "jaxlib") or re.match(r"jax-cuda1\d-(plugin|pjrt)", name)
  }
  if len(set(ours.values())) > 1:
    found = ", ".join(f"{name} {version}" for name, version in ours.items())
    plugins = [f"cuda{n}" for n in _plugins(facts)]
    yield Finding(
      f"parts of JAX have different versions: {found}",
      f"pip install --upgrade 'jax[{','.join(plugins)}]'"
      if plugins
      else "pip install --upgrade jax jaxlib",
    )


def one_plugin(facts: Facts) -> Iterator[Finding]:
  if len(_plugins(facts)) > 1:
    drop = 13 if _extra(facts) in ("cuda12", "v100") else 12
    yield Finding(
      "the plugins for CUDA 12 and CUDA 13 are both installed, and conflict",
      f"pip uninstall jax-cuda{drop}-plugin jax-cuda{drop}-pjrt",
    )


def old_gpu_can_run(facts: Facts) -> Iterator[Finding]:
  old = ", ".join(_old_gpus(facts))
  if not old:
    return
  cudnn = facts.versions.get("nvidia-cudnn-cu12", "")
  if 13 in _plugins(facts):
    yield Finding(
      f"CUDA 13 does not support {old}",
      "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt; " + _install("v100"),
    )
  if number(cudnn) >= _CUDNN_WITHOUT_VOLTA:
    yield Finding(
      f"cuDNN {cudnn} does not support {old}; 9.10 is the last that does",
      _install("v100"),
    )


def driver_is_new_enough(facts: Facts) -> Iterator[Finding]:
  for line in _plugins(facts):
    for driver in sorted({gpu.driver for gpu in facts.gpus}):
      if () < number(driver) < _DRIVERS[line]:
        need = ".".join(map(str, _DRIVERS[line]))
        yield Finding(
          f"NVIDIA's driver is {driver}, but CUDA {line} needs {need} or newer",
          "update the driver"
          + (", or " + _install(_extra(facts)) if line == 13 else ""),
        )


def gpu_is_seen(facts: Facts) -> Iterator[Finding]:
  if not facts.nvidia or _sees(facts, "gpu", "cuda") or not facts.devices:
    return
  what = "there is an NVIDIA GPU, but JAX sees only the CPU"
  asked = facts.environment.get("JAX_PLATFORMS", "")
  hidden = facts.environment.get("CUDA_VISIBLE_DEVICES")
  plugins = _plugins(facts)
  if asked and not {"cuda", "gpu"} & set(asked.split(",")):
    yield Finding(f"{what}, because JAX_PLATFORMS={asked}")  # On purpose.
  elif hidden in ("", "-1"):
    yield Finding(f"{what}, because CUDA_VISIBLE_DEVICES={hidden} hides it")
  elif not plugins:
    yield Finding(f"{what}: its plugin is missing", _install(_extra(facts)))
  elif not _has_cuda(facts):
    yield Finding(
      f"{what}: CUDA's own libraries are missing, except for a compiler",
      _install(_extra(facts)),
    )
  else:
    yield Finding(
      f"{what}; its message: {facts.complaint or 'none'}",
      f"fix the other faults, or {_install(_extra(facts))}; then check that"
      " nvidia-smi works, and that a container was started with GPUs (docker"
      " run --gpus all)",
    )


def _has_cuda(facts):
  names = ("nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime")
  return bool(set(names) & set(facts.versions) or facts.foreign_cuda)


def tpu_is_seen(facts: Facts) -> Iterator[Finding]:
  if not facts.tpu_chips or _sees(facts, "tpu") or not facts.devices:
    return
  what = f"there are {facts.tpu_chips} TPU chips, but JAX sees only the CPU"
  asked = facts.environment.get("JAX_PLATFORMS", "")
  if asked and "tpu" not in asked.split(","):
    yield Finding(f"{what}, because JAX_PLATFORMS={asked}")
  elif "libtpu" not in facts.versions:
    yield Finding(f"{what}: libtpu is missing", _install("tpu"))
  else:
    yield Finding(
      f"{what}; its message: {facts.complaint or 'none'}",
      "end the other process that uses the TPU (only one can), or update"
      " libtpu: " + _install("tpu"),
    )


def no_other_cuda(facts: Facts) -> Iterator[Finding]:
  wheels = [name for name in facts.versions if name.startswith("nvidia-cud")]
  if facts.foreign_cuda and wheels and _plugins(facts):
    folders = ", ".join(facts.foreign_cuda)
    yield Finding(
      f"LD_LIBRARY_PATH has another CUDA, in {folders}, which may be loaded"
      " instead of the installed wheels",
      "unset LD_LIBRARY_PATH, or remove these folders from it",
    )


def gpus_are_free(facts: Facts) -> Iterator[Finding]:
  for gpu in facts.gpus:
    if gpu.used > gpu.memory / 10:
      yield Finding(
        f"{gpu.used / _GIB:.1f} of the {gpu.memory / _GIB:.1f} GiB of a"
        f" {gpu.name} are in use by other processes"
      )
  # Versions of builds for CPUs contain "cpu".
  greedy = [
    name
    for name in ("tensorflow", "torch")
    if "cpu" not in facts.versions.get(name, "cpu")
  ]
  if greedy and facts.nvidia:
    yield Finding(
      f"{' and '.join(greedy)} can take GPU memory in any process that imports"
      " it; seer_jax does not"
    )


def shared_memory_is_enough(facts: Facts) -> Iterator[Finding]:
  # With few cores, threads decode instead of processes.
  if facts.cores > 4 and facts.shm < _GIB:
    yield Finding(
      f"/dev/shm has {max(0, facts.shm) / _GIB:.2f} GiB free, but data workers"
      " hand over their batches there",
      "docker run --shm-size=16g, or --config.data.workers=0",
    )


def cache_has_room(facts: Facts) -> Iterator[Finding]:
  if not facts.cache_writable:
    what = "cannot be written to, so every start compiles again"
  elif facts.cache_free < _GIB:
    what = f"is on a disk with only {facts.cache_free / _GIB:.2f} GiB free"
  else:
    return
  yield Finding(
    f"the folder of compiled programs, {facts.cache}, {what}",
    "make room, or set XDG_CACHE_HOME to another folder",
  )


CHECKS: Sequence[Callable[[Facts], Iterator[Finding]]] = (
  *(jax_starts, versions_agree, one_plugin, old_gpu_can_run),
  *(driver_is_new_enough, gpu_is_seen, tpu_is_seen, no_other_cuda),
  *(gpus_are_free, shared_memory_is_enough, cache_has_room),
)


def describe(facts: Facts) -> Iterator[str]:
  """The machine in a few lines."""
  ours, cuda = [], []
  for name, version in facts.versions.items():
    (cuda if name.startswith("nvidia-") else ours).append(f"{name} {version}")
  yield f"python      {platform.python_version()}, {platform.platform()}"
  yield f"packages    {', '.join(ours)}"
  yield f"CUDA wheels {', '.join(cuda) or 'none'}"
  for device, count in collections.Counter(facts.devices).items():
    capability = (
      device.capability and f", compute capability {device.capability}"
    )
    memory = device.memory and f", {device.memory / _GIB:.1f} GiB"
    yield f"devices     {count} x {device.kind}{capability}{memory or ''}"
  if facts.precision:
    yield f"precision   {facts.precision[0]}: {facts.precision[1]}"
  yield (
    f"host        {facts.cores} cores, {facts.memory / _GIB:.1f} GiB memory,"
    f" {max(0, facts.shm) / _GIB:.1f} GiB free in /dev/shm"
  )
  yield f"compiled    {facts.cache} ({facts.cache_free / _GIB:.1f} GiB free)"
  for name, value in facts.environment.items():
    yield f"variable    {name}={value}"


def examine(facts: Facts) -> Iterator[Finding]:
  """Findings of all checks."""
  for check in CHECKS:
    yield from check(facts)


def report(facts: Facts) -> tuple[list[str], int]:
  """Lines to print, and the exit status."""
  findings = list(examine(facts))
  faults = [finding for finding in findings if finding.fix]
  lines = [*describe(facts), ""]
  lines += [f"note: {each.fault}" for each in findings if not each.fix]
  for each in faults:
    lines += [f"fault: {each.fault}", f"  fix: {each.fix}"]
  if not faults:
    lines.append("no faults")
  return lines, 2 if faults else 0
