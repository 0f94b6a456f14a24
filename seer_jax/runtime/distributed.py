"""Several processes as one run: who they are, whether they can start together.

Each process learns its place from flags or from what started it, and joins the
others through JAX's coordinator, which is process 0. All that can be wrong is
looked for before anything long begins; for what goes wrong later in one of them
there is `abort.py`.
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
class Place:
  """One process among others.

  Attributes:
    coordinator: host:port of process 0.
    processes: how many there are.
    process: which this one is.
  """

  coordinator: str
  processes: int
  process: int


def find(
  environment: Mapping[str, str],
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> Place | None:
  """The place of this process; None for one that is alone.

  Flags win, then the first that says there is more than one process: JAX_*
  variables (set by launch/gke_jobset.yaml), Open MPI, a step of SLURM's srun.

  Raises:
    UserError: there are several, but what is known does not say who is who.
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
  """A Place of values that may be missing or no numbers."""
  given = {
    "coordinator": coordinator,
    "processes": processes,
    "process": process,
  }
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise errors.UserError(
      f"several processes are to run, but {source} does not tell"
      f" {' and '.join(missing)}; give --coordinator=HOST:PORT --processes=N"
      " --process=I, or set JAX_COORDINATOR_ADDRESS=HOST:PORT"
    )
  for name, value in (("processes", processes), ("process", process)):
    if not re.fullmatch(r"-?\d+", str(value)):
      raise errors.UserError(
        f"{name} is {value!r}, by {source}; it must be a number"
      )
  place = Place(coordinator, int(processes), int(process))
  if not re.fullmatch(r".+:\d+", place.coordinator):
    raise errors.UserError(
      f"the coordinator is {place.coordinator!r}; it must be HOST:PORT"
    )
  if not 0 <= place.process < place.processes:
    raise errors.UserError(
      f"process {place.process} is not one of {place.processes}: processes are"
      f" numbered from 0 to {place.processes - 1}"
    )
  return place


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
      f"cannot ask SLURM for the hosts of {nodes!r}: {error}; set"
      " JAX_COORDINATOR_ADDRESS=HOST:PORT"
    ) from error
  port = _PORT + int(environment["SLURM_JOB_ID"]) % 4096
  return f"{found.stdout.split()[0]}:{port}"


def start(place: Place | None, patience: float = 300) -> None:
  """Joins the other processes, if there are any. Before JAX sees a device.

  Args:
    place: of this process.
    patience: seconds to wait for the coordinator and for the others.

  Raises:
    UserError: they are not what they should be.
    Lost: they cannot be reached; perhaps they start later.
  """
  # JAX's own agreement on a step to stop at is not used (see `preemption.py`);
  # switched off, it leaves SIGTERM to us.
  jax.config.update("jax_enable_preemption_service", False)
  if place is None and not _on_cloud_tpu(os.environ):
    return
  if place is None:
    try:
      # Its machines find each other; a single one is soon done.
      jax.distributed.initialize()
    except (OSError, RuntimeError, ValueError) as error:
      # Hosted notebooks have TPUs, and no server that knows about them.
      _log.warning("asked for other TPU hosts, and found none: %s", error)
      return
  else:
    _join(place, patience)
  abort.listen()
  if place and jax.process_count() != place.processes:
    raise errors.UserError(
      f"{place.processes} processes joined, but {jax.default_backend()} devices"
      f" show {jax.process_count()}: is JAX of the same kind everywhere, and"
      " jax_cpu_collectives_implementation, on CPUs, gloo?"
    )


def _on_cloud_tpu(environment):
  """Whether this may be one of several machines of TPUs."""
  if "tpu" not in (jax.config.jax_platforms or "tpu"):
    return False
  hosts = environment.get(
    "TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES")
  )
  if hosts is not None:
    slices = _count(environment, "MEGASCALE_NUM_SLICES")
    return len(hosts.split(",")) * slices > 1
  # Without Kubernetes only Google's metadata server knows. JAX has set the
  # first where it found TPUs, and asks the server unless the second is set.
  return (
    environment.get("TPU_ML_PLATFORM") == "JAX"
    and "TPU_SKIP_MDS_QUERY" not in environment
  )


def _join(place, patience):
  if place.process > 0:
    _reach(place, patience)
  # When its own time is up, JAX aborts with a stack trace: be earlier.
  late = threading.Timer(
    patience,
    abort.end_this,
    (
      errors.Lost.STATUS,
      f"process {place.process} of {place.processes} waited {patience:g} s at"
      f" {place.coordinator} in vain. Did all others start, with the same"
      " --processes and --coordinator, and is no other run at that port?",
    ),
  )
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.processes,
      place.process,
      # What is found here is right: no second opinion, and all devices that a
      # process sees are its own.
      cluster_detection_method="deactivate",
      initialization_timeout=int(patience) + 60,
    )
  except RuntimeError as error:
    raise errors.Lost(
      f"process {place.process} of {place.processes} could not join the run at"
      f" {place.coordinator}: {' '.join(str(error).split())[:200]}. Is the port"
      " taken by another run? Give another --coordinator"
    ) from error
  finally:
    late.cancel()


def _reach(place, patience):
  """Waits until the coordinator's port answers."""
  host, port = place.coordinator.rsplit(":", 1)
  began = told = time.monotonic()
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
      now = time.monotonic()
      if now - began > patience:
        raise errors.Lost(
          f"process {place.process} cannot reach the coordinator at"
          f" {place.coordinator} after {patience:g} s ({error}). Is process 0"
          " running there, is the host's name right on this machine, and does"
          " a firewall let the port through?"
        ) from error
      if now - told > 15:
        told = now
        _log.warning(
          "process %d waits for %s: %s", place.process, place.coordinator, error
        )
      time.sleep(0.2)
    else:
      return


def is_lead() -> bool:
  """Whether this process writes what there must be one of."""
  return jax.process_index() == 0


def agree(facts: Mapping[str, str]) -> None:
  """Compares facts, such as the config, with those of the other processes.

  Raises:
    UserError: one differs; says which, and at which processes.
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
      f"the processes do not agree: {'; '.join(differing)} differs from that"
      " of process 0. All must be started with the same command, code and data"
    )


def tell(number: int) -> int:
  """What process 0 says, on all."""
  if jax.process_count() == 1:
    return number
  said = multihost_utils.broadcast_one_to_all(np.int64(number))
  return int(said)


def any_of(here: bool) -> bool:
  """Whether it is so in any process."""
  if jax.process_count() == 1:
    return here
  return bool(multihost_utils.process_allgather(np.bool_(here)).any())


class Votes:
  """Questions that all processes answer, step after step, and hear alike.

  Of several processes each may know something (a signal came, a disk is full),
  and all must act on it at the same step. So each gives its numbers, and gets
  the largest of all devices; those of `_LAG` questions ago, which the devices
  have by then: the host need not wait for the newest step.

  (JAX's preemption service agrees on a step as well; but on one that a resumed
  run has passed, if the notice comes while it starts.)
  """

  _LAG = 2

  def __init__(self, mesh: jax.sharding.Mesh, count: int):
    """Takes the mesh of the run, and how many numbers a question has."""
    self._count, self._rows = count, len(mesh.local_devices)
    self._asked = collections.deque()
    self._alone = jax.process_count() == 1
    if not self._alone:
      self._each = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
      self._largest = jax.jit(
        lambda votes_DxN: votes_DxN.max(0),
        out_shardings=jax.NamedSharding(mesh, jax.P()),
      )

  def cast(self, *numbers: int) -> tuple[int, ...]:
    """The largest of each number over all processes, two questions ago."""
    if self._alone:
      return numbers
    mine = np.tile(np.int32(numbers), (self._rows, 1))
    everyone = jax.make_array_from_process_local_data(self._each, mine)
    self._asked.append(self._largest(everyone))
    if len(self._asked) <= self._LAG:
      return (0,) * self._count
    return tuple(np.asarray(self._asked.popleft()).tolist())
