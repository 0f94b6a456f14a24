"""A perceptual hash: copies of an image differ in few of its 64 bits.

The signs of an image's low frequencies about their median (Zauner 2010, section
3.2.1). Scaling, recompression and slight changes of color keep most.
"""

import cv2
import numpy as np

# Into how many tasks `close_pairs` can be divided.
PARTS = 32
# Sides of the first reduction, of the transformed image, and of the block of
# low frequencies.
_SAMPLED, _SIDE, _LOW = 128, 32, 8


def perceptual_hash(image_HxWx3: np.ndarray) -> int:
  """64 bits of a uint8 RGB image; all 0 for an image without structure.

  Coefficients are rounded, so that invisible noise decides no bit.
  """
  # Using all pixels of a photo would take half as long as decoding it.
  some = cv2.resize(image_HxWx3, (_SAMPLED, _SAMPLED))
  grey = cv2.cvtColor(some, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  low = np.rint(cv2.dct(small.astype(np.float32))[: _LOW + 1, : _LOW + 1])
  # Without the first row and column, which depend on the lighting.
  low = low[1:, 1:]
  bits = (low > np.median(low)).ravel()
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
  """Hamming distances of uint64 hashes."""
  return np.bitwise_count(np.bitwise_xor(a_N, b_N))


def close_pairs(
  hashes_N: np.ndarray, radius: int, part: int | None = None
) -> np.ndarray:
  """All pairs of hashes that differ in at most `radius` bits.

  At least one of four 16-bit parts of such a pair differs in at most `radius //
  4` bits (Norouzi et al. 2012, multi-index hashing); only those are compared.

  Args:
    hashes_N: uint64.
    radius: at most 11; more would compare nearly all pairs.
    part: which of `PARTS` shares of the work; a pair may be in several. None
      for all of it.

  Returns:
    rows_Mx2, the smaller row first, sorted, each pair once.
  """
  if not 0 <= radius <= 11:
    raise ValueError(f"radius is {radius}; it must be from 0 to 11")
  found = [np.empty((0, 2), np.int64)]
  for at in range(4) if part is None else [part % 4]:
    keys_N = (hashes_N >> np.uint64(16 * at)).astype(np.uint16)
    order = np.argsort(keys_N, kind="stable")
    starts = np.searchsorted(keys_N[order], np.arange(2**16 + 1))
    masks = _masks(radius // 4)
    for mask in masks if part is None else masks[part // 4 :: PARTS // 4]:
      for rows, others in _joined(keys_N, order, starts, mask):
        near = distance(hashes_N[rows], hashes_N[others]) <= radius
        near &= rows < others
        found.append(np.stack([rows[near], others[near]], 1))
  return np.unique(np.concatenate(found), axis=0)


# Pairs compared at once.
_AT_ONCE = 2**22


def _masks(bits):
  """All 16-bit numbers with at most so many bits."""
  every = np.arange(2**16, dtype=np.uint16)
  return every[np.bitwise_count(every) <= bits]


def _joined(keys_N, order, starts, mask):
  """Pairs (rows, others) whose keys differ by exactly a mask, in parts."""
  wanted_N = (keys_N ^ mask).astype(np.int64)
  first_N, count_N = starts[wanted_N], starts[wanted_N + 1] - starts[wanted_N]
  ends = np.cumsum(count_N)
  begin = 0
  while begin < len(keys_N):
    done = ends[begin - 1] if begin else 0
    end = max(begin + 1, int(np.searchsorted(ends, done + _AT_ONCE, "right")))
    counts = count_N[begin:end]
    rows = np.repeat(np.arange(begin, end), counts)
    inside = np.arange(len(rows)) - np.repeat(
      np.cumsum(counts) - counts, counts
    )
    yield rows, order[np.repeat(first_N[begin:end], counts) + inside]
    begin = end
