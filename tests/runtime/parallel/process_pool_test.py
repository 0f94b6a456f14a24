"""Work over processes: results, and how far it is."""

import pytest

from seer_jax.runtime.parallel import process_pool


def double(number):
  for _ in range(number):
    process_pool.tick()
  return 2 * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_with_progress(workers):
  told = []
  found = process_pool.each(double, [3, 4, 5], workers, told.append)
  assert sorted(found) == [6, 8, 10]
  assert sum(told) == 12
  process_pool.tick()  # Of nobody's work.
  assert sum(told) == 12
