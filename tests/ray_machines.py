"""A Ray cluster on loopback: a head, and workers that can be killed."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import runs

_OBJECTS = 100_000_000  # Bytes of each machine's object store, Ray's least.


class Machine:
  """One machine of the cluster: its processes, in a session of their own."""

  def __init__(
    self,
    environment: Mapping[str, str],
    log: pathlib.Path,
    *arguments: str,
    before: str = "",
  ):
    """Starts it; `before` is a shell command in mounts of its own."""
    self._log = log
    command = [
      str(pathlib.Path(sys.executable).with_name("ray")),
      *("start", "--block", "--disable-usage-stats"),
      *("--node-ip-address=127.0.0.1", f"--object-store-memory={_OBJECTS}"),
      *arguments,
    ]
    if before:
      shell = f"{before} && exec {shlex.join(command)}"
      command = ["unshare", "--mount", "sh", "-c", shell]
    with log.open("w") as file:
      self._process = subprocess.Popen(
        command,
        env=environment,
        cwd=runs.ROOT,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  def wait(self) -> None:
    """Until it is part of the cluster."""
    runs.wait_until(
      lambda: "Ray runtime started" in self._log.read_text(), self._process
    )

  def _processes(self) -> list[int]:
    """All below it, by Linux's list of children."""
    found, waiting = [], [self._process.pid]
    while waiting:
      found.append(waiting.pop())
      for task in pathlib.Path(f"/proc/{found[-1]}/task").glob("*"):
        with contextlib.suppress(OSError):
          waiting += map(int, (task / "children").read_text().split())
    return found

  def kill(self) -> None:
    """Kills every process of it with SIGKILL, as if the power went."""
    for process in self._processes():
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    self._process.wait()


@contextlib.contextmanager
def cluster(
  folder: str, workers: int = 2
) -> Iterator[tuple[str, list[Machine], Callable[..., Machine]]]:
  """Starts a head without CPUs and workers of one.

  (address, workers, function that adds one with other variables of its
  environment and `before`).
  """
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "PYTHONPATH": str(runs.ROOT),
    # A dead machine is noticed in seconds.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
  }
  port = runs.free_port()
  address = f"127.0.0.1:{port}"
  log = pathlib.Path(f"{folder}.log")
  head = Machine(
    environment,
    log,
    *("--head", f"--port={port}", "--num-cpus=0"),
    *("--include-dashboard=false", f"--temp-dir={folder}"),
  )
  machines = [head]

  def add(before="", **variables):
    machine = Machine(
      environment | variables,
      pathlib.Path(f"{folder}.{len(machines)}.log"),
      *(f"--address={address}", "--num-cpus=1"),
      before=before,
    )
    machines.append(machine)
    machine.wait()
    return machine

  try:
    head.wait()
    # One after the other: they look for free ports.
    yield address, [add() for _ in range(workers)], add
  finally:
    for machine in machines[::-1]:
      machine.kill()
