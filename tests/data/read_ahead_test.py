"""Reads that take long are made at once, in order, and hold nothing up."""

import threading
import time

import numpy as np
import pytest
from pipeline_test import Numbers, batches_of

from seer_jax.data.storage import read_ahead


class Slow:
  """A sample is its number; each read of it takes a while."""

  def __init__(self, seconds):
    self.seconds, self.under_way, self.most = seconds, 0, 0
    self.lock, self.hung = threading.Lock(), threading.Event()

  def read(self, number):
    with self.lock:
      self.under_way += 1
      self.most = max(self.most, self.under_way)
    self.hung.wait(self.seconds)
    with self.lock:
      self.under_way -= 1
    if number == 13:
      raise OSError("unlucky")
    return number

  def __call__(self, number, read):
    try:
      return {"x": np.array(read()), "y": (np.zeros(2), np.ones(3))}
    except OSError:
      return {"x": np.array(-1), "y": (np.zeros(2), np.ones(3))}


def batches_for(sample, **options):
  usual = {"reads": 8, "makers": 2, "stride": 1}
  return read_ahead.BatchReader(
    sample, lambda step: range(4 * step, 4 * step + 4), 10, **usual | options
  )


@pytest.mark.parametrize("makers", [1, 2])
@pytest.mark.parametrize("stride", [1, 3])
def test_batches_are_what_they_are_in_order(makers, stride):
  sample = Slow(0.001)
  batches = batches_for(sample, makers=makers, stride=stride)
  for step in range(0, 10, stride):
    batch = batches(step)
    wanted = [n if n != 13 else -1 for n in range(4 * step, 4 * step + 4)]
    assert batch["x"].tolist() == wanted
    assert [each.shape for each in batch["y"]] == [(4, 2), (4, 3)]
  batches.close()
  assert sample.most <= 8


@pytest.mark.parametrize("reads", [1, 4, 16])
def test_so_many_reads_are_under_way_at_once(reads):
  sample = Slow(0.02)
  batches = batches_for(sample, reads=reads, makers=1)
  began = time.monotonic()
  for step in range(10):
    batches(step)
  batches.close()
  assert sample.most == reads
  # One after the other they take 0.8 s.
  assert time.monotonic() - began > 0.8 / reads - 0.05


def test_closing_frees_who_waits_for_a_read_that_hangs():
  sample = Slow(60)
  batches = batches_for(sample)
  told = []

  def ask():
    try:
      batches(0)
    except BaseException as error:
      told.append(type(error).__name__)

  waiting = threading.Thread(target=ask)
  waiting.start()
  while not sample.under_way:
    time.sleep(0.001)
  batches.close()
  waiting.join(10)
  sample.hung.set()
  assert told == ["CancelledError"]


class SlowNumbers(Numbers):
  """On a network file system: 10 ms a read."""

  def __getitem__(self, i):
    time.sleep(0.01)
    return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
def test_any_number_of_reads_gives_the_same_batches(tmp_path, workers):
  changes = {"data__workers": workers}
  one = batches_of(SlowNumbers(30), tmp_path, data__reads=1, **changes)
  many = batches_of(SlowNumbers(30), tmp_path, data__reads=32, **changes)
  np.testing.assert_array_equal(one, many)
