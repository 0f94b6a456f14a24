"""Linear heads on a frozen trunk's taps: what a linear probe trains.

VISSL's `eval_mlp` head: a BatchNorm over the channels of a map, which is then
flattened, and one linear layer. Here several copies of a head, one per learning
rate, share the statistics and are computed by one product.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from seer_jax.models import batch_norm, regnet
from seer_jax.runtime import errors

# The maps of `regnet.RegNet`, then the vectors.
_VECTORS = ("avgpool", "projection", "logits")
TAPS = ("conv1", "res2", "res3", "res4", "res5", *_VECTORS)


class Tap(NamedTuple):
  """A named output of the network, and the grid that it is averaged to."""

  name: str  # Of `TAPS`.
  rows: int = 1  # Of the grid; 0 keeps the map as it is.
  columns: int = 1


def tap(text: str) -> Tap:
  """Parses "res4" (a mean), "res4:2x1" (a grid of means) or "res4:all".

  Raises UserError for anything else.
  """
  name, _, grid = text.partition(":")
  sizes = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", grid or "1x1")
  if name not in TAPS or not (sizes or grid == "all"):
    raise errors.UserError(
      f"there is no tap {text!r}; use {', '.join(TAPS)}; append :2x1 to a map"
      " for a grid of means, or :all for the whole map"
    )
  if grid and name in _VECTORS:
    raise errors.UserError(f"{text!r}: {name} is a vector; remove :{grid}")
  if grid == "all":
    return Tap(name, 0, 0)
  return Tap(name, int(sizes[1]), int(sizes[2]))


def pooled(taps: Mapping[str, jax.Array], text: str) -> jax.Array:
  """A tap as NxD, float32; a map is averaged over a grid and flattened.

  The grid is that of PyTorch's adaptive average pooling: cells overlap if it
  does not divide the map.
  """
  return _flat(_grid(taps, text))


def _grid(taps, text):
  wanted = tap(text)
  if wanted.name not in taps:
    raise errors.UserError(
      f"the network has no tap {wanted.name}; use one of"
      f" {', '.join(name for name in TAPS if name in taps)}"
    )
  x = taps[wanted.name].astype(jnp.float32)
  if x.ndim == 2:
    return x[:, None, None]
  if wanted.rows:
    x = _averaged(x, 1, wanted.rows)
    x = _averaged(x, 2, wanted.columns)
  return x


def _averaged(x, axis, cells):
  size = x.shape[axis]
  means = [
    jnp.mean(
      jax.lax.slice_in_dim(
        x, at * size // cells, -(-(at + 1) * size // cells), axis=axis
      ),
      axis,
      keepdims=True,
    )
    for at in range(cells)
  ]
  return jnp.concatenate(means, axis)


def _flat(x):
  return x.reshape(x.shape[0], -1)


class LinearHead(nn.Module):
  """G linear classifiers on one tap, with or without a BatchNorm."""

  copies: int  # G, the number of learning rates.
  classes: int  # L.
  batch_norm: bool  # Over the channels, with a scale and bias for each copy.

  @nn.compact
  def __call__(self, x_NxHxWxC: jax.Array, train: bool) -> jax.Array:
    """Logits, GxNxL, float32."""
    channels, cells = x_NxHxWxC.shape[-1], x_NxHxWxC.shape[1:3]
    if self.batch_norm:
      norm = batch_norm.BatchNorm(affine=False, name="norm")
      x_NxHxWxC = norm(x_NxHxWxC, train)
    x_NxD = _flat(x_NxHxWxC)
    shape = (self.copies, x_NxD.shape[-1], self.classes)
    init = nn.initializers.normal(0.01)
    kernel_GxDxL = regnet.kernel_of(self, init, shape, jnp.float32)
    bias_GxL = self.param(
      "bias", nn.initializers.zeros, (self.copies, self.classes)
    )
    if self.batch_norm:
      # Scale and bias of the norm are folded into the linear layer, so that all
      # copies share one normalized input.
      affine = (self.copies, channels)
      scale_GxC = self.param("scale", nn.initializers.ones, affine)
      shift_GxC = self.param("shift", nn.initializers.zeros, affine)
      # Channels come last in a map: they repeat from cell to cell.
      repeat = (1, cells[0] * cells[1])
      shift_GxD = jnp.tile(shift_GxC, repeat)
      bias_GxL += jnp.einsum("gd,gdl->gl", shift_GxD, kernel_GxDxL)
      kernel_GxDxL *= jnp.tile(scale_GxC, repeat)[..., None]
    logits = jnp.einsum("nd,gdl->gnl", x_NxD, kernel_GxDxL, precision="highest")
    return logits + bias_GxL[:, None]


class ProbeHeads(nn.Module):
  """A `LinearHead` for each tap and each choice of BatchNorm."""

  classes: int  # L.
  taps: Sequence[str]  # As `tap` reads them.
  norms: Sequence[bool]  # With BatchNorm, without, or one of each.
  copies: int  # G, of each head.

  @nn.compact
  def __call__(
    self, taps: Mapping[str, jax.Array], train: bool
  ) -> dict[str, jax.Array]:
    """Logits GxNxL of each head, by `names`."""
    return {
      name: LinearHead(self.copies, self.classes, norm, name=name)(
        _grid(taps, text), train
      )
      for (text, norm), name in zip(
        self._each(), names(self.taps, self.norms), strict=True
      )
    }

  def _each(self):
    return [(text, norm) for text in self.taps for norm in self.norms]


def names(taps: Sequence[str], norms: Sequence[bool]) -> list[str]:
  """Names of the heads, in order: "res4", and "res4+bn" with a BatchNorm."""
  return [f"{text}{'+bn' * norm}" for text in taps for norm in norms]
