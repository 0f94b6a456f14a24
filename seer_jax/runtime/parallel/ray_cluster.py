"""Work divided over the machines of a Ray cluster that is already running.

The driver, which is this process, keeps a few tasks per core waiting, and takes
their results as they come. Ray runs a task again if its process or machine is
lost. If the driver is lost, its tasks end; whoever starts it again leaves out
what is done.
"""

import functools
import itertools
import os
import pathlib
import pickle
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from seer_jax.runtime import errors
from seer_jax.runtime.parallel import nodes, process_pool

# Times a lost task runs again, and tasks under way for each that can run.
_RETRIES, _WAITING = 5, 2
# Seconds to wait for an answer, and between looks for machines that are new.
_TIMEOUT, _LOOKS = 10, 30
_GIB = 2**30


class Task(NamedTuple):
  """What a task needs: it waits for a machine that has it free."""

  cpus: float = 1
  gpus: float = 0
  memory: float = 0  # GiB; 0 is not counted.


class Cluster:
  """The cluster at an address, with tasks of one size.

  Raises UserError if it cannot be reached, or no machine of it fits a task.
  """

  def __init__(self, address: str, task: Task, paths: Sequence[pathlib.Path]):
    """Connects.

    Args:
      address: HOST:PORT of its head, or "auto" on one of its machines.
      task: what each task needs.
      paths: files and folders that all machines must have.
    """
    self._ray, self._task, self._paths = _connected(address), task, paths
    self._known: set[str] = set()
    self._asked: dict[Any, Any] = {}
    machines = self._look_around()
    if not self._slots:
      raise errors.UserError(
        f"no machine of the cluster fits a task of {_shown(task)}; they have"
        f" {_shown(_largest(machines))} at most; ask for less"
      )

  def _look_around(self):
    """Asks the machines that are new, and counts the tasks that all can run."""
    machines = nodes.alive(self._ray)
    self._slots = sum(
      _fitting(each["Resources"], self._task) for each in machines
    )
    new = [each for each in machines if each["NodeID"] not in self._known]
    self._asked |= nodes.ask(self._ray, new, self._paths)
    self._known |= {each["NodeID"] for each in new}
    self._looked = time.monotonic()
    return machines

  def _check(self):
    asked, self._asked = self._asked, {}
    nodes.check(self._ray, asked)

  def __repr__(self) -> str:
    return f"a Ray cluster that runs {self._slots} tasks at a time"

  def each(
    self,
    work: Callable[[int], Any],
    numbers: Iterable[int],
    progress: Callable[[int], Any] = lambda pieces: None,
  ) -> Iterator[Any]:
    """Yields the results for all numbers, in the order of completion.

    Raises Stopped after `process_pool.stop`, Lost if a task was lost too often,
    the UserError or Lost of a task, and UserError if a machine differs from
    this one (`nodes.check`).

    Args:
      work: can be pickled; opened once in each process.
      numbers: one task each.
      progress: called with the ticks of each task that has ended.
    """
    # Machines have answered while this one opened what the work needs.
    self._check()
    ray, task = self._ray, self._task
    run = ray.remote(_run).options(
      num_cpus=task.cpus,
      num_gpus=task.gpus,
      memory=task.memory * _GIB or None,
      max_retries=_RETRIES,
      name=type(work).__name__,
    )
    shared, waiting = ray.put(pickle.dumps(work)), iter(numbers)
    under_way: dict[Any, int] = {}
    try:
      while True:
        room = _WAITING * max(1, self._slots) - len(under_way)
        for number in itertools.islice(waiting, max(0, room)):
          under_way[run.remote(shared, number)] = number
        if not under_way:
          return
        ended, _ = ray.wait(list(under_way), timeout=0.2)
        process_pool.stop_if_asked()
        if time.monotonic() - self._looked > _LOOKS:
          self._look_around()
          self._check()
        for reference in ended:
          number = under_way.pop(reference)
          result, ticks = _result(ray, reference, number)
          progress(ticks)
          yield result
    finally:
      for reference in under_way:
        ray.cancel(reference, force=True)


def _connected(address):
  """The module `ray`, connected to a cluster."""
  try:
    import ray
  except ImportError:
    raise errors.UserError(
      "--on ray needs Ray: pip install 'seer_jax[cluster]'"
    ) from None
  if ray.is_initialized():
    return ray
  _check_reachable(address)
  try:
    ray.init(
      address,
      log_to_driver=False,
      logging_level="error",
      configure_logging=False,
    )
  except (ConnectionError, RuntimeError, ValueError, OSError) as error:
    raise errors.UserError(
      f"no Ray cluster at {address} ({errors.one_line(error)}); set RAY_ADDRESS"
      " to HOST:PORT of its head, as ray start prints it"
    ) from error
  return ray


def _check_reachable(address):
  """Ray itself would wait for a minute."""
  host, _, port = address.rpartition(":")
  if not host:
    return
  try:
    with socket.create_connection((host, int(port)), _TIMEOUT):
      pass
  except (OSError, ValueError, OverflowError) as error:
    raise errors.UserError(
      f"no Ray cluster answers at {address} ({errors.one_line(error)}); set"
      " RAY_ADDRESS to HOST:PORT of its head, as ray start prints it"
    ) from error


def _fitting(resources, task):
  """How many tasks a machine runs at a time."""
  needs = {"CPU": task.cpus, "GPU": task.gpus, "memory": task.memory * _GIB}
  counts = [
    int(resources.get(name, 0) // need) for name, need in needs.items() if need
  ]
  return min(counts, default=0)


def _largest(machines):
  def most(name):
    return max((each["Resources"].get(name, 0) for each in machines), default=0)

  return Task(most("CPU"), most("GPU"), most("memory") / _GIB)


def _shown(task):
  return f"{task.cpus:g} CPUs, {task.gpus:g} GPUs, {task.memory:.3g} GiB"


def _result(ray, reference, number):
  """(result, ticks) of a task that has ended."""
  try:
    result, ticks, failed = ray.get(reference)
  except ray.exceptions.RayTaskError as error:
    raise error.cause from error  # A defect, with its traceback.
  except ray.exceptions.RayError as error:
    raise errors.Lost(
      f"task {number} was lost {_RETRIES + 1} times, perhaps because memory was"
      f" short ({type(error).__name__}); run the same command again, with"
      " a larger --task-memory"
    ) from error
  if failed:
    kind, message = failed
    raise {each.__name__: each for each in _OURS}[kind](message)
  return result, ticks


_OURS = errors.UserError, errors.Lost, errors.Stopped


def _run(shared: bytes, number: int) -> tuple[Any, int, tuple[str, str] | None]:
  """In a process of the cluster: (result, ticks, error for the user)."""
  ticks = 0

  def ticked(pieces):
    nonlocal ticks
    ticks += pieces

  try:
    with process_pool.ticking(ticked):
      result = _opened(shared)(number)
    return result, ticks, None
  except _OURS as error:
    where = f"on machine {socket.gethostname()}"
    return None, ticks, (type(error).__name__, f"{where}: {error}")


@functools.lru_cache(maxsize=1)
def _opened(shared):
  """The work, opened once in each process: it may hold a network."""
  return pickle.loads(shared)


def address() -> str:
  """Of the cluster, from the environment: `RAY_ADDRESS`, or "auto"."""
  return os.environ.get("RAY_ADDRESS") or "auto"
