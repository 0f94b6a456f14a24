"""Trunk and head: a RegNet, a projection, and prototypes."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from seer_jax.data.preprocessing import Preprocessing
from seer_jax.models import architectures, batch_norm, regnet
from seer_jax.runtime import errors


def normalize(kernel_PxK: jax.Array) -> jax.Array:
  """Normalizes prototypes (columns) to the unit sphere; zeros stay zeros."""
  kernel_PxK = kernel_PxK.astype(jnp.float32)
  square_1xK = jnp.sum(jnp.square(kernel_PxK), axis=0, keepdims=True)
  return kernel_PxK * jax.lax.rsqrt(jnp.maximum(square_1xK, 1e-24))


class Views(NamedTuple):
  """The network's outputs for a batch of crops."""

  features_BxVxD: jax.Array
  z_BxVxP: jax.Array
  scores_BxVxK: tuple[jax.Array, ...]  # One for each prototype head.


class Linear(nn.Module):
  """y = x W + b in the dtype of x, with PyTorch's default initialization."""

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = regnet.uniform_fan_in(x.shape[-1])
    shape = (x.shape[-1], self.features)
    kernel = regnet.kernel_of(self, init, shape, x.dtype)
    bias = self.param("bias", init, (self.features,))
    return x @ kernel + bias.astype(x.dtype)


class Projection(nn.Module):
  """SwAV's projection head: hidden layers with ReLU, a linear last layer."""

  hidden: Sequence[int]  # Widths of the hidden layers.
  out: int  # P, the width of the projection; 0 for only the hidden layers.
  batch_norm: bool  # After hidden layers (not in SEER's largest models).
  bn_groups: int = 1  # See `batch_norm.BatchNorm`.

  @nn.compact
  def __call__(self, x_NxD: jax.Array, train: bool) -> jax.Array:
    x = x_NxD
    for layer, width in enumerate(self.hidden):
      x = Linear(width, name=f"linear{layer}")(x)
      if self.batch_norm:
        x = batch_norm.BatchNorm(self.bn_groups, name=f"bn{layer}")(x, train)
      x = nn.relu(x)
    if not self.out:
      return x
    z_NxP = Linear(self.out, name=f"linear{len(self.hidden)}")(x)
    z_NxP = z_NxP.astype(jnp.float32)
    # Not jnp.linalg.norm, whose gradient at zero is NaN.
    square_Nx1 = jnp.sum(jnp.square(z_NxP), axis=-1, keepdims=True)
    return z_NxP * jax.lax.rsqrt(jnp.maximum(square_Nx1, 1e-24))


class Prototypes(nn.Module):
  """K directions on the sphere; a score is a cosine. Always float32."""

  count: int

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    def on_sphere(key, shape):
      return normalize(regnet.uniform_fan_in(shape[0])(key, shape))

    shape = (z.shape[-1], self.count)
    kernel = regnet.kernel_of(self, on_sphere, shape, jnp.float32)
    # By default TPUs and newer GPUs round the operands, too coarsely for
    # Sinkhorn's epsilon.
    return jnp.matmul(z, kernel, precision="highest")


class Encoder(nn.Module):
  """The network that weights belong to: a trunk and the heads trained on it."""

  architecture: architectures.Architecture  # The trunk's shape.
  hidden: Sequence[int] = ()  # Widths of the projection's hidden layers.
  out: int = 0  # P, the projection's width; 0 for none.
  batch_norm: bool = False  # After the hidden layers of the projection.
  prototype_counts: Sequence[int] = ()  # K of each prototype head.
  bn_groups: int = 1  # See `batch_norm.BatchNorm`.
  execution: regnet.Execution = regnet.Execution()  # See `regnet.Execution`.
  # L of a classifier, 0 for none. Its input is the trunk's, or that of the
  # hidden layers if `out` is 0 (Goyal et al. 2021, fine-tuning on few labels).
  classes: int = 0
  preprocessing: Preprocessing = Preprocessing()  # For these weights.

  def setup(self):
    self.trunk = regnet.RegNet(
      self.architecture, self.bn_groups, self.execution
    )
    if self.hidden or self.out:
      self.head = Projection(
        self.hidden, self.out, self.batch_norm, self.bn_groups
      )
    self.prototypes = [Prototypes(count) for count in self.prototype_counts]
    if self.classes:
      self.classifier = Linear(self.classes)

  def __call__(
    self,
    x_NxHxWx3: jax.Array,
    train: bool = False,
    keep_blocksxN: jax.Array | None = None,
  ):
    """Computes all outputs for normalized float images, NxHxWx3.

    Args:
      x_NxHxWx3: normalized float images.
      train: whether BatchNorm uses statistics of the batch.
      keep_blocksxN: stochastic depth; see `regnet.RegNet`.

    Returns:
      The trunk's taps (`regnet.RegNet`) and, for the heads that exist,
      `projection` NxP, `scores`, a tuple of NxK, and `logits` NxL.
    """
    found = dict(self.trunk(x_NxHxWx3, train, keep_blocksxN))
    x_NxD = found["avgpool"].astype(x_NxHxWx3.dtype)
    if self.out:
      found["projection"] = self.head(x_NxD, train)
      found["scores"] = self.scores(found["projection"])
    elif self.hidden:
      x_NxD = self.head(x_NxD, train)
    if self.classes:
      found["logits"] = self.classifier(x_NxD).astype(jnp.float32)
    return found

  def features(self, x_NxHxWx3: jax.Array, train: bool = False) -> jax.Array:
    """Pooled trunk features, N x D, float32."""
    return self.trunk(x_NxHxWx3, train)["avgpool"]

  def scores(self, z: jax.Array) -> tuple[jax.Array, ...]:
    """Cosines of unit rows to the prototypes of each head, (..., K)."""
    return tuple(head(z) for head in self.prototypes)


class SwavModel(Encoder):
  """The network that SwAV trains, over the crops of a batch."""

  def __call__(self, crops: Sequence[jax.Array], train: bool) -> Views:
    """Takes normalized float crops, one BxVxHxWx3 array per resolution.

    The trunk runs once per resolution, so BatchNorm never mixes resolutions and
    its running statistics move once for each; the head runs once for all.
    """
    features = []
    for crops_BxVxHxWx3 in crops:
      batch, views = crops_BxVxHxWx3.shape[:2]
      x_NxHxWx3 = crops_BxVxHxWx3.reshape(-1, *crops_BxVxHxWx3.shape[2:])
      features_NxD = self.features(x_NxHxWx3, train)
      features.append(features_NxD.reshape(batch, views, -1))
    features_BxVxD = jnp.concatenate(features, axis=1)
    batch, views, width = features_BxVxD.shape
    x_NxD = features_BxVxD.reshape(-1, width).astype(crops[0].dtype)
    z_BxVxP = self.head(x_NxD, train).reshape(batch, views, -1)
    return Views(features_BxVxD, z_BxVxP, self.scores(z_BxVxP))


def create(config: ml_collections.ConfigDict) -> SwavModel:
  """The network of a resolved config, over the crops of a batch."""
  return SwavModel(**_fields(config))


def of_images(config: ml_collections.ConfigDict) -> Encoder:
  """The same network, with the same variables, over single images."""
  return Encoder(**_fields(config))


def _fields(config):
  return {
    "architecture": architecture(config.model),
    "hidden": tuple(config.model.head.hidden),
    "out": config.model.head.out,
    "batch_norm": config.model.head.batch_norm,
    "prototype_counts": tuple(config.model.prototypes or ()),
    "bn_groups": config.model.bn_groups,
    "execution": regnet.Execution(
      config.model.remat,
      tuple(map(tuple, config.model.remat_groups)),
      config.model.scan,
    ),
    "preprocessing": Preprocessing(
      config.eval.resize,
      config.eval.size,
      config.eval.interpolation,
      tuple(config.augment.mean),
      tuple(config.augment.std),
    ),
  }


def architecture(
  model: ml_collections.ConfigDict,
) -> architectures.Architecture:
  """The trunk that the config names, lists, or gives five numbers for.

  Raises UserError if there is no trunk of that name, or the numbers make none.
  """
  shape = {
    "stem_width": model.stem_width,
    "stem_stride": model.stem_stride,
    "strides": tuple(model.strides),
  }
  lists = [tuple(model[key]) for key in ("depths", "widths", "group_widths")]
  key = "config.model"
  try:
    if any(lists):
      arch = architectures.Architecture(
        *lists, se_ratio=model.se_ratio, **shape
      )
    elif model.regnet:
      key = "config.model.regnet"
      if len(model.regnet) != 5:
        raise ValueError(
          f"{tuple(model.regnet)} must be five numbers: depth, w_0, w_a, w_m,"
          " group width"
        )
      numbers = tuple(model.regnet)
      arch = architectures.from_numbers(
        *numbers, se_ratio=model.se_ratio, **shape
      )
    else:
      key = "config.model.trunk"
      arch = architectures.find(model.trunk)
      shape["se_ratio"] = model.se_ratio if arch.se_ratio else 0.0
      arch = dataclasses.replace(arch, **shape)
  except ValueError as error:
    raise errors.UserError(f"{key}: {error}") from error
  if model.remat == "group":
    _check_groups(tuple(model.remat_groups), arch.depths)
  return arch


def _check_groups(groups, depths):
  fine = len(groups) == len(depths) and all(
    list(ends) == sorted(set(ends)) and set(ends) <= set(range(1, depth + 1))
    for ends, depth in zip(groups, depths, strict=True)
  )
  if not fine:
    raise errors.UserError(
      f"config.model.remat_groups is {groups}; for each of the stages of"
      f" {depths} blocks it must have rising block numbers at which groups end,"
      " such as ((2,), (7,), (9, 17), ())"
    )
