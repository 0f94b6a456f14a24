import platform
import subprocess
import sys

import pytest

# Allocates and frees as XLA does, in a thread, and counts page faults.
PROBE = """
import ctypes, resource, sys, threading
from seer_jax.commands import process
from seer_jax.runtime import host
print(process.keep_memory() if {keep} else False)
def work():
  for _ in range(8):
    block = bytearray(64 << 20)
    del block
thread = threading.Thread(target=work)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
host.give_back_memory()
"""


def probe(keep, **environment):
  run = subprocess.run(
    [sys.executable, "-c", PROBE.format(keep=keep)],
    capture_output=True,
    text=True,
    env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "."} | environment,
    check=True,
  )
  kept, faults = run.stdout.split()
  return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_freed_is_kept_for_the_next_step():
  kept, faults = probe(keep=True, JAX_PLATFORMS="cpu")
  assert kept
  _, usual = probe(keep=False)
  assert faults < usual / 4


def test_an_accelerator_needs_no_memory_kept():
  kept, _ = probe(keep=True, JAX_PLATFORMS="cuda")
  assert not kept
