"""This machine: its cores, its memory, its processes."""

import ctypes
import os
import pathlib
import platform
import socket


def cores() -> int:
  """How many this process may use: under SLURM, for one, not all there are."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


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
