"""Batches whose images are read by threads, ahead of decoding.

On a network file system a read takes tens of milliseconds of waiting. So
several reads are under way at a time, for this batch and the next, while
earlier images are decoded.
"""

import concurrent.futures
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from seer_jax.data.storage.example import Example

# Concurrent reads, unless a config sets them.
READS = 8


class Sample(Protocol):
  """Makes a sample: {name: array, or a tuple of arrays}."""

  def read(self, number: int) -> Example:
    """The image of a sample; runs in a thread."""
    ...

  def __call__(
    self, number: int, read: Callable[[], Example]
  ) -> dict[str, Any]:
    """The sample; `read` waits for the result of `read(number)`."""
    ...


class BatchReader:
  """Number of a step -> the samples of its batch, stacked.

  Called by one thread at a time, for steps a stride apart. It can be pickled;
  the first call starts the threads.
  """

  def __init__(
    self,
    sample: Sample,
    numbers_of: Callable[[int], Sequence[int]],
    steps: int,
    *,
    reads: int,
    makers: int,
    stride: int = 1,
  ):
    """Starts nothing yet.

    Args:
      numbers_of: the samples of a step.
      reads: concurrent reads.
      makers: samples made concurrently.
      stride: between two steps that are requested in succession.
    """
    self._sample, self._numbers_of, self._steps = sample, numbers_of, steps
    self._reads, self._makers, self._stride = reads, makers, stride
    self._readers = self._threads = None
    self._under_way: dict[int, list[concurrent.futures.Future]] = {}
    self._closed = False

  def __call__(self, step: int) -> dict[str, Any]:
    if self._closed:
      raise concurrent.futures.CancelledError
    if self._readers is None:
      self._readers = _Threads(self._reads)
      self._threads = _Threads(self._makers) if self._makers > 1 else None
    numbers = self._numbers_of(step)
    self._begin_reading(step, len(numbers))
    jobs = [
      (self._sample, number, read.result)
      for number, read in zip(numbers, self._under_way.pop(step), strict=True)
    ]
    if self._threads is None:
      return _stacked([make(*rest) for make, *rest in jobs])
    made = [self._threads.submit(*job) for job in jobs]
    return _stacked([each.result() for each in made])

  def _begin_reading(self, step, batch):
    """Starts reading this step, and enough later ones to keep readers busy."""
    ahead = -(-self._reads // batch)
    last = min(step + ahead * self._stride, self._steps - 1)
    for each in range(step, last + 1, self._stride):
      if each not in self._under_way:
        self._under_way[each] = [
          self._readers.submit(self._sample.read, number)
          for number in self._numbers_of(each)
        ]

  def close(self) -> None:
    """Ends the threads and wakes all waiters, without waiting."""
    self._closed = True
    for threads in (self._threads, self._readers):
      if threads is not None:
        threads.close()

  def __getstate__(self):
    return self.__dict__ | {
      "_readers": None,
      "_threads": None,
      "_under_way": {},
    }


class _Threads:
  """A thread pool that never delays the end of the process.

  Those of `concurrent.futures` do, and a read may hang as long as its file
  server.
  """

  def __init__(self, count: int):
    self._calls, self._open = queue.SimpleQueue(), set()
    for _ in range(count):
      # Not a method, through which a thread would keep this object alive.
      threading.Thread(target=_work, args=(self._calls,), daemon=True).start()

  def submit(self, fn, *args) -> concurrent.futures.Future:
    """Calls `fn(*args)` in a thread."""
    future = concurrent.futures.Future()
    self._open.add(future)
    future.add_done_callback(self._open.discard)
    self._calls.put((future, fn, args))
    return future

  def close(self) -> None:
    """Ends all threads, and cancels calls that have not ended."""
    self._calls.put(None)
    for future in list(self._open):
      with contextlib.suppress(concurrent.futures.InvalidStateError):
        future.set_exception(concurrent.futures.CancelledError())

  __del__ = close


def _work(calls):
  while (call := calls.get()) is not None:
    future, fn, args = call
    with contextlib.suppress(concurrent.futures.InvalidStateError):
      try:
        if not future.done():
          future.set_result(fn(*args))
      except concurrent.futures.InvalidStateError:
        raise
      except BaseException as error:
        future.set_exception(error)
    del call, future, fn, args
  calls.put(None)  # For the next thread.


def _stacked(samples):
  return {
    name: tuple(map(np.stack, zip(*each, strict=True)))
    if isinstance(each[0], tuple)
    else np.stack(each)
    for name, each in (
      (name, [sample[name] for sample in samples]) for name in samples[0]
    )
  }
