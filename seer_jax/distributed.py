"""Several processes as one run: who they are, whether they can start together.

Each process learns its place from flags or from what started it, and joins the
others through JAX's coordinator, which is process 0. All that can be wrong is
looked for before anything long begins.
"""

import dataclasses
import hashlib
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from seer_jax import errors

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
  variables (set by launch/gke_jobset.yaml), a step of SLURM's srun, Open MPI.

  Raises:
    UserError: there are several, but what is known does not say who is who.
  """
  if (coordinator, processes, process) != (None, None, None):
    return _checked(coordinator, processes, process, "the flags")
  known = environment.get("JAX_COORDINATOR_ADDRESS")
  if int(environment.get("JAX_NUM_PROCESSES", 1)) > 1:
    # An indexed Kubernetes job counts its pods.
    index = environment.get(
      "JAX_PROCESS_ID", environment.get("JOB_COMPLETION_INDEX")
    )
    return _checked(
      known, environment["JAX_NUM_PROCESSES"], index, "JAX_* variables"
    )
  # Only set by srun: a batch script is one process, however many it may start.
  if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    return _checked(
      known or _slurm_coordinator(environment),
      environment["SLURM_STEP_NUM_TASKS"],
      environment.get("SLURM_PROCID"),
      "SLURM",
    )
  if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    size = environment["OMPI_COMM_WORLD_SIZE"]
    if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == size:
      known = known or f"localhost:{_PORT}"
    return _checked(
      known, size, environment.get("OMPI_COMM_WORLD_RANK"), "Open MPI"
    )
  return None


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
    UserError: they cannot be reached.
  """
  if place is None:
    if _on_cloud_tpu():
      # Its machines find each other; a single one is soon done.
      jax.distributed.initialize()
    return
  if place.process > 0:
    _reach(place, patience)
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.processes,
      place.process,
      # What is found here is right: no second opinion, and all devices that a
      # process sees are its own.
      cluster_detection_method="deactivate",
      initialization_timeout=int(patience),
    )
  except RuntimeError as error:
    raise errors.UserError(
      f"process {place.process} of {place.processes} could not join the run at"
      f" {place.coordinator} within {patience:g} s:"
      f" {' '.join(str(error).split())[:200]}"
    ) from error


def _on_cloud_tpu():
  return len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1


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
        raise errors.UserError(
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


def wait_for_all(name: str) -> None:
  """Returns when every process came here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
