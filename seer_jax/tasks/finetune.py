"""Fine-tuning: the whole network learns to classify.

It starts from weights, as in SEER's tables, or from scratch if the config has
none: ordinary supervised training, the baseline.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from seer_jax.models import encoder, regnet
from seer_jax.tasks import base, labelled
from seer_jax.tasks.state import State


class FineTune(labelled.Labelled):
  """Trunk and classifier, with regularization for large networks."""

  def __init__(self, config: ml_collections.ConfigDict, dtype: Any):
    super().__init__(config, dtype)
    self.encoder = network(config)
    self._depths = self.encoder.architecture.depths

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh parameters; `extra` is their moving average, if there is one."""
    size = self.config.crops.sizes[0]
    x = jnp.zeros((self.config.batch_size, size, size, 3), self.dtype)
    variables = self.encoder.init(key, x, train=True)
    params, stats = variables["params"], variables["batch_stats"]
    return params, stats, self._averaged(params, stats)

  def loss(
    self,
    params: Any,
    state: State,
    batch: dict[str, Any],
    targets: Any | None = None,
  ) -> tuple[jax.Array, base.Aux]:
    """Cross entropy with mixed, smoothed labels."""
    del targets
    options = self.config.finetune
    keys_Bx2 = jax.vmap(lambda key: jax.random.split(key, 4)[2:])(
      batch["keys_B"]
    )
    (x_Bx1xHxWx3,) = self.view(batch)
    wanted_BxL = labelled.targets(
      batch["label"], self.config.classes, options.smoothing
    )
    x_BxHxWx3, wanted_BxL = mixed(
      x_Bx1xHxWx3[:, 0],
      wanted_BxL,
      keys_Bx2[:, 0],
      options.mixup,
      options.cutmix,
    )
    keep_blocksxN = None
    if options.drop_path:
      keep_blocksxN = regnet.drawn_depth(
        keys_Bx2[:, 1], options.drop_path, sum(self._depths)
      )
    found, changed = self.encoder.apply(
      {"params": params, "batch_stats": state.batch_stats},
      x_BxHxWx3,
      not self.config.model.frozen_norms,
      keep_blocksxN,
      mutable=["batch_stats"],
    )
    loss = labelled.cross_entropy(found["logits"], wanted_BxL)
    right = labelled.accuracy(found["logits"], batch["label"])
    metrics = {"loss": loss, "train/accuracy": right}
    return loss, base.Aux(changed["batch_stats"], metrics, {}, ())

  def rate(self, path: str) -> float:
    """Lower towards the input (`layer_decay`); `head_rate` for the head."""
    options, last = self.config.finetune, 1 + sum(self._depths)
    layer = self._layer(path)
    factor = options.head_rate if layer == last else 1.0
    return factor * options.layer_decay ** (last - layer)

  def weight_decay(self, path: str) -> float:
    """The head may have its own (`head_decay`)."""
    in_head = not path.startswith("trunk")
    factor = self.config.finetune.head_decay if in_head else 1.0
    return factor * self.config.optim.weight_decay

  def _layer(self, path):
    """0 for the stem, then the blocks, then the head."""
    block = re.match(r"trunk/stage(\d+)_block(\d+)/", path)
    if block:
      before = sum(self._depths[: int(block[1]) - 1])
      return 1 + before + int(block[2])
    return 0 if path.startswith("trunk") else 1 + sum(self._depths)

  def after_step(self, state: State, kept: Any) -> Any:
    """Moves the average towards the new parameters."""
    del kept
    if not self.config.finetune.ema:
      return state.extra
    # At first the average is over few steps, and must forget the start.
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(self.config.finetune.ema, (1 + step) / (10 + step))
    average = jax.tree.map(
      lambda old, new: old * decay + new * (1 - decay),
      state.extra["ema"],
      state.variables,
    )
    return {"ema": average}

  def variables(self, state: State) -> dict[str, Any]:
    """The moving average, if there is one."""
    return state.extra.get("ema", state.variables)

  def with_weights(self, state: State, take: Callable[[Any], Any]) -> State:
    """Loads the trunk and the layers of the head that the weights have."""
    taken = take(state.variables)
    extra = self._averaged(taken["params"], taken["batch_stats"])
    return state.replace(**taken, extra=extra)

  def _averaged(self, params, stats):
    if not self.config.finetune.ema:
      return {}
    both = {"params": params, "batch_stats": stats}
    return {"ema": jax.tree.map(jnp.copy, both)}


def network(config: ml_collections.ConfigDict) -> encoder.Encoder:
  """The classifier of a config.

  `finetune.head="swav"` keeps the first layer of the pre-trained projection,
  with a new BatchNorm, below the classifier: SEER's form for few labels
  (VISSL's `swav_head` fine-tuning).
  """
  of_swav = config.finetune.head == "swav"
  return encoder.of_images(config).clone(
    hidden=tuple(config.model.head.hidden[:1]) if of_swav else (),
    out=0,
    batch_norm=of_swav,
    prototype_counts=(),
    classes=config.classes,
  )


def mixed(
  x_BxHxWx3: jax.Array,
  targets_BxL: jax.Array,
  keys_B: jax.Array,
  mixup: float,
  cutmix: float,
) -> tuple[jax.Array, jax.Array]:
  """Mixes each image, and its target, with its neighbour in the batch.

  mixup (Zhang et al. 2018) blends two images, CutMix (Yun et al. 2019) pastes a
  box of one into the other; with both, each image draws one of them. Shares are
  drawn from Beta(alpha, alpha) for each image. Neighbours are on one device,
  and the shuffled batch makes them random; B must be even.
  """
  if not (mixup or cutmix):
    return x_BxHxWx3, targets_BxL

  def draw(key):
    which, of_mixup, of_cutmix, row, column = jax.random.split(key, 5)
    cut = jax.random.bernoulli(which) if mixup and cutmix else cutmix > 0
    blend = jax.random.beta(of_mixup, mixup, mixup) if mixup else 1.0
    area = jax.random.beta(of_cutmix, cutmix, cutmix) if cutmix else 1.0
    mask_HxW = _outside_box(row, column, area, x_BxHxWx3.shape[1:3])
    share_HxW = jnp.where(cut, mask_HxW, blend)
    return share_HxW, jnp.mean(share_HxW)

  share_BxHxW, share_B = jax.vmap(draw)(keys_B)
  share = share_BxHxW[..., None].astype(x_BxHxWx3.dtype)
  x_BxHxWx3 = x_BxHxWx3 * share + _neighbours(x_BxHxWx3) * (1 - share)
  share = share_B[:, None]
  targets_BxL = targets_BxL * share + _neighbours(targets_BxL) * (1 - share)
  return x_BxHxWx3, targets_BxL


def _outside_box(row_key, column_key, area, sides):
  """1.0 outside a random box of 1 - `area` of the image, clipped to it."""
  inside = []
  for key, side in zip((row_key, column_key), sides, strict=True):
    length = jnp.floor(side * jnp.sqrt(1 - area))
    centre = jax.random.randint(key, (), 0, side)
    at = jnp.arange(side)
    low = centre - length // 2
    inside.append((at >= low) & (at < low + length))
  return 1.0 - (inside[0][:, None] & inside[1])


def _neighbours(x):
  pairs = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  return pairs[:, ::-1].reshape(x.shape)
