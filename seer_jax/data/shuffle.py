"""Deterministic shuffling: maps a global sample index to an image index.

Nothing is stored or shuffled: the image of a draw is computed from the draw's
number. So a billion images cost as much as a thousand, a run may start
anywhere, and any number of processes may share the draws.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np

from seer_jax.runtime import errors

_ROUNDS = 6
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio.
# Each source has its exact share in every block of draws; a block is long
# enough for this many draws of the source with the least weight.
_BLOCK, _FEWEST = 1000, 10
_LONGEST_BLOCK = 10**9
# The longest block whose draws are counted in order of time. In a longer one,
# due to a weight below 1e-5, the draws of a source are in any order.
_COUNTED = 10**6
# Draws whose indices are computed at a time.
_AT_ONCE = 1024


def permuted(
  positions_N: np.ndarray, size: int, key: str, epochs_N: np.ndarray | int = 0
) -> np.ndarray:
  """Positions -> indices in a permutation of 0..size-1, one for every epoch.

  A Feistel network over a rectangle that barely contains `size` cells; results
  outside are mapped again until they are inside (Black and Rogaway 2002,
  Ciphers with arbitrary finite domains). `key` is any string, `size` at most
  2^62; `epochs_N` are the epochs of the positions, or one for all.
  """
  digest = hashlib.sha256(key.encode()).digest()
  seed = np.frombuffer(digest[:8], np.uint64)[0]
  wide = math.isqrt(max(size - 1, 0)) + 1
  high = -(-size // wide)
  # Overflow of arrays is silent, as intended.
  epochs_N = np.broadcast_to(epochs_N, np.shape(positions_N)).astype(np.uint64)
  keys_N = _mixed(seed + epochs_N * _STEP)
  out_N = np.asarray(positions_N).astype(np.uint64)
  left_N = np.arange(out_N.size)  # Those still outside.
  while left_N.size:
    out_N[left_N] = _rounds(out_N[left_N], keys_N[left_N], high, wide)
    left_N = left_N[out_N[left_N] >= size]
  return out_N.astype(np.int64)


def _rounds(cells_N, keys_N, high, wide):
  """A permutation of the cells of a rectangle."""
  high, wide = np.uint64(high), np.uint64(wide)
  row_N, column_N = np.divmod(cells_N, wide)
  for number in range(_ROUNDS):
    round_N = keys_N + np.full(1, number + 1, np.uint64) * _STEP
    if number % 2:
      column_N = (column_N + _mixed(row_N ^ round_N) % wide) % wide
    else:
      row_N = (row_N + _mixed(column_N ^ round_N) % high) % high
  return row_N * wide + column_N


def _mixed(x_N):
  """SplitMix64's output function (Steele et al. 2014)."""
  x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x_N ^ (x_N >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class Order:
  """Number of a draw -> index of its image.

  Every image of a single source is drawn once per epoch, that is every
  `sizes[0]` draws. Each of several sources has its own epochs, one after the
  other in time.
  """

  sizes: tuple[int, ...]  # Of the sources, usually one.
  weights: tuple[float, ...]  # How often each is drawn from.
  seed: int

  def __getitem__(self, number: int) -> int:
    block, at = divmod(number, _AT_ONCE)
    return int(_block(self, block)[at])

  def at(self, numbers_N: np.ndarray) -> np.ndarray:
    """The indices of many draws."""
    numbers_N = np.asarray(numbers_N, np.int64)
    if len(self.sizes) == 1:
      return self._within(0, numbers_N)
    counts = draws_of_each(self.weights)
    ends = np.cumsum(counts)
    block = int(ends[-1])
    block_N, draw_N = np.divmod(numbers_N, block)
    if block <= _COUNTED:
      part_N, inner_N = np.empty((2, len(numbers_N)), np.int64)
      for each in np.unique(block_N).tolist():
        mine_N = block_N == each
        parts, inner = _counted(self.weights, self.seed, each)
        part_N[mine_N] = parts[draw_N[mine_N]]
        inner_N[mine_N] = inner[draw_N[mine_N]]
    else:
      draw_N = permuted(draw_N, block, f"mix {self.seed}", block_N)
      part_N = np.searchsorted(ends, draw_N, side="right")
      inner_N = draw_N - (ends - counts)[part_N]
    indices_N = np.empty_like(numbers_N)
    first = np.cumsum([0, *self.sizes])
    for part in np.unique(part_N).tolist():
      mine_N = part_N == part
      drawn_N = block_N[mine_N] * counts[part] + inner_N[mine_N]
      indices_N[mine_N] = first[part] + self._within(part, drawn_N)
    return indices_N

  def another(self, index: int, rng: np.random.Generator) -> int:
    """A random image of the same source as an image, so that weights hold."""
    first = np.cumsum([0, *self.sizes])
    part = int(np.searchsorted(first, index, side="right")) - 1
    return int(first[part]) + int(rng.integers(self.sizes[part]))

  def _within(self, part, numbers_N):
    size = self.sizes[part]
    epochs_N, positions_N = np.divmod(numbers_N, size)
    return permuted(positions_N, size, f"order {self.seed} {part}", epochs_N)


@functools.lru_cache(maxsize=8)
def _block(order: Order, block: int) -> np.ndarray:
  return order.at(np.arange(block * _AT_ONCE, (block + 1) * _AT_ONCE))


@functools.lru_cache(maxsize=4)
def _counted(
  weights: tuple[float, ...], seed: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """For each draw of a block: its source, and the source's earlier draws.

  So the draws of a source are counted in order of time, and its epochs end
  where they should within a block too.
  """
  counts = draws_of_each(weights)
  draws = permuted(np.arange(sum(counts)), sum(counts), f"mix {seed}", block)
  part_N = np.searchsorted(np.cumsum(counts), draws, side="right")
  by_part_N = np.argsort(part_N, kind="stable")
  inner_N = np.empty_like(part_N)
  inner_N[by_part_N] = np.concatenate([np.arange(n) for n in counts])
  return part_N, inner_N


@functools.lru_cache(maxsize=8)
def draws_of_each(weights: tuple[float, ...]) -> tuple[int, ...]:
  """How often each of several sources is drawn from in every block of draws.

  Whole numbers, none below ten, so that none is off by 5 %; a block has 1,000
  draws, or more if the least weight needs it. Raises UserError if a weight is
  too small to matter.
  """
  shares = np.array(weights, np.float64)
  shares /= shares.sum()
  block = max(_BLOCK, math.ceil(_FEWEST / max(shares.min(), 1e-300)))
  if block > _LONGEST_BLOCK:
    raise errors.UserError(
      f"the least weight, {min(weights):g}, is one draw in"
      f" {block / _FEWEST:.0e}; remove its source, or raise its weight"
    )
  shares *= block
  counts = np.floor(shares).astype(int)
  for part in np.argsort(counts - shares, kind="stable")[
    : block - counts.sum()
  ]:
    counts[part] += 1
  return tuple(counts.tolist())
