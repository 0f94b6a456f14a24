"""This machine: cores, memory, processes."""

import ctypes
import os
import pathlib
import platform
import socket


def cores() -> int:
  """The cores this process may use: under SLURM not all of the machine's."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def has_glibc() -> bool:
  """Whether memory is allocated by glibc."""
  return platform.libc_ver()[0] == "glibc"


def give_back_memory() -> None:
  """Returns free memory to the system, such as that of compiling."""
  if has_glibc():
    ctypes.CDLL(None).malloc_trim(0)


def this_machine() -> str:
  """Identifies the machine, its boot, and the namespace of its processes."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return socket.gethostname()  # Not on Linux.


def start_of(process: int | str | None) -> str | None:
  """The start time of a process of this machine; None if it does not run.

  Process numbers are reused; with the start time they are unique.
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
