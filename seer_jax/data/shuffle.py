"""Which image comes when: an endless sequence of draws, by their numbers.

Nothing is kept in memory and nothing is shuffled: where a draw leads to is
computed from its number. So a billion images cost what a thousand do, a run may
begin anywhere, and any number of processes may share the draws.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np

from seer_jax.runtime import errors

_ROUNDS = 6
_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio.
# How finely shares of several sources are kept to: in every block of so many
# draws each has its exact number; a block is longer where that takes it for so
# many draws of the source with the least weight.
_BLOCK, _FEWEST = 1000, 10
_LONGEST_BLOCK = 10**9
# Draws of a block that are counted through. In a longer one, which a weight
# below a hundred-thousandth makes, a source's draws are in any order.
_COUNTED = 10**6
# Draws whose indices are computed at once.
_AT_ONCE = 1024


def permuted(
  places_N: np.ndarray, size: int, key: str, epochs_N: np.ndarray | int = 0
) -> np.ndarray:
  """Where a permutation of 0..size-1 sends places; another for every epoch.

  A Feistel network over a rectangle that just holds `size` cells; what lands
  outside is sent on until it is inside (Black and Rogaway 2002, Ciphers with
  arbitrary finite domains).

  Args:
    places_N: of 0..size-1.
    size: of the permutation, up to 2^62.
    key: any words.
    epochs_N: of each place, or one for all.

  Returns:
    indices_N, int64.
  """
  digest = hashlib.sha256(key.encode()).digest()
  seed = np.frombuffer(digest[:8], np.uint64)[0]
  wide = math.isqrt(max(size - 1, 0)) + 1
  high = -(-size // wide)
  # Of arrays overflow is silent, as it is meant here.
  epochs_N = np.broadcast_to(epochs_N, np.shape(places_N)).astype(np.uint64)
  keys_N = _mixed(seed + epochs_N * _STEP)
  out_N = np.asarray(places_N).astype(np.uint64)
  left_N = np.arange(out_N.size)  # Which are still to be placed.
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

  Of one source every image is drawn once an epoch, that is each `sizes[0]`
  draws. Of several each has epochs of its own, one after the other in time.
  """

  # Of the sources whose images lie one after the other; one as a rule.
  sizes: tuple[int, ...]
  # How often each is drawn from; see `draws_of_each`.
  weights: tuple[float, ...]
  seed: int  # Of everything.

  def __getitem__(self, number: int) -> int:
    block, place = divmod(number, _AT_ONCE)
    return int(_block(self, block)[place])

  def at(self, numbers_N: np.ndarray) -> np.ndarray:
    """The indices of many draws."""
    numbers_N = np.asarray(numbers_N, np.int64)
    if len(self.sizes) == 1:
      return self._within(0, numbers_N)
    counts = draws_of_each(self.weights)
    ends = np.cumsum(counts)
    block = int(ends[-1])
    block_N, place_N = np.divmod(numbers_N, block)
    if block <= _COUNTED:
      part_N, inner_N = np.empty((2, len(numbers_N)), np.int64)
      for each in np.unique(block_N).tolist():
        mine_N = block_N == each
        parts, inner = _counted(self.weights, self.seed, each)
        part_N[mine_N] = parts[place_N[mine_N]]
        inner_N[mine_N] = inner[place_N[mine_N]]
    else:
      place_N = permuted(place_N, block, f"mix {self.seed}", block_N)
      part_N = np.searchsorted(ends, place_N, side="right")
      inner_N = place_N - (ends - counts)[part_N]
    indices_N = np.empty_like(numbers_N)
    first = np.cumsum([0, *self.sizes])
    for part in np.unique(part_N).tolist():
      mine_N = part_N == part
      drawn_N = block_N[mine_N] * counts[part] + inner_N[mine_N]
      indices_N[mine_N] = first[part] + self._within(part, drawn_N)
    return indices_N

  def another(self, index: int, rng: np.random.Generator) -> int:
    """Any image of the source that an image is of: weights stay as they are."""
    first = np.cumsum([0, *self.sizes])
    part = int(np.searchsorted(first, index, side="right")) - 1
    return int(first[part]) + int(rng.integers(self.sizes[part]))

  def _within(self, part, numbers_N):
    size = self.sizes[part]
    epochs_N, places_N = np.divmod(numbers_N, size)
    return permuted(places_N, size, f"order {self.seed} {part}", epochs_N)


@functools.lru_cache(maxsize=8)
def _block(order: Order, block: int) -> np.ndarray:
  return order.at(np.arange(block * _AT_ONCE, (block + 1) * _AT_ONCE))


@functools.lru_cache(maxsize=4)
def _counted(
  weights: tuple[float, ...], seed: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
  """Of each draw of a block: its source, and how many of that came before it.

  So a source's draws are counted in the order of time, and its epochs end
  where they should also within a block.
  """
  counts = draws_of_each(weights)
  places = permuted(np.arange(sum(counts)), sum(counts), f"mix {seed}", block)
  part_N = np.searchsorted(np.cumsum(counts), places, side="right")
  by_part_N = np.argsort(part_N, kind="stable")
  inner_N = np.empty_like(part_N)
  inner_N[by_part_N] = np.concatenate([np.arange(n) for n in counts])
  return part_N, inner_N


@functools.lru_cache(maxsize=8)
def draws_of_each(weights: tuple[float, ...]) -> tuple[int, ...]:
  """How often each of several sources is drawn from in every block of draws.

  Whole numbers, none below ten, so that none is 5 % off; a block is of 1,000
  draws, or of more where the least weight needs it. Raises UserError if a
  weight is so small that it means nothing.
  """
  shares = np.array(weights, np.float64)
  shares /= shares.sum()
  block = max(_BLOCK, math.ceil(_FEWEST / max(shares.min(), 1e-300)))
  if block > _LONGEST_BLOCK:
    raise errors.UserError(
      f"the least weight, {min(weights):g}, is one draw in"
      f" {block / _FEWEST:.0e}: leave its source out, or give it more"
    )
  shares *= block
  counts = np.floor(shares).astype(int)
  for part in np.argsort(counts - shares, kind="stable")[
    : block - counts.sum()
  ]:
    counts[part] += 1
  return tuple(counts.tolist())
