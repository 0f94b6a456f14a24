"""Pre-training by swapped prediction: SwAV as a task."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seer_jax.data import preprocessing
from seer_jax.models import encoder
from seer_jax.tasks import augment, base, labelled, swav_loss
from seer_jax.tasks.state import State


class Targets(NamedTuple):
  """What the crops of a batch predict."""

  codes_BxAxK: tuple[jax.Array, ...]  # One for each prototype head.
  nearest_BxA: jax.Array  # Prototypes of the first head, before balancing.


class SwAV(base.Task):
  """Pre-training by swapped prediction, on batches of multi-crops."""

  METRICS = ("loss", "loss_over_lnk")

  def __init__(self, config: ml_collections.ConfigDict, dtype: jnp.dtype):
    self.config = config
    self.model = encoder.create(config)
    self.encoder = encoder.of_images(config)
    self.dtype = dtype
    self.totals = {"usage_K": (self.model.prototype_counts[0],)}
    if config.swav.instance_weight:
      self.METRICS = (*self.METRICS, "instance_loss")
    self.online_rate = config.online.lr
    if self.online_rate:
      self.METRICS = (*self.METRICS, "online/loss", "online/accuracy")
      self.online = encoder.Linear(config.classes)

  def init(self, key: jax.Array) -> tuple[Any, Any, Any]:
    """Fresh (params, batch_stats, extra); only shapes of crops matter here.

    To be jitted: the pass over a batch of zeros is then never computed, but the
    batch has a size that the mesh can split.
    """
    options, batch = self.config.crops, self.config.batch_size
    crops = [
      jnp.zeros((batch, count, size, size, 3), self.dtype)
      for count, size in zip(options.counts, options.sizes, strict=True)
    ]
    variables = self.model.init(key, crops, train=True)
    options, queue = self.config.swav, None
    if options.queue_length:
      queue = swav_loss.empty_queue(
        len(options.assign_crops), options.queue_length, self.model.out
      )
    params = variables["params"]
    if self.online_rate:
      one = jnp.zeros((1, self.model.architecture.features))
      params["online"] = self.online.init(key, one)["params"]
    return params, variables["batch_stats"], {"queue": queue}

  def trainable(self, path: str, step: jax.Array) -> jax.Array | bool:
    """Prototypes keep their initial values for the first steps (appendix A)."""
    if path.startswith("prototypes"):
      return step >= self.config.swav.freeze_steps
    return True

  def after_update(self, params: Any) -> Any:
    """Puts prototypes back on the sphere after an update (section 3.1)."""
    return {
      name: {"kernel": encoder.normalize(value["kernel"])}
      if name.startswith("prototypes")
      else value
      for name, value in params.items()
    }

  def view(self, batch: dict[str, Any]) -> list[jax.Array]:
    """Augmented, normalized crops, one BxVxHxWx3 array per resolution."""
    views = []
    for group, crops_BxVxHxWx3 in enumerate(batch["crops"]):
      images, count = crops_BxVxHxWx3.shape[:2]
      shape = crops_BxVxHxWx3.shape

      def split(key, group=group, count=count):
        return jax.random.split(jax.random.fold_in(key, group), count)

      keys_BxV = jax.vmap(split)(batch["keys_B"])
      pixels = augment.augment(
        crops_BxVxHxWx3.reshape(-1, *shape[2:]),
        keys_BxV.reshape(images * count),
        self.config.augment,
      )
      pixels = preprocessing.normalize(
        pixels, self.config.augment.mean, self.config.augment.std
      )
      views.append(pixels.astype(self.dtype).reshape(shape))
    return views

  def loss(
    self,
    params: Any,
    state: State,
    batch: dict[str, Any],
    targets: Targets | None = None,
  ) -> tuple[jax.Array, base.Aux]:
    """The swapped loss of a batch, averaged over prototype heads.

    `targets` are what to predict; None assigns them within this batch.
    """
    options = self.config.swav
    views, batch_stats = self._encode(params, state, batch)
    with jax.named_scope("swav"):
      z_BxAxP = views.z_BxVxP[:, jnp.array(options.assign_crops)]
      if targets is None:
        targets = self.targets(params, state, z_BxAxP)
      losses, relative = [], []
      for scores_BxVxK, codes_BxAxK in zip(
        views.scores_BxVxK, targets.codes_BxAxK, strict=True
      ):
        loss = swav_loss.swapped_loss(
          scores_BxVxK, codes_BxAxK, options.assign_crops, options.temperature
        )
        losses.append(loss)
        relative.append(loss / jnp.log(scores_BxVxK.shape[-1]))
      loss = jnp.mean(jnp.stack(losses))
    metrics = {"loss": loss, "loss_over_lnk": jnp.mean(jnp.stack(relative))}
    if options.instance_weight:
      more = swav_loss.instance_loss(z_BxAxP, options.instance_temperature)
      loss += options.instance_weight * more
      metrics["instance_loss"] = more
    if self.online_rate:
      features_BxD = views.features_BxVxD[:, 0]
      more, found = self._online(params, features_BxD, batch["label"])
      loss, metrics = loss + more, metrics | found
    totals = {"usage_K": _usage(targets.nearest_BxA, *self.totals["usage_K"])}
    return loss, base.Aux(batch_stats, metrics, totals, z_BxAxP)

  def _online(self, params, features_BxD, labels_B):
    """A classifier that learns from the features without changing them."""
    logits_BxL = self.online.apply(
      {"params": params["online"]}, jax.lax.stop_gradient(features_BxD)
    )
    wanted_BxL = labelled.targets(labels_B, self.config.classes)
    loss = labelled.cross_entropy(logits_BxL, wanted_BxL)
    right = labelled.accuracy(logits_BxL, labels_B)
    return loss, {"online/loss": loss, "online/accuracy": right}

  def summarize(
    self, params: Any, state: State, batch: dict[str, Any]
  ) -> jax.Array:
    """z_BxAxP as `loss` will see it: the first pass of accumulation."""
    options, counts = self.config.swav, self.config.crops.counts
    groups = len(counts)
    if not self.config.model.head.batch_norm or not self._trains_norms:
      # Resolutions after the last that assigns codes have no effect, unless a
      # BatchNorm in the head sees them.
      ends = itertools.accumulate(counts)
      groups = 1 + next(
        i for i, end in enumerate(ends) if end > max(options.assign_crops)
      )
    first = batch | {"crops": batch["crops"][:groups]}
    views, _ = self._encode(params, state, first)
    return views.z_BxVxP[:, jnp.array(options.assign_crops)]

  def targets(self, params: Any, state: State, z_BxAxP: jax.Array) -> Targets:
    """Codes of a whole batch, balanced over it and the queue."""
    options, queue = self.config.swav, state.extra["queue"]
    z_BxAxP = jax.lax.stop_gradient(z_BxAxP)
    queue_scores, used = (None,) * len(self.model.prototype_counts), None
    if queue is not None:
      queue_scores = self._scores(params, queue["z_AxQxP"])
      used = swav_loss.is_full(queue)
    scores = self._scores(params, z_BxAxP)
    codes = tuple(
      swav_loss.assign(
        scores_BxAxK,
        range(len(options.assign_crops)),
        options.epsilon,
        options.iterations,
        queued_AxQxK,
        used,
        options.codes_power,
      )
      for scores_BxAxK, queued_AxQxK in zip(scores, queue_scores, strict=True)
    )
    return Targets(codes, jnp.argmax(scores[0], axis=-1))

  def after_step(self, state: State, z_BxAxP: jax.Array) -> dict[str, Any]:
    """`extra` after a batch: the queue, updated with its projections."""
    queue = state.extra["queue"]
    if queue is None:
      return state.extra
    active = state.step >= self.config.swav.queue_start
    return {"queue": swav_loss.update_queue(queue, z_BxAxP, active)}

  def report(self, totals: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How evenly crops are assigned to prototypes."""
    return prototype_use(totals["usage_K"])

  @property
  def _trains_norms(self):
    return not self.config.model.frozen_norms

  def _encode(self, params, state, batch):
    with jax.named_scope("augment"):
      crops = self.view(batch)
    views, changed = self.model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      crops,
      train=self._trains_norms,
      mutable=["batch_stats"],
    )
    return views, changed["batch_stats"]

  def _scores(self, params, z):
    return self.model.apply({"params": params}, z, method="scores")


def _usage(nearest_BxA, prototypes):
  """Crops nearest to each prototype, K floats."""
  nearest = jnp.bincount(nearest_BxA.ravel(), length=prototypes)
  return nearest.astype(jnp.float32)


def prototype_use(usage_K: np.ndarray) -> dict[str, float]:
  """How evenly crops are assigned to prototypes, by the nearest one.

  From usage_K, the crops nearest to each prototype over some window:
  `prototypes/entropy` of the shares, over ln K, is 1 if they are even and 0 for
  a single one; `prototypes/in_use` counts those with any crop;
  `prototypes/max_share` is the share of the most used one.
  """
  share_K = usage_K / max(usage_K.sum(), 1)
  used = share_K[share_K > 0]
  entropy = -np.sum(used * np.log(used)) / math.log(len(usage_K))
  return {
    "prototypes/entropy": float(entropy),
    "prototypes/in_use": len(used),
    "prototypes/max_share": float(share_K.max()),
  }
