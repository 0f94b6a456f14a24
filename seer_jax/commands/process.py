"""What a process is told before JAX starts: where programs and memory are kept.

XLA:CPU asks for a program's temporary memory at each call and gives it back
after. Of hundreds of MiB that is a quarter of a step: glibc passes them on to
the system, which takes pages back and hands them out again one by one, zeroed
(RegNetY-400MF, 96 px, 16 images: 83,000 page faults a step; 384 ms became 296).
"""

import ctypes
import gc
import glob
import os
import sys

from seer_jax.runtime import files, host

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = (
  "/dev/nvidia[0-9]*",
  "/dev/kfd",
  "/dev/accel*",
  "/dev/vfio/[0-9]*",
)


def keep_compiled() -> None:
  """Compiled programs survive the process, in the user's cache folder."""
  import jax

  jax.config.update("jax_compilation_cache_dir", str(files.cache_folder()))


def collect_seldom() -> None:
  """Python looks for cycles less often: tracing makes few, of many objects."""
  gc.set_threshold(100_000, 20, 20)


def keep_memory() -> bool:
  """Has this process keep memory that is freed, for the next step.

  Only where the CPU is what computes, and glibc what allocates. Before threads
  are started, thus before JAX is imported: glibc gives each thread an arena,
  and only the first can hold so much.

  Returns:
    Whether it was asked for.
  """
  if "jax" in sys.modules or _has_accelerator() or not host.has_glibc():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  wanted = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
  return all(mallopt(what, value) for what, value in wanted)


def _has_accelerator():
  platforms = os.environ.get("JAX_PLATFORMS")
  if platforms:
    return platforms != "cpu"
  return any(glob.glob(pattern) for pattern in _ACCELERATORS)
