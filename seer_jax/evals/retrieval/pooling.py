"""From a map of features to one vector: R-MAC, GeM, or the mean.

R-MAC (Tolias, Sicre & Jégou 2016): the maximum over each of a few square
regions, normalized, whitened, normalized, summed, normalized. GeM (Radenović,
Tolias & Chum 2019): the power mean of each channel, normalized, whitened,
normalized.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seer_jax.data import preprocessing
from seer_jax.evals import features

# Of the longer side: how much neighbouring regions should overlap.
_OVERLAP = 0.4
_MOST_ALONG = 7
_LEAST = 1e-6  # Of the features that GeM raises to a power.


@dataclasses.dataclass(frozen=True)
class Pooling:
  """How a map becomes a vector."""

  tap: str  # A map of `heads.TAPS`, or a vector, which stays as it is.
  kind: str  # "rmac", "gem" or "mean".
  levels: int  # Of R-MAC.
  power: float  # Of GeM.

  def regional(self, x_NxHxWxC: jax.Array) -> jax.Array:
    """Unit vectors before whitening: NxRxC, R regions (1 but for R-MAC)."""
    x = x_NxHxWxC.astype(jnp.float32)
    if x.ndim == 2:
      return unit(x)[:, None]
    if self.kind == "rmac":
      return rmac_regions(x, self.levels)
    if self.kind == "gem":
      powers = jnp.maximum(x, _LEAST) ** self.power
      return unit(powers.mean((1, 2)) ** (1 / self.power))[:, None]
    return unit(x.mean((1, 2)))[:, None]


def regions(height: int, width: int, levels: int) -> np.ndarray:
  """Top, left, and side of the square regions of R-MAC: Rx3, in cells.

  Level l has squares of side 2 min(H, W) / (l + 1), l along the shorter side,
  and along the longer one as many more as makes neighbours overlap by about 40
  %.
  """
  short = min(height, width)
  more = np.arange(2, _MOST_ALONG + 1)
  shift = (max(height, width) - short) / (more - 1)
  overlap = (short**2 - short * shift) / short**2
  extra = int(np.argmin(np.abs(overlap - _OVERLAP))) + 1
  found = []
  for level in range(1, levels + 1):
    side = 2 * short // (level + 1)
    if not side:
      continue
    tops = _starts(height, side, level + extra * (height > width))
    lefts = _starts(width, side, level + extra * (width > height))
    found += [(top, left, side) for top in tops for left in lefts]
  return np.array(found)


def _starts(size, side, count):
  """Starts of `count` intervals of a length, spread over an axis.

  Their centers are rounded down, as in the published code.
  """
  half = side // 2 - 1
  step = (size - side) / (count - 1) if count > 1 else 0.0
  starts = np.floor(half + step * np.arange(count)) - half
  return np.minimum(starts.astype(int), size - side).tolist()


def rmac_regions(x_NxHxWxC: jax.Array, levels: int) -> jax.Array:
  """Unit maxima over the regions: NxRxC."""
  maxima = [
    x_NxHxWxC[:, top : top + side, left : left + side].max((1, 2))
    for top, left, side in regions(*x_NxHxWxC.shape[1:3], levels).tolist()
  ]
  return unit(jnp.stack(maxima, 1))


def unit(x: jax.Array) -> jax.Array:
  """Scales vectors along the last axis to length one; zeros stay zeros."""
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(norm, 1e-12)


def whitened_sum(x_NxRxC: jax.Array, whitening: Mapping[str, Any]) -> jax.Array:
  """Regional vectors to one unit vector per image: NxP.

  Args:
    x_NxRxC: unit vectors.
    whitening: `mean` C and `projection` CxP, or {} for none.
  """
  if whitening:
    centered = x_NxRxC - whitening["mean"]
    x_NxRxC = unit(
      jnp.matmul(centered, whitening["projection"], precision="highest")
    )
  return unit(x_NxRxC.sum(1))


@dataclasses.dataclass(frozen=True)
class PooledEncoder:
  """An encoder whose `avgpool` is the pooled vector of another's map.

  Its variables are those of the other and, under `whitening`, what
  `whitened_sum` takes. With `regional`, it gives the vectors of all regions in
  one row, R times C, before whitening.
  """

  encoder: features.Encoder
  pooling: Pooling
  regional: bool = False

  @property
  def preprocessing(self) -> preprocessing.Preprocessing:
    return self.encoder.preprocessing

  def apply(self, variables: Any, x_NxHxWx3: jax.Array) -> dict[str, jax.Array]:
    """The vector, as `avgpool`."""
    variables = dict(variables)
    whitening = variables.pop("whitening", {})
    found = self.encoder.apply(variables, x_NxHxWx3)
    tap = self.pooling.tap if self.pooling.tap in found else "avgpool"
    vectors_NxRxC = self.pooling.regional(found[tap])
    if self.regional:
      return {"avgpool": vectors_NxRxC.reshape(len(vectors_NxRxC), -1)}
    return {"avgpool": whitened_sum(vectors_NxRxC, whitening)}
