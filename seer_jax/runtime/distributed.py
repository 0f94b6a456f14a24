"""Several processes as one run: their ranks, and what they agree on.

Each process finds its rank in flags or in the variables of what launched it,
and joins the others through JAX's coordinator, which is process 0. Mistakes are
looked for before anything long begins; `abort.py` handles later failures.
"""

import collections
import dataclasses
import hashlib
import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from seer_jax.runtime import abort, errors

_log = logging.getLogger(__name__)

_PORT = 61440  # Plus the job's number, so that two jobs may share a host.


@dataclasses.dataclass(frozen=True)
class Rank:
  """One process of several; `coordinator` is the `host:port` of process 0."""

  coordinator: str
  processes: int
  process: int


def find_rank(
  environment: Mapping[str, str],
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> Rank | None:
  """The rank of this process; None if it is the only one.

  Flags win, then the first launcher that says there is more than one process:
  JAX_* variables (set by launch/gke_jobset.yaml), Open MPI, a step of SLURM's
  srun. Raises UserError if there are several, but a part of the rank is missing
  or wrong.
  """
  if (coordinator, processes, process) != (None, None, None):
    return _checked(coordinator, processes, process, "the flags")
  known = environment.get("JAX_COORDINATOR_ADDRESS")
  if _count(environment, "JAX_NUM_PROCESSES") > 1:
    # An indexed Kubernetes job counts its pods.
    index = environment.get(
      "JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX")
    )
    return _checked(
      known, environment["JAX_NUM_PROCESSES"], index, "JAX_* variables"
    )
  # Before SLURM: there, mpirun starts its own launcher as a step of srun.
  if _count(environment, "OMPI_COMM_WORLD_SIZE") > 1:
    size = environment["OMPI_COMM_WORLD_SIZE"]
    if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == size:
      known = known or f"localhost:{_PORT}"
    return _checked(
      known, size, environment.get("OMPI_COMM_WORLD_RANK"), "Open MPI"
    )
  # Only set by srun: a batch script is one process, however many it may start.
  if _count(environment, "SLURM_STEP_NUM_TASKS") > 1:
    return _checked(
      known or _slurm_coordinator(environment),
      environment["SLURM_STEP_NUM_TASKS"],
      environment.get("SLURM_PROCID"),
      "SLURM",
    )
  return None


def _count(environment, name):
  value = environment.get(name, "1")
  if not value.isdigit():
    raise errors.UserError(f"{name} is {value!r} here; it must be a number")
  return int(value)


def _checked(coordinator, processes, process, source):
  """A Rank of values that may be missing or malformed."""
  given = {
    "coordinator": coordinator,
    "processes": processes,
    "process": process,
  }
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise errors.UserError(
      f"the run has several processes, but {source} do not give"
      f" {' and '.join(missing)}; give --coordinator=HOST:PORT --processes=N"
      " --process=I, or set JAX_COORDINATOR_ADDRESS=HOST:PORT"
    )
  for name, value in (("processes", processes), ("process", process)):
    if not re.fullmatch(r"-?\d+", str(value)):
      raise errors.UserError(
        f"{name} is {value!r} in {source}; it must be a number"
      )
  rank = Rank(coordinator, int(processes), int(process))
  if not re.fullmatch(r".+:\d+", rank.coordinator):
    raise errors.UserError(
      f"the coordinator is {rank.coordinator!r}; it must be HOST:PORT"
    )
  if not 0 <= rank.process < rank.processes:
    raise errors.UserError(
      f"process is {rank.process}, of {rank.processes} processes; it must be"
      f" from 0 to {rank.processes - 1}"
    )
  return rank


def _slurm_coordinator(environment):
  nodes = environment["SLURM_STEP_NODELIST"]
  try:
    found = subprocess.run(
      ["scontrol", "show", "hostnames", nodes],
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError) as error:
    raise errors.UserError(
      f"SLURM's scontrol cannot name the hosts of {nodes!r}: {error}; set"
      " JAX_COORDINATOR_ADDRESS=HOST:PORT"
    ) from error
  port = _PORT + int(environment["SLURM_JOB_ID"]) % 4096
  return f"{found.stdout.split()[0]}:{port}"


def start(rank: Rank | None, patience: float = 300) -> None:
  """Joins the other processes, if there are any; before JAX sees a device.

  Raises UserError if the processes do not match and Lost if they cannot be
  reached; they may start later.

  Args:
    patience: seconds to wait for the coordinator and for the others.
  """
  # `MaxOverProcesses` decides at which step to stop, not JAX's preemption
  # service; switched off, the service leaves SIGTERM to us.
  jax.config.update("jax_enable_preemption_service", False)
  if rank is None and not _on_cloud_tpu(os.environ):
    return
  if rank is None:
    try:
      # TPU hosts find each other; for a single one this returns at once.
      jax.distributed.initialize()
    except (OSError, RuntimeError, ValueError) as error:
      # Hosted notebooks have TPUs, and no server that knows about them.
      _log.warning("looked for other TPU hosts and found none: %s", error)
      return
    abort.listen(jax.process_index(), jax.process_count())
    return
  _join(rank, patience)
  abort.listen(rank.process, rank.processes)
  if jax.process_count() != rank.processes:
    raise errors.UserError(
      f"{rank.processes} processes joined, but the {jax.default_backend()}"
      f" devices belong to {jax.process_count()}: install the same JAX on all"
      " hosts; on CPUs, jax_cpu_collectives_implementation must be gloo"
    )


def _on_cloud_tpu(environment):
  """Whether this may be one of several TPU hosts."""
  if "tpu" not in (jax.config.jax_platforms or "tpu"):
    return False
  hosts = environment.get(
    "TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES")
  )
  if hosts is not None:
    slices = _count(environment, "MEGASCALE_NUM_SLICES")
    return len(hosts.split(",")) * slices > 1
  # Without Kubernetes only Google's metadata server knows. JAX sets the first
  # variable where it finds TPUs, and asks the server unless the second is set.
  return (
    environment.get("TPU_ML_PLATFORM") == "JAX"
    and "TPU_SKIP_MDS_QUERY" not in environment
  )


def _join(rank, patience):
  if rank.process > 0:
    _reach(rank, patience)
  # When its own time is up, JAX aborts with a stack trace: be earlier.
  late = threading.Timer(
    patience,
    abort.end_this,
    (
      errors.Lost.STATUS,
      f"process {rank.process} of {rank.processes} waited {patience:g} s for"
      f" the others at {rank.coordinator}. Check that all have started, with"
      " the same --processes and --coordinator, and that no other run uses"
      " that port",
    ),
  )
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      rank.coordinator,
      rank.processes,
      rank.process,
      # No second opinion on the rank; each process owns all devices it sees.
      cluster_detection_method="deactivate",
      initialization_timeout=int(patience) + 60,
    )
  except RuntimeError as error:
    raise errors.Lost(
      f"process {rank.process} of {rank.processes} could not join the run at"
      f" {rank.coordinator}: {' '.join(str(error).split())[:200]}. If another"
      " run uses that port, give another --coordinator"
    ) from error
  finally:
    late.cancel()


def _reach(rank, patience):
  """Waits until the coordinator's port answers."""
  host, port = rank.coordinator.rsplit(":", 1)
  began = logged = time.monotonic()
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
      return
    except OSError as error:
      passed = time.monotonic() - began
      if passed > patience:
        raise errors.Lost(
          f"process {rank.process} cannot reach the coordinator at"
          f" {rank.coordinator} after {patience:g} s ({error}). Check that"
          " process 0 runs there, that this machine resolves the host's name,"
          " and that no firewall closes the port"
        ) from error
      if began + passed - logged > 15:
        logged = began + passed
        _log.warning(
          "process %d waits for %s: %s", rank.process, rank.coordinator, error
        )
      time.sleep(0.2)


def is_primary() -> bool:
  """Whether this process writes the files that a run has once."""
  return jax.process_index() == 0


def check_equal(facts: Mapping[str, str]) -> None:
  """Compares facts, such as the config, with those of the other processes.

  Raises:
    UserError: names the facts that differ, and the processes.
  """
  if jax.process_count() == 1:
    return
  digests = [
    np.frombuffer(hashlib.sha256(fact.encode()).digest(), np.uint8)
    for fact in facts.values()
  ]
  all_PxFx32 = multihost_utils.process_allgather(np.stack(digests))
  differs_PxF = (all_PxFx32 != all_PxFx32[:1]).any(-1)
  differing = [
    f"{name} of process {', '.join(map(str, np.flatnonzero(differs_P)))}"
    for name, differs_P in zip(facts, differs_PxF.T, strict=True)
    if differs_P.any()
  ]
  if differing:
    raise errors.UserError(
      f"the processes do not match: {'; '.join(differing)} differs from that of"
      " process 0. Start all with the same command, code and data"
    )


def from_primary(number: int) -> int:
  """The number that the primary process has, on all."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def any_of(here: bool) -> bool:
  """Whether it is true in any process."""
  if jax.process_count() == 1:
    return here
  return bool(multihost_utils.process_allgather(np.bool_(here)).any())


class MaxOverProcesses:
  """Numbers that all processes compare, step after step.

  One process may know something (a signal came, a disk is full) that all must
  act on at the same step. So each gives its numbers and gets the largest over
  all devices: those of `_LAG` steps ago, which the devices have by then, so
  that the host need not wait for the newest step.

  (JAX's preemption service agrees on a step as well, but on one that a resumed
  run has passed, if the signal comes while it starts.)
  """

  _LAG = 2

  def __init__(self, mesh: jax.sharding.Mesh, count: int):
    """Takes the mesh of the run, and how many numbers to compare."""
    self._count, self._rows = count, len(mesh.local_devices)
    self._asked = collections.deque()
    self._alone = jax.process_count() == 1
    if not self._alone:
      self._each = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
      self._largest = jax.jit(
        lambda numbers_DxN: numbers_DxN.max(0),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
      )

  def agree(self, *numbers: int) -> tuple[int, ...]:
    """The largest of each number over all processes, two calls ago."""
    if self._alone:
      return numbers
    mine = np.tile(np.int32(numbers), (self._rows, 1))
    everyone = jax.make_array_from_process_local_data(self._each, mine)
    self._asked.append(self._largest(everyone))
    if len(self._asked) <= self._LAG:
      return (0,) * self._count
    return tuple(np.asarray(self._asked.popleft()).tolist())
