"""Settings made before JAX starts: the compilation cache and memory.

XLA:CPU allocates a program's temporary memory at each call and frees it after.
For hundreds of MiB that takes a quarter of a step, since glibc returns them to
the system, which hands the pages out again one by one, zeroed (RegNetY-400MF,
96 px, 16 images: 83,000 page faults a step; without them 384 ms became 296).
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
  """Keeps compiled programs in the user's cache."""
  import jax

  jax.config.update("jax_compilation_cache_dir", str(files.cache_folder()))


def collect_seldom() -> None:
  """Runs the garbage collector less often: tracing makes few cycles."""
  gc.set_threshold(100_000, 20, 20)


def keep_memory() -> bool:
  """Has glibc keep memory that is freed, for the next step; whether it does.

  Only if the CPU computes and JAX is not imported yet: glibc gives each thread
  an arena, and only the first one can hold so much.
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
