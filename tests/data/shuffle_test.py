import json
import subprocess
import sys

import numpy as np
import pytest

from seer_jax.data import shuffle
from seer_jax.runtime import errors


def draws(size, first, count, seed=0):
  return shuffle.Order((size,), (1.0,), seed).at(
    np.arange(first, first + count)
  )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 97, 1797, 4096])
def test_an_epoch_has_every_image_once(size):
  for epoch in range(3):
    assert sorted(draws(size, epoch * size, size)) == list(range(size))


def test_epochs_and_seeds_differ():
  first, second = draws(500, 0, 500), draws(500, 500, 500)
  assert (first != second).mean() > 0.9
  assert (first != draws(500, 0, 500, seed=1)).mean() > 0.9


def test_one_draw_is_as_many():
  one = shuffle.Order((700,), (1.0,), 3)
  assert [one[i] for i in range(2000)] == one.at(np.arange(2000)).tolist()


@pytest.mark.parametrize("size", [50_000, 1_281_167, 10**9])
def test_neighbours_are_not_drawn_together(size):
  """A list sorted by anything must not give batches of one kind."""
  share = draws(size, 0, 256 * 150) / size
  assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.03
  means = share.reshape(-1, 256).mean(1)
  expected = np.sqrt(1 / 12 / 256)
  assert 0.8 < means.std() / expected < 1.2
  counts = np.histogram(share, 50, (0, 1))[0]
  # Chi-squared over its degrees of freedom; drawing without replacement from
  # few images spreads them more evenly than chance.
  assert np.sum((counts - 768) ** 2 / 768) / 49 < 1.5


def test_all_permutations_of_a_few_are_as_likely():
  seen = [
    tuple(shuffle.permuted(np.arange(4), 4, f"key {number}"))
    for number in range(2400)
  ]
  _, counts = np.unique(seen, axis=0, return_counts=True)
  assert len(counts) == 24 and np.sum((counts - 100) ** 2 / 100) < 50


def test_a_mixture_keeps_to_its_weights_and_to_epochs_of_each():
  mixed = shuffle.Order((600, 50), (3.0, 1.0), 0)
  indices = mixed.at(np.arange(8000))
  second = indices >= 600
  assert second.reshape(8, 1000).sum(1).tolist() == [250] * 8
  _, counts = np.unique(indices[second], return_counts=True)
  assert counts.tolist() == [40] * 50
  _, counts = np.unique(indices[~second], return_counts=True)
  assert counts.tolist() == [10] * 600


@pytest.mark.parametrize(
  ("sizes", "weights"),
  [
    ((20, 1000), (1000.0, 1.0)),
    ((7, 600), (1.0, 5000.0)),
    ((5, 3, 11), (1.0, 2.0, 3.0)),
    ((300, 40), (2.0, 1.0)),
  ],
)
def test_each_source_of_a_mixture_has_epochs_in_the_order_of_time(
  sizes, weights
):
  order = shuffle.Order(sizes, weights, 0)
  drawn = order.at(np.arange(123, 40_123))
  # A start in the middle changes nothing.
  np.testing.assert_array_equal(drawn[5000:], order.at(np.arange(5123, 40_123)))
  first = np.cumsum([0, *sizes])
  whole = order.at(np.arange(40_123))
  for part, size in enumerate(sizes):
    mine = whole[(whole >= first[part]) & (whole < first[part + 1])]
    epochs = mine[: len(mine) // size * size].reshape(-1, size)
    assert all(len(set(epoch.tolist())) == size for epoch in epochs)
  # Two epochs of the smallest are not in one order.
  small = int(np.argmin(sizes))
  mine = whole[(whole >= first[small]) & (whole < first[small + 1])]
  epochs = mine[: 2 * sizes[small]].reshape(2, -1)
  assert epochs[0].tolist() != epochs[1].tolist()


def test_weights_that_do_not_divide_are_kept_to_a_draw():
  mixed = shuffle.Order((10, 10, 10), (1.0, 1.0, 1.0), 0)
  parts = mixed.at(np.arange(1000)) // 10
  assert sorted(np.bincount(parts)) == [333, 333, 334]


@pytest.mark.parametrize(
  ("weights", "block"),
  [((1, 5000), 50_010), ((1,) * 3000, 30_000), ((1e-6, 1), 10_000_010)],
)
def test_the_lightest_of_a_mixture_has_its_share_of_every_block(weights, block):
  counts = shuffle.draws_of_each(weights)
  assert sum(counts) == pytest.approx(block, abs=1)
  np.testing.assert_allclose(
    np.array(counts) / sum(counts), np.array(weights) / sum(weights), rtol=0.01
  )


def test_every_source_is_drawn_from():
  mixed = shuffle.Order((7,) * 3000, (1.0,) * 3000, 0)
  parts = mixed.at(np.arange(30_000)) // 7
  assert np.bincount(parts, minlength=3000).tolist() == [10] * 3000


def test_a_weight_of_nothing_is_told():
  with pytest.raises(errors.UserError, match="remove its source"):
    shuffle.draws_of_each((1e-12, 1.0))


def test_another_image_is_of_the_same_source():
  mixed = shuffle.Order((5, 1, 100), (1.0, 1.0, 1.0), 0)
  rng = np.random.default_rng(0)
  for index, part in ((0, range(5)), (5, [5]), (6, range(6, 106))):
    drawn = {mixed.another(index, rng) for _ in range(2000)}
    assert drawn == set(part)


def test_a_billion_entries_cost_neither_memory_nor_time(tmp_path):
  """Opened, shuffled, and 10,000 batches drawn by a process of its own.

  `ru_maxrss` would do but for a process that a large one started: it begins
  with what that one held.
  """
  path = tmp_path / "list.npy"
  np.lib.format.open_memmap(path, "w+", "S40", (10**9,))  # A file of holes.
  code = f"""
import json, time
import numpy as np
from seer_jax.data import shuffle, sources
def most_kib():
  for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
      return int(line.split()[1])
before = most_kib()
began = time.perf_counter()
source = sources.open_source({{"kind": "list", "path": {str(path)!r}}})
drawn = shuffle.Order((len(source),), (1.0,), 0)
rng = np.random.default_rng(0)
for first in rng.integers(10**9, size=10_000).tolist():
  drawn.at(np.arange(first, first + 256))
seconds = time.perf_counter() - began
after = most_kib()
print(json.dumps([len(source), seconds, (after - before) / 1024, after / 1024]))
"""
  ended = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  size, seconds, grown, peak = json.loads(ended.stdout)
  print(f"{seconds:.2f} s, {grown:.0f} MiB more, {peak:.0f} MiB at most")
  assert size == 10**9
  assert peak < 200
