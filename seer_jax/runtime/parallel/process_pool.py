"""Work divided over processes, which a signal stops."""

import concurrent.futures
import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from seer_jax.runtime import errors, preemption

_asked: Any = threading.Event()  # In the processes of a pool, their parent's.
# What `tick` calls: the progress, or a counter in other processes.
_ticked: Callable[[], None] | None = None


def stop() -> None:
  """Asks all work in progress to stop."""
  _asked.set()


def asked() -> bool:
  """Whether `stop` was called."""
  return bool(_asked.is_set())


def stop_if_asked() -> None:
  """For work to call regularly; raises Stopped after `stop`."""
  if _asked.is_set():
    raise errors.Stopped("stopped; the same command resumes")


def tick() -> None:
  """For work to call at each finished piece, such as an image."""
  if _ticked is not None:
    _ticked()


class Pool(Protocol):
  """Where work runs: processes of this machine, or a cluster."""

  def each(
    self,
    work: Callable[[int], Any],
    numbers: Iterable[int],
    progress: Callable[[int], Any] = ...,
  ) -> Iterator[Any]:
    """Yields the results for all numbers, as `each` does."""


class Local(NamedTuple):
  """Processes of this machine."""

  workers: int = 1  # How many; 1 is this process.

  def each(
    self,
    work: Callable[[int], Any],
    numbers: Iterable[int],
    progress: Callable[[int], Any] = lambda pieces: None,
  ) -> Iterator[Any]:
    """See `each`."""
    return each(work, numbers, self.workers, progress)


def each(
  work: Callable[[int], Any],
  numbers: Iterable[int],
  workers: int,
  progress: Callable[[int], Any] = lambda pieces: None,
) -> Iterator[Any]:
  """Yields the results for all numbers, in the order of completion.

  Raises Stopped after `stop`, and Lost if a process was killed.

  Args:
    work: can be pickled; sent to each process once.
    workers: number of processes; 1 is this one.
    progress: called several times a second with the number of new ticks.
  """
  if workers == 1:
    yield from _here(work, numbers, progress)
    return
  context = multiprocessing.get_context("spawn")
  event, pieces, before = context.Event(), context.Value("q", 0), 0
  waiting = iter(numbers)
  with concurrent.futures.ProcessPoolExecutor(
    workers, context, initializer=_begin, initargs=(event, pieces, work)
  ) as pool:
    under_way = set()
    try:
      while True:
        # Billions of images have too many parts for one queue.
        for number in waiting:
          with preemption.held_back():  # It starts workers.
            under_way.add(pool.submit(_work, number))
          if len(under_way) >= 2 * workers:
            break
        if not under_way:
          return
        ended, under_way = concurrent.futures.wait(
          under_way, 0.2, concurrent.futures.FIRST_COMPLETED
        )
        stop_if_asked()
        count = pieces.value
        progress(count - before)
        before = count
        for future in ended:
          yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      raise errors.Lost(
        "a process was killed, perhaps because memory was short; run the same"
        " command again, with fewer --workers"
      ) from error
    finally:
      event.set()
      pool.shutdown(cancel_futures=True)


def _here(work, numbers, progress):
  """Runs the work in this process."""
  for number in numbers:
    with ticking(progress):
      result = work(number)
    yield result


@contextlib.contextmanager
def ticking(progress: Callable[[int], Any]) -> Iterator[None]:
  """Calls `progress(1)` at each `tick` of work in this process."""
  global _ticked
  before, _ticked = _ticked, lambda: progress(1)
  try:
    yield
  finally:
    _ticked = before


def _begin(event, pieces, work):
  global _asked, _its_work, _ticked
  preemption.leave_to_the_parent()
  preemption.end_with_the_parent()

  def ticked():
    with pieces.get_lock():
      pieces.value += 1

  _asked, _its_work, _ticked = event, work, ticked


def _work(number):
  return _its_work(number)
